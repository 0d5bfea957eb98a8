# SPDX-License-Identifier: BSD-3-Clause
"""Trainings on real labelled images, CamVid and nuclei, and the tables of docs/real.md.

    python -m bench.real train [--only PATTERN ..] [--jobs 2]   the runs not done yet
    python -m bench.real table [--write]    the results as Markdown; into docs/real.md
    python -m bench.real list               the names of all runs
    python -m bench.real ship RUN NAME      the run's network into the package, or, from images that
                                            may not be redistributed, into bench/real/checkpoints

plan.py says what the runs are and where the images lie; see ../trainings.py for how runs are
trained.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from bench.real.plan import DATA, HERE, WORK, Run, runs
from bench.real.tables import TABLE, blocks
from bench.trainings import ROOT, Record, Study, execute, parser_of


def scored(run: Run, folder: Path) -> Record:
    """The scores of the best checkpoint on the validation images, its cost, and the options."""
    from maskattn_kernels.models import prepare_for_inference
    from maskattn_kernels.segmentation.checkpoints import Checkpoint
    from maskattn_kernels.segmentation.data.opening import open_dataset
    from maskattn_kernels.segmentation.model.cost import measure_cost
    from maskattn_kernels.segmentation.scoring.evaluation import evaluate

    checkpoint = Checkpoint.from_pretrained(folder / "best")
    dataset = open_dataset("folder", DATA / run.data, "val")
    found = evaluate(checkpoint, dataset, batch_size=4)
    own = checkpoint.frame == "own"
    height, width = SCORED_AT.get(run.data, checkpoint.size) if own else checkpoint.size
    ready = prepare_for_inference(checkpoint.network)
    cost = measure_cost(checkpoint.network, (height, width), batch_size=1, runs=ready)
    return {
        "options": list(run.changes),
        "scores": {size: scores["mean"] for size, scores in found.items()},
        "classes": found["original size"]["classes"],
        "cost": {"size": [height, width], **cost.as_dict()},
    }


#: Sets whose images may be redistributed, and so what is learned from them.
FREE = ("nuclei",)
#: Sizes of the frames of sets whose frames all have one.
SCORED_AT = {"camvid": (360, 480)}


def in_short(record: Record) -> str:
    mean = record["scores"]["original size"]
    return "  ".join(f"{name} {score:.1f}" for name, score in mean.items())


STUDY = Study("bench.real", tuple(runs()), TABLE, scored, in_short, ROOT / "docs/real.md", blocks)


def ship(run: Run, name: str) -> Path:
    """Write the best checkpoint of a run in half precision to where it is kept."""
    from maskattn_kernels.segmentation.checkpoint_files import SHIPPED
    from maskattn_kernels.segmentation.checkpoints import Checkpoint

    folder = (SHIPPED if run.data in FREE else HERE / "checkpoints") / name
    Checkpoint.from_pretrained(WORK / run.name / "best").save_pretrained(folder, half=True)
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    parser, commands = parser_of(STUDY, str(__doc__))
    shipping = commands.add_parser("ship", help="keep the network of a finished run")
    shipping.add_argument("run")
    shipping.add_argument("name", help="of the folder")
    given = parser.parse_args(argv)
    try:
        if given.command != "ship":
            return execute(STUDY, given)
        (run,) = STUDY.select([given.run])
        print(f"written: {ship(run, given.name)}")
        return 0
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
