# SPDX-License-Identifier: BSD-3-Clause
"""The trainings on real labelled images: CamVid (street scenes) and nuclei (microscopy).

The data lie in the layout of `maskattn check-data --data folder`, in data/camvid and data/nuclei of
the repository's root, or of the folder that the environment variable REAL_DATA names. docs/real.md
says where they come from.

A run's name is its table, what changes, and its seed: "camvid-128-pretrained-learned-0.25-seed0".
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.trainings import ROOT

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("REAL_DATA", ROOT / "data"))
WORK = ROOT / "out" / "real"  # checkpoints and saved states
SEEDS = (0, 1, 2)

ALL = ("--network.selector=none",)  # tokens take part in attention
#: Options of the masks by name; "none" has no attention products, "dense" attends everywhere.
MASKS: dict[str, tuple[str, ...]] = {
    "none": (*ALL, "--network.core=identity"),
    "dense": ALL,
    **{
        f"random-{keep}": (
            "--network.selector=random",
            "--network.sparsity=qk",
            f"--network.keep={keep}",
        )
        for keep in (0.25, 0.1)
    },
    **{
        f"learned-{keep}": ("--network.selector=gumbel-topk", f"--network.keep={keep}")
        for keep in (0.25, 0.1)
    },
}
#: Of those, the ones that are also trained with the norm before attention, not after it.
BEFORE = ("dense", "random-0.25", "learned-0.25")
SIZES = {
    "128": ("--data.size=128", "--data.frame=squeeze"),
    "192x256": ("--data.size=[192, 256]", "--data.frame=fit"),
}
LITE0 = ("--network.encoder=efficientnet_lite0", "--network.width=32")
LITE0_S16 = ("--network.encoder=efficientnet_lite0_s16", "--network.width=32")
#: The same network with and without ImageNet weights, by size: the larger one is computed to stride
#: 4 only, which takes as long.
ENCODERS = {
    start: {
        size: (*LITE0, f"--network.finest={finest}", "--network.attend_from=4", *weights)
        for size, finest in (("128", 2), ("192x256", 4))
    }
    for start, weights in (("scratch", ("--network.encoder_weights=none",)), ("pretrained", ()))
}
DICE = ("--loss.dice_weight=0.5",)
LITE_FRM = ("--network.arch=frm", "--network.preset=lite")
FRM = (*LITE_FRM, *ALL)
#: The best networks of each cost class, by its limit in GFLOPs at the size that they are scored at.
BEST = {
    "10g": (*LITE0, "--network.finest=2", "--data.frame=own", "--data.size=[288, 384]"),
    "10g-frm": (*FRM, "--network.finest=2", "--data.frame=own", "--data.size=[288, 384]", *DICE),
    "3g": (*FRM, "--network.finest=4", "--data.frame=fit", "--data.size=[288, 384]"),
    "1g": (*FRM, "--network.finest=4", "--data.frame=fit", "--data.size=[168, 224]", *DICE),
}
BEST_STEPS = 1000
#: Seen whole at half its size, and in tiles at its full size: trained at both scales.
SCALES = (*LITE0, "--network.finest=4", "--data.frame=own", "--data.size=[192, 256]")
SCALES += ('--data.augment={"zoom": [0.4, 1.3]}', *DICE)
#: Stronger changes of colour than the usual ones.
COLOURS = {"light": 0.5, "gamma": 0.5, "saturation": 0.5, "hue": 0.05, "blur": 1, "noise": 8}
#: Of the comparison of masks: many short runs.
SHORT = ("--steps=500", "--val_every=500")
LABELLED = (10, 30, 100)
FEW = ("--steps=1000", "--val_every=500")
FEW += (f"--data.augment={json.dumps(COLOURS | {'paste': 0.5})}",)
#: What a training with few labels starts from; "self" starts as "pretrained" does, and learns what
#: "pretrained" is surest of in all training images as well.
STARTS = ("scratch", "pretrained", "self")
NUCLEI = {
    "lite0-s16": (
        *LITE0_S16,
        "--network.finest=2",
        "--network.selector=entropy",
        "--data.size=256",
    ),
}
NUCLEI["lite0-s16-distance"] = (*NUCLEI["lite0-s16"], "--network.objects=distance")


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        table: whose row it is.
        row: what changes.
        seed: of weights, order and draws.
        changes: arguments of ``maskattn train`` beside those of base.yaml.
        teacher: name of the run whose predictions on all training images are learned as well.
    """

    table: str
    row: str
    seed: int
    changes: tuple[str, ...]
    teacher: str | None = None

    @property
    def name(self) -> str:
        return f"{self.table}-{self.row}-seed{self.seed}"

    @property
    def data(self) -> str:
        """The data set."""
        return self.table.partition("-")[0]

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of runs that must be finished before."""
        return () if self.teacher is None else (self.teacher,)

    @property
    def options(self) -> list[str]:
        """Arguments of ``maskattn train``."""
        options = ["--config", str(HERE / f"{self.data}.yaml"), "--root", str(DATA / self.data)]
        options += [*self.changes, f"--seed={self.seed}"]
        if self.teacher is not None:
            options.append(f"--teacher={WORK / self.teacher / 'best'}")
            options.append(f"--unlabelled={DATA / self.data / 'train' / 'images'}")
        return options


def small(size: str, encoder: str, masks: str, seed: int) -> Run:
    """A run of the comparison of masks on small images."""
    changes = (*SIZES[size], *ENCODERS[encoder][size], *MASKS[masks], *SHORT, *DICE)
    return Run(f"camvid-{size}-{encoder}", masks, seed, changes)


def before(masks: str, seed: int) -> Run:
    """The same at 192 x 256 around a trained encoder with the norm before attention."""
    usual = small("192x256", "pretrained", masks, seed)
    changes = (*usual.changes, "--network.attention_norm=before")
    return Run(f"{usual.table}-before", masks, seed, changes)


def few(start: str, count: int | None, seed: int) -> Run:
    """A run with few labels, at 128 x 128 and with dense attention; None = with all."""
    changes = (*SIZES["128"], *MASKS["dense"], *FEW, *DICE)
    changes += () if count is None else (f"--data.limit={count}",)
    changes += ENCODERS["scratch" if start == "scratch" else "pretrained"]["128"]
    labelled = f"{count or 'all'}"
    teacher = f"camvid-few-pretrained-{labelled}-seed{seed}" if start == "self" else None
    return Run("camvid-few", f"{start}-{labelled}", seed, changes, teacher)


def runs() -> Iterator[Run]:
    """All runs, the most valuable first."""
    for row, changes in BEST.items():
        yield Run("camvid-best", row, 0, (*changes, f"--steps={BEST_STEPS}"))
    yield Run("camvid", "scales", 0, (*SCALES, f"--steps={BEST_STEPS}"))
    for row, changes in NUCLEI.items():
        yield Run("nuclei", row, 0, changes)
    for seed in SEEDS:
        for encoder in reversed(ENCODERS):
            for size in SIZES:
                yield from (small(size, encoder, masks, seed) for masks in MASKS)
        yield from (before(masks, seed) for masks in BEFORE)
        for count in (*LABELLED, None):
            yield from (few(start, count, seed) for start in STARTS if count or start != "self")
