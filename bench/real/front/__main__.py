# SPDX-License-Identifier: BSD-3-Clause
"""Accuracy against time on CamVid: our light networks beside those of other libraries.

    python -m bench.real.front train [--only PATTERN ..] [--jobs 2]   the runs not done yet
    python -m bench.real.front speed [--rounds 50]   ms of the trained networks, into speed.json
    python -m bench.real.front table [--write]       the results as Markdown; into docs/deploy.md,
                                                with the plot docs/front.png
    python -m bench.real.front list                  the names of all runs

The networks of other libraries need `make integrations` once. plan.py says what the runs are; see
../../trainings.py for how runs are trained.
"""

import sys
from collections.abc import Sequence

from bench.real.front.peers import register
from bench.real.front.plan import runs
from bench.real.front.speed import measure_all
from bench.real.front.tables import PLOT, SPEED, TABLE, blocks, plot
from bench.real.scoring import in_short, scored
from bench.trainings import ROOT, Study, execute, parser_of

STUDY = Study(
    "bench.real.front", tuple(runs()), TABLE, scored, in_short, ROOT / "docs/deploy.md", blocks
)


def main(argv: Sequence[str] | None = None) -> int:
    register()
    parser, commands = parser_of(STUDY, str(__doc__))
    timing = commands.add_parser("speed", help="time the trained networks, exported to ONNX")
    timing.add_argument("--rounds", type=int, default=50, help="default 50")
    given = parser.parse_args(argv)
    try:
        if given.command == "speed":
            measure_all(given.rounds, SPEED)
            return 0
        status = execute(STUDY, given)
        if given.command == "table" and given.write:
            plot(PLOT)
            print(f"written: {PLOT}")
        return status
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
