# SPDX-License-Identifier: BSD-3-Clause
"""The whole run: a plan of steps; each row is saved as soon as it is measured."""

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from maskattn_kernels.benchmark.cases import FORWARD, MODES, TRAIN, Case, few_queries, grid
from maskattn_kernels.benchmark.cells import measure, peer_memory
from maskattn_kernels.benchmark.check import WrongResult
from maskattn_kernels.benchmark.machine import machine_facts
from maskattn_kernels.benchmark.memory import in_fresh_process
from maskattn_kernels.benchmark.network import measure_network
from maskattn_kernels.benchmark.overhead import measure_overhead
from maskattn_kernels.benchmark.peers import (
    FEW_PEERS,
    GATHER,
    GPU_PEERS,
    OURS,
    PEERS,
    QUICK_PEERS,
    SWEEP_PEERS,
)
from maskattn_kernels.benchmark.rows import Results, Row, save

__all__ = [
    "SECTIONS",
    "Step",
    "new_results",
    "plan",
    "read_results",
    "result_path",
    "run",
    "set_threads",
]

SECTIONS = ("overhead", "network", "cells", "few_queries", "keeps", "tokens", "op_memory")
#: The keep ratios and shapes of the sweep behind the break-even.
SWEEP_KEEPS = (1.0, 0.9, 0.75, 0.5, 0.25, 0.1)
SWEEP_SHAPES = ((4096, 64), (1024, 128))
#: The lengths of the sweep of time and memory; dense peers stop at MAX_DENSE_TOKENS.
SWEEP_TOKENS = (256, 1024, 4096, 16384, 65536)
MAX_DENSE_TOKENS = 16384
#: Largest scatter of a row's times on a machine without other load, see `unrest`.
CALM = 1.25
#: Facts that must be the same to resume a run; commit and date may differ.
SAME = ("cpu", "threads", "system", "python", "torch", "gpu")
#: The longest call; its memory is measured.
LONGEST = Case(131072, 64, mode="k", keep=0.1, phase=TRAIN)


@dataclass(frozen=True)
class Step:
    """One measurement: the section of the results that gets its row, and the function."""

    section: str
    label: str
    function: Callable[[], Row]


def plan(grid_name: str, dtypes: Sequence[str], device: str = "cpu") -> list[Step]:
    """The steps of a named grid; quick steps are shorter, and only the CPU has sweeps."""
    quick = grid_name == "quick"
    seconds = 0.6 if quick else 0.8
    if device == "cuda":
        seconds = 0.15
    overhead = partial(measure_overhead, seconds, device)
    steps = [Step("overhead", "overhead of a call on 64 tokens", overhead)]
    for trains in (False,) if quick else (False, True):
        label = f"U-Net {TRAIN if trains else FORWARD}"
        function = partial(measure_network, trains, 1.0 if device == "cuda" else 6.0, device=device)
        steps.append(Step("network", label, function))
    all_peers = GPU_PEERS if device == "cuda" else PEERS
    for case in grid(grid_name, dtypes, device):
        # Memory for a part of the grid only: each number takes a process of its own.
        part = case.batch == 1 and case.keep == 0.25 and case.dtype == dtypes[0]
        with_memory = part and not quick
        case_peers = QUICK_PEERS if quick else all_peers
        steps.append(
            Step("cells", case.name, partial(measure, case, seconds, case_peers, with_memory))
        )
    if quick or device == "cuda":
        return steps
    for case in few_queries(dtypes):
        function = partial(measure, case, seconds, FEW_PEERS)
        steps.append(Step("few_queries", f"few queries {case.name}", function))
    for dtype in dtypes:
        for tokens, head_dim in SWEEP_SHAPES:
            for mode in MODES:
                for keep in SWEEP_KEEPS:
                    case = Case(tokens, head_dim, mode=mode, keep=keep, dtype=dtype)
                    function = partial(measure, case, 1.0, SWEEP_PEERS)
                    steps.append(Step("keeps", f"keep sweep {case.name}", function))
    for tokens in SWEEP_TOKENS:
        case = Case(tokens, 64, mode="qk", keep=0.25, phase=TRAIN)
        peers = QUICK_PEERS if tokens <= MAX_DENSE_TOKENS else (OURS, GATHER)
        function = partial(measure, case, 1.0, peers, with_memory=True)
        steps.append(Step("tokens", f"length sweep {case.name}", function))
    steps.append(Step("op_memory", f"memory of {LONGEST.name}", measure_longest))
    return steps


