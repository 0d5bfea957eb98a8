# SPDX-License-Identifier: BSD-3-Clause
"""The trainings of FRMNet on CamVid: what each of its parts is worth.

All start from the preset "lite", an EfficientNet-Lite0 with ImageNet weights, and differ in the
options of their row alone. At 192 x 256 the grid of stride 16 has 192 tokens. Where the images lie,
and what all trainings on CamVid share, is in ../real.

A run's name is its table, what changes, and its seed: "camvid-frm-learned-0.25-seed0".
"""

from collections.abc import Iterator
from pathlib import Path

from bench.real.plan import ALL, DICE, LITE_FRM, SEEDS, SIZES, Run

HERE = Path(__file__).resolve().parent

RECIPE = (*SIZES["192x256"], "--steps=500", "--val_every=250")
SMALL = (*LITE_FRM, *RECIPE)


def masked(selector: str, keep: float) -> tuple[str, ...]:
    """Options of a selector with a keep ratio."""
    return (f"--network.selector={selector}", f"--network.keep={keep}")


LEARNED = masked("gumbel-topk", 0.25)

#: Options by the name of the row, the most valuable rows first.
ROWS: dict[str, tuple[str, ...]] = {
    "control": masked("random", 0.0),
    "none": (*ALL, "--network.inject=none"),
    "dense": ALL,
    "random-0.25": masked("random", 0.25),
    "learned-0.25": LEARNED,
    "entropy-0.25": masked("entropy", 0.25),
    "learned-0.1": masked("gumbel-topk", 0.1),
    "top": (*ALL, "--network.inject=top"),
    "grid32": (*ALL, "--network.grid=32"),
    "grid8-control": (*masked("random", 0.0), "--network.grid=8"),
    "grid8-entropy": (*masked("entropy", 0.0625), "--network.grid=8"),
    "falling": (*LEARNED, "--keep.schedule=falling"),
    "mean-0.25": (*masked("random", 0.25), "--network.unselected=mean"),
    "plain": (*ALL, "--network.relation=plain"),
    "pairwise": (*ALL, "--network.relation=pairwise"),
    "unary": (*ALL, "--network.relation=unary"),
    "contrastive": (*ALL, "--loss.pixel_weight=0.1"),
    "grid8-learned": (*masked("gumbel-topk", 0.0625), "--network.grid=8"),
    # With the Dice loss, and later than the rows above: Muon takes depthwise convolutions too.
    "dice-none": (*ALL, "--network.inject=none", *DICE),
    "dice-control": (*masked("random", 0.0), *DICE),
    "dice-dense": (*ALL, *DICE),
    "dice-learned-0.25": (*LEARNED, *DICE),
}
#: Rows that decide what the default is: trained with all seeds before the others begin.
FIRST = ("control", "none", "dense", "random-0.25", "learned-0.25", "entropy-0.25")
#: Under 10 GFLOPs at 480 x 360, with the steps and frames of the U-Net's best network.
BEST = ("--network.finest=2", "--data.frame=own", "--data.size=[288, 384]", "--steps=1000")
BEST_ROWS = {"best": ALL, "best-control": ROWS["control"], "best-learned-0.25": LEARNED}
#: Selector and keep ratio with which networks that attend to all tokens are scored as well.
MASKED_AFTERWARDS = (
    ("entropy", 0.5),
    ("entropy", 0.25),
    ("entropy", 0.1),
    ("random", 0.25),
    ("random", 0.0),
)


def attends_to_all(run: Run) -> bool:
    """Whether a run has attention, and all tokens of the grid take part in it."""
    return set(ALL) <= set(run.changes) and "--network.inject=none" not in run.changes


def runs() -> Iterator[Run]:
    """All runs, the most valuable first."""

    def row(name: str, seed: int) -> Run:
        return Run("camvid-frm", name, seed, (*SMALL, *ROWS[name]))

    yield from (row(name, 0) for name in ROWS if name in FIRST)
    for name, masks in BEST_ROWS.items():
        yield Run("camvid-frm", name, 0, (*LITE_FRM, *masks, *BEST))
    yield from (row(name, seed) for seed in SEEDS[1:] for name in FIRST)
    yield from (row(name, seed) for seed in SEEDS for name in ROWS if name not in FIRST)
