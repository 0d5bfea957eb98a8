# SPDX-License-Identifier: BSD-3-Clause
"""What the attention of FRMNet is worth where context decides: digit scenes with a legend.

    python -m bench.frm.digits train [--only PATTERN ..] [--jobs 2]   the runs not done yet
    python -m bench.frm.digits table [--write]    the results as Markdown; into docs/frm.md
    python -m bench.frm.digits list               the names of all runs

Slips of a colour have the class of the one that bears a digit, so that most slips can only be
classified by attention. See ../study for the scenes, ../trainings.py for how runs are trained.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.frm.plan import ALL, LEARNED, SEEDS, masked
from bench.frm.tables import DIGITS, blocks
from bench.study.plan import HERE as STUDY_HERE
from bench.study.plan import LEGEND
from bench.trainings import ROOT, Record, Study, command_line

ROWS: dict[str, tuple[str, ...]] = {
    "control": masked("random", 0.0),
    "dense": ALL,
    "none": (*ALL, "--network.inject=none"),
    "learned-0.25": LEARNED,
    "random-0.25": masked("random", 0.25),
    "entropy-0.25": masked("entropy", 0.25),
    "falling": (*LEARNED, "--keep.schedule=falling"),
    "plain": (*ALL, "--network.relation=plain"),
    "unary": (*ALL, "--network.relation=unary"),
}
#: 256 places of the grid: 128 x 128 pixels at stride 8.
TINY = ("--network.arch=frm", "--network.preset=tiny", "--network.grid=8", "--data.size=128")
TINY += ("--network.task=semantic", "--steps=1000", "--val_every=1000")


@dataclass(frozen=True)
class Run:
    """One training."""

    row: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.row}-seed{self.seed}"

    @property
    def needs(self) -> tuple[str, ...]:
        """No run starts from another."""
        return ()

    @property
    def options(self) -> list[str]:
        """Arguments of ``maskattn train``."""
        base = ["--config", str(STUDY_HERE / "base.yaml")]
        return [*base, *TINY, *LEGEND, *ROWS[self.row], f"--seed={self.seed}"]


def scored(run: Run, folder: Path) -> Record:
    """The scores of the last weights on all validation scenes, and of them those of the digits."""
    from maskattn_kernels.segmentation import Checkpoint, evaluate, open_dataset

    checkpoint = Checkpoint.from_pretrained(folder / "final")
    found = evaluate(checkpoint, open_dataset("digit-scenes", split="val", legend=True))
    scores = found["original size"]
    digits = [row["IoU"] for name, row in scores["classes"].items() if name.startswith("digit")]
    return {
        "options": list(ROWS[run.row]),
        "mIoU": scores["mean"]["mIoU"],
        "digits": sum(digits) / len(digits),
    }


def runs() -> Iterator[Run]:
    """All runs, seed by seed."""
    yield from (Run(row, seed) for seed in SEEDS for row in ROWS)


def in_short(record: Record) -> str:
    return f"mIoU {record['mIoU']:.1f}  digits {record['digits']:.1f}"


STUDY = Study(
    "bench.frm.digits", tuple(runs()), DIGITS, scored, in_short, ROOT / "docs/frm.md", blocks
)


if __name__ == "__main__":
    sys.exit(command_line(STUDY, str(__doc__)))