def measure_longest() -> Row:
    """Peak memory of the longest call."""
    peak = in_fresh_process(peer_memory, LONGEST, OURS.name, "ours")
    return {"name": LONGEST.name, "case": asdict(LONGEST), "peak_bytes": peak}


def result_path(folder: Path, grid_name: str, facts: Row) -> Path:
    """``<folder>/<date>-<tier>-<threads>t-<grid>.json``, or with the GPU's name in the middle."""
    date = facts["date"][:19].replace("-", "").replace(":", "").replace("T", "-")
    tiers = [b["build"].get("tier") for b in facts["backends"] if b["build"].get("tier")]
    where = f"{tiers[0] if tiers else 'reference'}-{facts['threads']}t"
    if facts["gpu"]:
        where = re.sub("[^A-Za-z0-9]+", "-", facts["gpu"])
    return folder / f"{date}-{where}-{grid_name}.json"


def run(
    steps: Sequence[Step],
    results: Results,
    path: Path | None,
) -> Iterator[tuple[int, Step, Row]]:
    """Run the steps one by one; yields (number, step, row) when the row is saved.

    A step whose row is in ``results`` is skipped, unless other load on the machine disturbed it
    (`disturbed`): then it is measured again, and the calmer of the two rows is kept. A wrong result
    of this package gives a row with the key ``wrong``, and the run continues.
    """
    start, before = time.monotonic(), results.get("seconds", 0.0)
    places: Counter[str] = Counter()  # a section's rows are in the order of its steps
    for number, step in enumerate(steps, start=1):
        rows, place = results[step.section], places[step.section]
        places[step.section] += 1
        if place < len(rows) and not disturbed(rows[place]):
            continue
        try:
            row = step.function()
        except WrongResult as reason:
            row = {"name": step.label, "wrong": str(reason)}
        if place == len(rows):
            rows.append(row)
        elif "wrong" in row or unrest(row) < unrest(rows[place]):
            rows[place] = row
        results["seconds"] = round(before + time.monotonic() - start, 1)
        results["complete"] = results["complete"] or number == len(steps)
        if path is not None:
            save(results, path)
        yield number, step, row


def unrest(row: Any) -> float:
    """The largest ratio of 80th to 20th percentile among a row's times; 1 for a row without any."""
    if not isinstance(row, dict):
        return 1.0
    if "low" in row and "high" in row:
        return row["high"] / row["low"]
    return max(map(unrest, row.values()), default=1.0)


def disturbed(row: Row) -> bool:
    """Whether a row's times scatter so much that other load on the machine is the likely cause."""
    return unrest(row) > CALM


def new_results(grid_name: str, device: str = "cpu") -> Results:
    """Results without rows, for this machine."""
    return {"grid": grid_name, "machine": machine_facts(device), "complete": False} | {
        section: [] for section in SECTIONS
    }


def read_results(path: Path, grid_name: str, steps: Sequence[Step], device: str = "cpu") -> Results:
    """The results of an earlier run of the same steps on this machine, to be resumed.

    Raises:
        ValueError: not a results file, or one of other steps or of another machine.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        there, here = results["machine"], machine_facts(device)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{path}: not a results file of `maskattn bench`") from None
    if results["grid"] != grid_name:
        raise ValueError(f"{path}: expected the grid {grid_name}, got {results['grid']}")
    for fact in SAME:
        if there[fact] != here[fact]:
            raise ValueError(f"{path}: expected {fact} {here[fact]} as here, got {there[fact]}")
    cells = [row["name"] for row in results["cells"]]
    if any("-K-" in name or "-QK-" in name for name in cells):
        raise ValueError(f"{path}: spells mask modes K and QK, which are now k and qk; run anew")
    if cells != [step.label for step in steps if step.section == "cells"][: len(cells)]:
        raise ValueError(f"{path}: expected the cases of this --dtype, got others")
    results = {section: [] for section in SECTIONS} | results  # some are younger than the file
    again = {name: here[name] for name in ("date", "commit")}
    results["resumed"] = [*results.get("resumed", []), again]
    return results


def set_threads(threads: int | None) -> None:
    """Set the threads of this process; processes that measure memory use the same number."""
    if threads is not None:
        torch.set_num_threads(threads)
