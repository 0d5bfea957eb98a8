# SPDX-License-Identifier: BSD-3-Clause
"""The instruction-set tiers of the CPU library against each other: is the default the fastest?

python bench/tiers.py                 a JSON into bench/results/
python bench/report.py --write        the table of docs/benchmarks.md

One thread, all tiers in one process and in turns. Each is checked against the oracle before.
"""

import argparse
import datetime
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from unittest.mock import patch

import torch

from maskattn_kernels import backends
from maskattn_kernels.benchmark import rows
from maskattn_kernels.benchmark.cases import DTYPES, FORWARD, TRAIN, Case, make_inputs
from maskattn_kernels.benchmark.check import check, oracle
from maskattn_kernels.benchmark.machine import machine_facts
from maskattn_kernels.benchmark.peers import make_call, ours
from maskattn_kernels.benchmark.timing import race

RESULTS = Path(__file__).resolve().parent / "results"
TIER = "MASKATTN_CPU_TIER"
CASES = tuple(
    Case(tokens, head_dim, mode="qk", dtype=dtype, phase=phase)
    for tokens, head_dim in ((1024, 128), (4096, 64), (16384, 64))
    for dtype in DTYPES
    for phase in (FORWARD, TRAIN)
)


def tiers() -> list[str]:
    """Those that run here, from old to new."""
    found = []
    with patch.dict(os.environ):  # restored after
        for tier in backends()[0].build["tiers"].split():
            os.environ[TIER] = tier
            found += [tier] if backends()[0].available else []
    return found


def by(tier: str, call: Callable[[], object]) -> Callable[[], object]:
    def with_tier() -> object:
        os.environ[TIER] = tier
        return call()

    return with_tier


def measure(case: Case, names: Sequence[str], seconds: float) -> rows.Row:
    """Seconds of the median call by each tier, and its ratio to the default tier, round by round.

    Raises:
        WrongResult: of a tier.
    """
    inputs, default = make_inputs(case), backends()[0].build["tier"]
    right, call = oracle(case, inputs), make_call(ours, case, inputs)
    with patch.dict(os.environ):  # restored after, also where a result is wrong
        for name in names:
            os.environ[TIER] = name
            check(case, call(), right)
        times = race({name: by(name, call) for name in names}, seconds, focus=names)
    found = {
        n: {"median": times.timing(n).median, "times_default": times.ratio(n, default)}
        for n in names
    }
    return {"name": case.name, "case": asdict(case), "tiers": found}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="for each case (default 4)")
    parser.add_argument("--out", type=Path, help="default bench/results/DATE-TIER-tiers.json")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    machine, now = machine_facts(), datetime.datetime.now().astimezone()
    default = backends()[0].build["tier"]
    out = given.out or RESULTS / f"{now:%Y%m%d-%H%M%S}-{default}-tiers.json"
    names, found = tiers(), []
    for case in CASES:
        found.append(measure(case, names, given.seconds))
        ratios = {n: round(t["times_default"], 2) for n, t in found[-1]["tiers"].items()}
        print(f"{case.name}  {ratios}", flush=True)
    rows.save({"machine": machine, "default": default, "cases": found}, out)
    print(f"written: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
