# SPDX-License-Identifier: BSD-3-Clause
"""The latest run of ``maskattn bench --grid full`` as the tables and plots of docs/benchmarks.md.

    python bench/report.py            the tables as Markdown
    python bench/report.py --write    into the page, and the plots beside it

The last run of bench/results/ is taken, for the network at inference the last one of
bench/inference.py, for the parts of a call that of bench/overhead.py, and for the tiers of the CPU
library the last one of bench/tiers.py on each processor.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from maskattn_kernels.benchmark.cases import DTYPES, FORWARD, MODES, SHAPES, TRAIN
from maskattn_kernels.benchmark.pages import fill, table
from maskattn_kernels.benchmark.peers import EAGER, FLEX, GATHER, OURS, SDPA
from maskattn_kernels.benchmark.report import (
    duration,
    few_queries_table,
    goals_table,
    machine_line,
    means_table,
    memory_table,
    network_table,
    processor,
    skipped_lines,
    times,
)
from maskattn_kernels.benchmark.rows import Results
from maskattn_kernels.benchmark.summary import break_even_words, ratio, ratios, select

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
SPEED_PEERS = (GATHER, SDPA, EAGER, FLEX)
#: The columns of the tables: a dtype and a pass each.
COLUMNS = [(dtype, phase) for dtype in DTYPES for phase in (FORWARD, TRAIN)]


def latest() -> Path:
    """The file of the last run of the full grid."""
    return _runs("full")[-1]


def other_runs() -> list[Path]:
    """The last run on each CPU tier that `latest` is not of."""
    runs = {_tier(path): path for grid in ("small", "full") for path in _runs(grid)}
    return [path for tier, path in runs.items() if tier != _tier(latest())]


def _runs(grid: str) -> list[Path]:
    return sorted(RESULTS.glob(f"*t-{grid}.json"))  # names begin with the date; not those of GPUs


def _tier(path: Path) -> str:
    return path.name.split("-")[2]  # <date>-<time>-<tier>-<threads>t-<grid>.json


def other_processor(path: Path) -> str:
    """The tables of a run that is not the page's own, under the name of its processor."""
    results = json.loads(path.read_text(encoding="utf-8"))
    few = few_queries_table(results.get("few_queries", []), table)
    return "\n\n".join(
        part
        for part in (
            f"### {processor(results['machine'])}",
            _where(path, results),
            speed_table(results),
            _bullets(faster_peers(results)),
            shapes_table(results),
            few,
            goals_table(results, table),
        )
        if part
    )


def blocks(path: Path) -> dict[str, str]:
    """The tables of a run by the name of their block, each with its processor."""
    results = json.loads(path.read_text(encoding="utf-8"))
    machine = results["machine"]
    cells = results["cells"]
    tables = {
        "speed": speed_table(results),
        "peers": means_table(cells, table),
        "shapes": shapes_table(results),
        "network": network_table(results["network"], table),
        "training step": training_sentence(results),
        "memory": memory_table(cells + results["tokens"], table),
        "goals": goals_table(results, table),
        "when not": _bullets([*break_even_words(results), *faster_peers(results)]),
    }
    measured = f"\n\nMeasured on: {processor(machine)}."
    words = {"run": _where(path, results), "left out": _bullets(skipped_lines(cells))}
    return words | {name: text + measured for name, text in tables.items()}


def _where(path: Path, results: Results) -> str:
    name = path.name
    return f"* Run: [`{name}`](../bench/results/{name})\n* {machine_line(results['machine'])}"


def page_blocks() -> dict[str, str]:
    """All blocks of the page."""
    newest = max(RESULTS.glob("*-inference.jsonl"))
    others = "\n\n".join(map(other_processor, other_runs()))
    return blocks(latest()) | {
        "inference": inference_table(newest),
        "overhead": overhead_table(max(RESULTS.glob("*-overhead.json"))),
        "launches": launches_table(max(RESULTS.glob("*-launches.json"))),
        "tiers": "\n\n".join(map(tiers_table, tier_runs())),
        "other processors": others or "No other processor was measured.",
    }


def inference_table(path: Path) -> str:
    """What each step of `prepare_for_inference` is worth, and where it was measured."""
    machine, *rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    lines = [
        [
            f"{row['preset']}, batch {row['batch']}, {row['threads']} thread"
            + "s" * (row["threads"] > 1),
            row["step"],
            duration(row["cpu_ms"] / 1e3),
            f"{row['of_as_it_is']:.2f}",
        ]
        for row in rows
    ]
    where = f"[`{path.name}`](../bench/results/{path.name})"
    return (
        table(["network", "step", "CPU time", "of the network as it is"], lines)
        + f"\n\nMeasured on: {processor(machine)}. Run: {where}."
    )


def tier_runs() -> list[Path]:
    """The last run of bench/tiers.py by each default tier."""
    return list({_tier(path): path for path in sorted(RESULTS.glob("*-tiers.json"))}.values())


def tiers_table(path: Path) -> str:
    """The time by each tier of the CPU library, as a multiple of that by the default tier."""
    found = json.loads(path.read_text(encoding="utf-8"))
    names = list(found["cases"][0]["tiers"])
    lines = []
    for row in found["cases"]:
        tiers = row["tiers"]
        ours = duration(tiers[found["default"]]["median"])
        lines.append([row["name"], ours, *(times(tiers[n]["times_default"]) for n in names)])
    where = f"[`{path.name}`](../bench/results/{path.name})"
    return (
        table(["call", f"by {found['default']}", *names], lines)
        + f"\n\nMeasured on: {processor(found['machine'])}. Run: {where}."
    )


