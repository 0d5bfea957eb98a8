# SPDX-License-Identifier: BSD-3-Clause
"""Do learned masks segment better than random ones? The study on digit scenes.

    python -m bench.study train [--only PATTERN ..] [--jobs 2]   the runs not done yet
    python -m bench.study table [--write]    the results as Markdown; into docs/study.md
    python -m bench.study config NAME        the complete config of a finished run
    python -m bench.study list               the names of all runs

plan.py says what the runs are, records.py what their lines hold; see ../trainings.py for how they
are trained. How fast the networks are is measured by speed.py.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from bench.study import records
from bench.study.plan import Run, runs
from bench.study.tables import PAGE, blocks
from bench.trainings import Record, Study, execute, parser_of


def scored(run: Run, folder: Path) -> Record:
    """The scores on scenes like those of the training and on shifted ones, and the config."""
    from maskattn_kernels.segmentation.checkpoints import Checkpoint
    from maskattn_kernels.segmentation.data.digit_scenes import DigitScenes
    from maskattn_kernels.segmentation.scoring.evaluation import evaluate

    checkpoint = Checkpoint.from_pretrained(folder / "final")
    found = {}
    for textures in ("plain", "shifted"):
        scenes = DigitScenes("val", textures=textures, legend="legend" in run.change)
        scores = evaluate(checkpoint, scenes)
        found[textures] = {size: of_size["mean"] for size, of_size in scores.items()}
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    return {"config": records.differences(config), **found}


def in_short(record: Record) -> str:
    mean = record["plain"]["network size"]
    return "  ".join(f"{name} {mean[name]:.1f}" for name in ("mIoU", "PQ", "AP"))


STUDY = Study("bench.study", tuple(runs()), records.TABLE, scored, in_short, PAGE, blocks)


def main(argv: Sequence[str] | None = None) -> int:
    parser, commands = parser_of(STUDY, str(__doc__))
    config = commands.add_parser("config", help="the complete config of a finished run, as YAML")
    config.add_argument("name")
    given = parser.parse_args(argv)
    try:
        if given.command != "config":
            return execute(STUDY, given)
        record = records.TABLE.read().get(given.name)
        if record is None:
            raise ValueError(f"{given.name} is not finished")
    except ValueError as error:
        parser.error(str(error))
    print(yaml.safe_dump(records.config_of(record), sort_keys=False), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
