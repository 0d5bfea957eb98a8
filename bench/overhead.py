# SPDX-License-Identifier: BSD-3-Clause
"""Where the time of a call on few tokens goes, on one thread of the CPU.

python bench/overhead.py              a JSON into bench/results/
python bench/report.py --write        the table of docs/benchmarks.md
"""

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from maskattn_kernels.benchmark import rows
from maskattn_kernels.benchmark.machine import machine_facts
from maskattn_kernels.benchmark.overhead import measure_parts

RESULTS = Path(__file__).resolve().parent / "results"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="default 20")
    parser.add_argument("--out", type=Path, help="default bench/results/DATE-overhead.json")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    now = datetime.datetime.now().astimezone()
    out = given.out or RESULTS / f"{now:%Y%m%d-%H%M%S}-overhead.json"
    found = {"machine": machine_facts(), "seconds": measure_parts(given.seconds)}
    out.write_text(rows.dumps(found), encoding="utf-8")
    print(f"written: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