def launches_table(path: Path) -> str:
    """What a call of the Triton backend costs the host, and where it was measured."""
    found = json.loads(path.read_text(encoding="utf-8"))
    lines = [
        [name, str(row["launches"]), duration(row["seconds"])]
        for name, row in found["calls"].items()
    ]
    where = f"[`{path.name}`](../bench/results/{path.name})"
    return (
        table(["call", "launches", "time of the host"], lines)
        + f"\n\nMeasured on: {processor(found['machine'])}. Run: {where}."
    )


def overhead_table(path: Path) -> str:
    """Where the time of a call on few tokens goes, and where it was measured."""
    found = json.loads(path.read_text(encoding="utf-8"))
    t = found["seconds"]
    ops = t["train forward"] + t["train backward"]
    parts = [
        ("Python: the arguments are looked at", t["call"] - t["op"], None),
        (
            "dispatcher; arguments converted and checked in C++",
            t["op, 1 token"] - t["results"],
            None,
        ),
        ("results allocated", t["results"], None),
        ("64 tokens listed, gathered, multiplied", t["op"] - t["op, 1 token"], None),
        ("the op of the forward pass", None, t["train forward"]),
        ("the op of the backward pass", None, t["train backward"]),
        ("autograd: an empty autograd.Function of as many tensors", None, t["autograd"]),
        ("Python, and a copy of the mask", None, t["train call"] - t["autograd"] - ops),
        ("**the whole call**", t["call"], t["train call"]),
        ("scaled_dot_product_attention, no mask", t["sdpa"], t["train sdpa"]),
    ]
    lines = [
        [name, *("" if s is None else f"{s * 1e6:.1f} us" for s in seconds)]
        for name, *seconds in parts
    ]
    where = f"[`{path.name}`](../bench/results/{path.name})"
    return (
        table(["", "64 tokens, no grad", "2 tokens, forward+backward"], lines)
        + f"\n\nMeasured on: {processor(found['machine'])}. Run: {where}."
    )


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)


def speed_table(results: Results) -> str:
    """For each peer and column: the geometric mean of the ratios and the smallest one."""
    lines = []
    for peer in SPEED_PEERS:
        cells = []
        for dtype, phase in COLUMNS:
            rows = select(results["cells"], dtype=dtype, phase=phase)
            found = [value for value, _ in ratios(rows, peer.name)]
            mean = statistics.geometric_mean(found) if found else None
            cells.append(f"{times(mean)} ({times(min(found))})" if found else "-")
        lines.append([peer.label, *cells])
    return table(["time / ours: mean (worst)", *(f"{d}, {phase}" for d, phase in COLUMNS)], lines)


def shapes_table(results: Results) -> str:
    """One image, keep 0.25: our time, and the ratios of gather and masked SDPA, by shape."""
    lines = []
    for tokens, head_dim in SHAPES:
        for mode in MODES:
            case = {"tokens": tokens, "head_dim": head_dim, "mode": mode, "batch": 1, "keep": 0.25}
            cells = []
            for dtype, phase in COLUMNS:
                (row,) = select(results["cells"], **case, dtype=dtype, phase=phase)
                ours = duration(row["peers"][OURS.name]["median"])
                others = [times(ratio(row, peer.name)) for peer in (GATHER, SDPA)]
                cells.append(", ".join([ours, *others]))
            lines.append([f"{tokens}, {head_dim}, {mode}", *cells])
    return table(["N, D, mask", *(f"{dtype}, {phase}" for dtype, phase in COLUMNS)], lines)


def faster_peers(results: Results) -> list[str]:
    """For each peer: the cells in which it is faster than this package."""
    lines = []
    for peer in SPEED_PEERS:
        found = ratios(select(results["cells"]), peer.name)
        faster = [f"`{row['name']}` ({times(value)})" for value, row in found if value < 1]
        names = f": {', '.join(faster)}" if faster else ""
        lines.append(f"{peer.label} is faster in {len(faster)} of {len(found)} cells{names}")
    return lines


def training_sentence(results: Results) -> str:
    """What attention products are of the time of the U-Net's training step."""
    (cores,) = (row["cores"] for row in results["network"] if row["phase"] == TRAIN)
    without, dense = (cores[core]["times_ours"] for core in ("identity", "dense"))
    return (
        f"Attention products are {1 - without:.0%} of the time of the training step with "
        f"`masked_attention`, which is {dense:.1f} times as fast as with dense attention. Without "
        f"attention products it would be {dense / without:.1f} times as fast."
    )


def write(path: Path) -> None:
    """Put the tables of a run into docs/benchmarks.md, and its plots beside the page."""
    from maskattn_kernels.benchmark.plots import plot_all  # needs matplotlib

    text = fill(PAGE.read_text(encoding="utf-8"), page_blocks())
    PAGE.write_text(text, encoding="utf-8")
    print(f"written: {PAGE}")
    results = json.loads(path.read_text(encoding="utf-8"))
    for picture in plot_all(results, PAGE.with_suffix("")):
        print(f"written: {picture}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    if parser.parse_args(argv).write:
        write(latest())
    else:
        print("\n\n".join(page_blocks().values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
