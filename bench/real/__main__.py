# SPDX-License-Identifier: BSD-3-Clause
"""Trainings on real labelled images, CamVid and nuclei, and the tables of docs/real.md.

    python -m bench.real train [--only PATTERN ..] [--jobs 2]   the runs not done yet
    python -m bench.real table [--write]    the results as Markdown; into docs/real.md
    python -m bench.real list               the names of all runs

plan.py says what the runs are and where the images lie; see ../trainings.py for how runs are
trained.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from bench.real.plan import DATA, HERE, Run, runs
from bench.real.tables import blocks
from bench.trainings import ROOT, Record, Study, Table, execute, parser_of

TABLE = Table(HERE / "runs.jsonl")


def scored(run: Run, folder: Path) -> Record:
    """The scores of the best checkpoint on the validation images, its cost, and the options."""
    from maskattn_kernels.segmentation.checkpoints import Checkpoint
    from maskattn_kernels.segmentation.data.opening import open_dataset
    from maskattn_kernels.segmentation.model.cost import measure_cost
    from maskattn_kernels.segmentation.scoring.evaluation import evaluate

    checkpoint = Checkpoint.from_pretrained(folder / "best")
    dataset = open_dataset("folder", DATA / run.data, "val")
    found = evaluate(checkpoint, dataset, batch_size=4)
    height, width = SCORED_AT.get(run.data, checkpoint.size)
    if checkpoint.frame != "own":
        height, width = checkpoint.size
    cost = measure_cost(checkpoint.network, (height, width), batch_size=1)
    return {
        "options": list(run.changes),
        "scores": {size: scores["mean"] for size, scores in found.items()},
        "classes": {name: row["IoU"] for name, row in found["original size"]["classes"].items()},
        "cost": {"size": [height, width], **cost.as_dict()},
    }


#: Sizes of the frames of sets whose frames all have one.
SCORED_AT = {"camvid": (360, 480)}


def in_short(record: Record) -> str:
    mean = record["scores"]["original size"]
    return "  ".join(f"{name} {score:.1f}" for name, score in mean.items())


STUDY = Study("bench.real", tuple(runs()), TABLE, scored, in_short, ROOT / "docs/real.md", blocks)


def main(argv: Sequence[str] | None = None) -> int:
    parser, _ = parser_of(STUDY, str(__doc__))
    given = parser.parse_args(argv)
    try:
        return execute(STUDY, given)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
