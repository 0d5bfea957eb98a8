# SPDX-License-Identifier: BSD-3-Clause
"""What each part of the training recipe is worth, on CamVid at 128 x 128.

    python -m bench.real.recipe train [--only PATTERN ..] [--jobs 2]   the runs not done yet
    python -m bench.real.recipe table [--write]    the results as Markdown; into docs/real.md
    python -m bench.real.recipe list               the names of all runs

CamVid's validation frames come from a drive that is in its training set, so they say little about
another drive. The runs train without one drive, 62 frames at dusk, and are scored on it as well.
Each run changes one part of the recipe. See ../trainings.py for how runs are trained.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.real.links import link, link_labelled
from bench.real.plan import COLOURS, DATA, DICE, ENCODERS, HERE, MASKS, SEEDS, SIZES
from bench.real.tables import RECIPE, USUAL, blocks
from bench.trainings import ROOT, Record, Study, command_line

CAMVID = DATA / "camvid"
WORK = ROOT / "out" / "recipe"
HELD_OUT = "0001TP"  # how the files of the drive at dusk begin
DAY, DUSK = WORK / "day", WORK / "dusk"  # data sets of links
STEPS = 500

#: Options of ``maskattn train`` that change one part, by the name of the row.
PARTS: dict[str, tuple[str, ...]] = {
    USUAL: (),
    "no-average": ("--optimizer.ema=0",),
    "class-weights": ("--loss.class_weights=balanced",),
    "rare-more-often": ("--data.balance=true",),
    "hard-pixels": ("--loss.hard=0.7",),
    "dice": DICE,
    "lovasz": ("--loss.lovasz_weight=0.5",),
    "deep-supervision": ("--loss.coarse_weight=0.4",),
    "colours": (f"--data.augment={json.dumps(COLOURS)}",),
    "zoom": ('--data.augment={"zoom": [0.5, 2.0]}',),
    "paste": ('--data.augment={"paste": 0.5}',),
    "encoder-norms-kept": ("--freeze_encoder_norms=true",),
    "encoder-rate-1": ("--optimizer.encoder_rate=1",),
}


@dataclass(frozen=True)
class Run:
    """One training: the recipe with one part changed."""

    part: str
    seed: int
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.part}-seed{self.seed}"

    @property
    def options(self) -> list[str]:
        """Arguments of ``maskattn train``."""
        base = ["--config", str(HERE / "camvid.yaml"), "--root", str(DAY), f"--steps={STEPS}"]
        network = (*SIZES["128"], *ENCODERS["pretrained"]["128"], *MASKS["dense"])
        return [*base, "--val_every=250", *network, *PARTS[self.part], f"--seed={self.seed}"]


def prepare(run: Run) -> None:
    """Make the data sets: all drives but one with the validation frames, and that one."""
    names = sorted(path.name for path in (CAMVID / "train" / "images").iterdir())
    dusk = [name for name in names if name.startswith(HELD_OUT)]
    for root in (DAY, DUSK):
        link(CAMVID / "classes.yaml", root / "classes.yaml")
    link(CAMVID / "val", DAY / "val")
    link_labelled(CAMVID / "train", [name for name in names if name not in dusk], DAY / "train")
    for split in ("train", "val"):
        link_labelled(CAMVID / "train", dusk, DUSK / split)


def scored(run: Run, folder: Path) -> Record:
    """mIoU of the best checkpoint at the images' own size, on both sets."""
    from maskattn_kernels.segmentation import Checkpoint, evaluate, open_dataset

    checkpoint = Checkpoint.from_pretrained(folder / "best")
    found = {
        name: evaluate(checkpoint, open_dataset("folder", root, "val"))["original size"]["mean"]
        for name, root in (("val", DAY), ("dusk", DUSK))
    }
    return {name: mean["mIoU"] for name, mean in found.items()}


def runs() -> Iterator[Run]:
    """All runs, seed by seed."""
    for seed in SEEDS:
        yield from (Run(part, seed) for part in PARTS)


def in_short(record: Record) -> str:
    return f"mIoU {record['val']:.1f}, at dusk {record['dusk']:.1f}"


STUDY = Study(
    "bench.real.recipe",
    tuple(runs()),
    RECIPE,
    scored,
    in_short,
    ROOT / "docs/real.md",
    blocks,
    prepare,
)


if __name__ == "__main__":
    sys.exit(command_line(STUDY, str(__doc__)))
