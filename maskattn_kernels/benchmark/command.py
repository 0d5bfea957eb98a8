# SPDX-License-Identifier: BSD-3-Clause
"""``maskattn bench``: our attention against its peers, as a table, JSON and plots."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from maskattn_kernels.benchmark import report, suite
from maskattn_kernels.benchmark.cases import DTYPES
from maskattn_kernels.benchmark.machine import machine_facts
from maskattn_kernels.benchmark.rows import save
from maskattn_kernels.benchmark.tune import entries, entry_case, read_shortlist, tune_tiles
from maskattn_kernels.common.command_line import Parser, positive, some_of, writable_folder
from maskattn_kernels.common.extras import missing_package
from maskattn_kernels.common.steps import print_step

try:
    from maskattn_kernels.benchmark import plots
except ModuleNotFoundError as missing:  # the table and the JSON need no matplotlib
    NO_PLOTS = missing_package(missing, "bench")
else:
    NO_PLOTS = ""

__all__ = ["main"]


def make_parser() -> Parser:
    parser = Parser(
        prog="maskattn bench",
        description="Measure against the other ways to compute masked attention.",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--grid",
        choices=("small", "full"),
        default="small",
        help="small: one image, keep 0.25, some 5 minutes (default); full: all, some 20 minutes",
    )
    size.add_argument(
        "--quick",
        dest="grid",
        action="store_const",
        const="quick",
        help="two shapes, about one minute",
    )
    add = parser.add_argument
    add(
        "--dtype",
        type=some_of((*DTYPES, "float16")),
        default=DTYPES,
        help=f"comma-separated, of float32,bfloat16,float16 (default {','.join(DTYPES)})",
    )
    add(
        "--device",
        choices=("cpu", "cuda"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="default: a GPU if there is one",
    )
    add("--tune", action="store_true", help="measure the tiles of the Triton kernels on this GPU")
    add(
        "--tiles",
        type=Path,
        metavar="JSON",
        help="with --tune: the tiles to measure, as tools/gpu_kernels.py lists them (default all)",
    )
    add("--plan", action="store_true", help="print what would be measured, and measure nothing")
    add("--no-plots", action="store_true", help="write the JSON alone")
    add("--threads", type=positive, help="default: as many as torch chooses")
    add(
        "--resume",
        type=Path,
        metavar="JSON",
        help="continue a run of the same grid: measure what is missing, and again what others on "
        "this machine disturbed; the calmer of two measurements stays",
    )
    add(
        "--out",
        default="out/bench",
        metavar="DIR",
        help="folder for JSON and plots (default out/bench)",
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Run ``maskattn bench`` with the arguments ``argv``; 1 if a result was wrong."""
    given = make_parser().parse_args(argv)
    out = writable_folder(given.out)
    suite.set_threads(given.threads)
    if given.plan:
        return print_plan(given.tune, given.grid, given.dtype, given.device)
    if (given.tune or given.device == "cuda") and not torch.cuda.is_available():
        wanted = "--tune" if given.tune else "--device cuda"
        raise ValueError(f"{wanted} needs a GPU, and torch sees none")
    if given.tune:
        return tune(given.dtype, given.tiles, out)
    return bench(given.grid, given.dtype, given.device, out, given.resume, not given.no_plots)


def print_plan(tunes: bool, grid: str, dtypes: Sequence[str], device: str) -> int:
    """Print a line for each measurement that a run would make."""
    if tunes:
        labels = [entry_case(*entry).name for entry in entries(dtypes)]
    else:
        labels = [step.label for step in suite.plan(grid, dtypes, device)]
    print("\n".join([*labels, f"{len(labels)} measurements"]))
    return 0


def bench(
    grid: str,
    dtypes: Sequence[str],
    device: str,
    out: Path,
    earlier: Path | None,
    with_plots: bool,
) -> int:
    """Run a grid, or continue an earlier run; print the report; leave JSON and plots."""
    steps = suite.plan(grid, dtypes, device)
    if earlier is None:
        results = suite.new_results(grid, device)
        path = suite.result_path(out, grid, results["machine"])
    else:
        try:
            results, path = suite.read_results(earlier, grid, steps, device), earlier
        except ValueError as error:
            raise ValueError(f"--resume: {error}") from None
    start = time.monotonic()
    try:
        for number, step, row in suite.run(steps, results, path):
            print_step(number, len(steps), f"{step.label}  {outcome(row)}", start)
    except KeyboardInterrupt:
        kept = f"; --resume {path} continues" if path.exists() else ""
        raise KeyboardInterrupt(f"interrupted{kept}") from None
    print(report.text(results))
    print(f"\nwritten: {path}")
    if with_plots and NO_PLOTS:
        print(f"no plots: {NO_PLOTS}", file=sys.stderr)
    elif with_plots:
        for picture in plots.plot_all(results, path.with_suffix("")):
            print(f"written: {picture}")
    wrong = any("wrong" in row for section in suite.SECTIONS for row in results[section])
    return 1 if wrong else 0


def outcome(row: dict[str, Any]) -> str:
    """A measured row in a few words: what is wrong, or our time and how many times it peers take.

    Example:
        >>> outcome({"wrong": "out is off"})
        'WRONG: out is off'
    """
    if "wrong" in row:
        return f"WRONG: {row['wrong']}"
    if "peers" not in row:
        return ""
    text = f"ours {report.duration(row['peers']['ours']['median'])}"
    for name, peer in row["peers"].items():
        if name != "ours" and "times_ours" in peer:
            text += f", {name} {peer['times_ours']:.2f}x"
    return text


def tune(dtypes: Sequence[str], tiles: Path | None, out: Path) -> int:
    """Print lines for the table of tiles, measured on this GPU; each goes into a JSON as well."""
    listed = read_shortlist(tiles) if tiles is not None else None
    facts = machine_facts("cuda")
    path = suite.result_path(out, "tiles", facts)
    print(f"# {facts['gpu']}, {facts['gpu_arch']}, triton {facts['triton']}", flush=True)
    rows: list[dict[str, Any]] = []
    for ranking in tune_tiles(tuple(dtypes), listed):
        rows.append(ranking.row())
        save({"machine": facts, "tiles": rows}, path)
        print(f"{ranking.kernel} {ranking.bits}: {ranking.line()}", flush=True)
        for tile, reason in ranking.failed.items():
            print(f"#   {tuple(tile)}: {reason}", flush=True)
    print(f"written: {path}")
    return 0
