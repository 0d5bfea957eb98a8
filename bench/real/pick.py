# SPDX-License-Identifier: BSD-3-Clause
"""Which images to label next? 20 labelled images of CamVid, and 20 more by each rule of `pick`.

    python -m bench.real.pick train [--only PATTERN ..] [--jobs 2]   the runs not done yet
    python -m bench.real.pick table [--write]    the results as Markdown; into docs/real.md
    python -m bench.real.pick list               the names of all runs

A run "start-seed0" trains with 20 images that the seed draws. Its checkpoint picks 20 of the others
by each rule, and a run such as "entropy-seed0" trains anew with all 40. See ../trainings.py for how
runs are trained.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.real.links import link, link_labelled
from bench.real.plan import DATA, ENCODERS, HERE, MASKS, SEEDS, SIZES
from bench.real.tables import PICKS, START, blocks
from bench.trainings import ROOT, Record, Study, command_line
from maskattn_kernels.segmentation.picking.rules import RULES

CAMVID = DATA / "camvid"
WORK = ROOT / "out" / "pick"
LABELLED, PICKED = 20, 20
STEPS = 400


@dataclass(frozen=True)
class Run:
    """One training: with the first images, or with those that a rule adds to them."""

    rule: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.rule}-seed{self.seed}"

    @property
    def needs(self) -> tuple[str, ...]:
        return () if self.rule == START else (Run(START, self.seed).name,)

    @property
    def data(self) -> Path:
        """A data set of links: what this run trains with, and the validation images."""
        return WORK / f"{self.name}-data"

    @property
    def options(self) -> list[str]:
        """Arguments of ``maskattn train``."""
        base = ["--config", str(HERE / "camvid.yaml"), "--root", str(self.data)]
        return [
            *base,
            *SIZES["128"],
            *ENCODERS["pretrained"]["128"],
            *MASKS["none"],
            f"--steps={STEPS}",
            "--val_every=200",
            f"--seed={self.seed}",
        ]


def prepare(run: Run) -> None:
    """Make the data set of a run, by the checkpoint of the run before."""
    names = sorted(path.name for path in (CAMVID / "train" / "images").iterdir())
    order = np.random.Generator(np.random.PCG64(run.seed)).permutation(len(names))
    labelled = [names[number] for number in order[:LABELLED]]
    if run.rule != START:
        labelled += picked(run, [names[number] for number in order[LABELLED:]])
    link(CAMVID / "classes.yaml", run.data / "classes.yaml")
    link(CAMVID / "val", run.data / "val")
    link_labelled(CAMVID / "train", labelled, run.data / "train")


def picked(run: Run, pool: Sequence[str]) -> list[str]:
    """The files that a run's rule picks from the ``pool``."""
    from maskattn_kernels.segmentation import pick

    folder = WORK / f"{run.name}-pool"
    for name in pool:
        link(CAMVID / "train" / "images" / name, folder / name)
    checkpoint = WORK / Run(START, run.seed).name / "best"
    out = WORK / f"{run.name}-picked"
    report = pick(folder, checkpoint, PICKED, out, rule=run.rule, seed=run.seed)
    return [Path(row["file"]).name for row in report["picked"]]


def scored(run: Run, folder: Path) -> Record:
    """The scores of the best checkpoint on the validation images, and what it trained with."""
    from maskattn_kernels.segmentation import Checkpoint, evaluate, open_dataset

    checkpoint = Checkpoint.from_pretrained(folder / "best")
    scores = evaluate(checkpoint, open_dataset("folder", CAMVID, "val"))["original size"]
    return {
        "images": sorted(path.stem for path in (run.data / "train" / "images").iterdir()),
        "mIoU": scores["mean"]["mIoU"],
        "classes": {name: row["IoU"] for name, row in scores["classes"].items()},
    }


def runs() -> Iterator[Run]:
    """All runs, seed by seed."""
    for seed in SEEDS:
        yield from (Run(rule, seed) for rule in (START, *reversed(RULES)))


def in_short(record: Record) -> str:
    return f"mIoU {record['mIoU']:.1f}"


STUDY = Study(
    "bench.real.pick",
    tuple(runs()),
    PICKS,
    scored,
    in_short,
    ROOT / "docs" / "real.md",
    blocks,
    prepare,
)


if __name__ == "__main__":
    sys.exit(command_line(STUDY, str(__doc__)))
