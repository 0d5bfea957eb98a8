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

from bench.real.plan import HERE, WORK, Run, runs
from bench.real.scoring import in_short, scored
from bench.real.tables import TABLE, blocks
from bench.trainings import ROOT, Study, execute, parser_of

#: Sets whose images may be redistributed, and so what is learned from them.
FREE = ("nuclei",)
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
