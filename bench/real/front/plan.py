# SPDX-License-Identifier: BSD-3-Clause
"""The trainings of "accuracy against time": our light networks and those that users would pick.

All on CamVid at 192 x 256 with the recipe of bench/frm, whose FRMNet is one of the rows: frames are
kept whole, and scored at their own 480 x 360 pixels. Encoders with ImageNet weights start from
them. See bench/real/plan.py for what all trainings on CamVid share.

A run's name is its table, the network, and its seed: "camvid-front-smp-unet-seed0".
"""

from collections.abc import Iterator
from pathlib import Path

from bench.frm.plan import RECIPE
from bench.real.front.peers import ARCH, PEERS
from bench.real.plan import LITE0, LITE0_S16, MASKS, SEEDS, Run

HERE = Path(__file__).resolve().parent
TABLE = "camvid-front"

THEIRS: dict[str, tuple[str, ...]] = {
    name: (f"--network.arch={ARCH}", f"--network.preset={name}", "--network.selector=none")
    for name in PEERS
}
RANDOM_START = "segformer-b0"  # whose ImageNet weights could not be had
#: The network of docs/real.md at this size. Where nothing is said, masks are learned, keep 0.25.
OURS = {"edge-lite0": (*LITE0, "--network.finest=4", "--network.attend_from=4")}


def variant(
    width: int, attend_from: int | None, encoder: tuple[str, ...] = LITE0
) -> tuple[str, ...]:
    """Options of a slim decoder down to stride 2; None = without attention."""
    attends = MASKS["none"] if attend_from is None else (f"--network.attend_from={attend_from}",)
    return (*encoder, f"--network.width={width}", "--network.finest=2", *attends)


#: What the preset "mobile" was chosen from.
VARIANTS = {
    "w16-from8": variant(16, 8),
    "w16-none": variant(16, None),
    "w24-from16": variant(24, 16),
    "w16-from16": variant(16, 16),
    "w16-s16": variant(16, 16, LITE0_S16),
}
MOBILE = "w16-s16"  # the variant that is the preset
NETWORKS = {**THEIRS, **OURS, **VARIANTS}
#: Networks that are trained elsewhere with the same recipe: runs by name, without the seed.
FRM = {"frm-lite": "camvid-frm-learned-0.25"}


def runs() -> Iterator[Run]:
    """All runs, seed by seed."""
    for seed in SEEDS:
        for name, options in NETWORKS.items():
            yield Run(TABLE, name, seed, (*options, *RECIPE))
