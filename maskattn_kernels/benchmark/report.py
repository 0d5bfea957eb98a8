# SPDX-License-Identifier: BSD-3-Clause
"""The results of a run as tables: for a terminal, or in another layout."""

import statistics
from collections.abc import Callable, Sequence

from maskattn_kernels.benchmark.cases import FORWARD, TRAIN
from maskattn_kernels.benchmark.peers import BY_NAME, DENSE, GPU_PEERS
from maskattn_kernels.benchmark.rows import Results, Row
from maskattn_kernels.benchmark.summary import (
    break_even_words,
    goals,
    ratio,
    ratios,
    select,
)
from maskattn_kernels.benchmark.summary_gpu import gpu_goals

__all__ = [
    "duration",
    "few_queries_table",
    "goals_table",
    "machine_line",
    "means_table",
    "mebibytes",
    "memory_table",
    "network_table",
    "processor",
    "skipped_lines",
    "text",
    "times",
]

#: Makes text of a header and rows of cells.
Layout = Callable[[Sequence[str], Sequence[Sequence[str]]], str]


def duration(seconds: float) -> str:
    """Three digits and a unit.

    Example:
        >>> duration(0.0123), duration(4.2e-5)
        ('12.3 ms', '42.0 us')
    """
    unit, size = ("s", 1.0) if seconds >= 1 else ("ms", 1e-3) if seconds >= 1e-3 else ("us", 1e-6)
    value = seconds / size
    return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f} {unit}"


def mebibytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 2**20:.0f} MiB"


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal: the first column is aligned left, the others right."""
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "  ".join([first, *rest]).rstrip()

    return "\n".join([line(header), "  ".join("-" * w for w in widths), *map(line, rows)])


def times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def cells_table(rows: Sequence[Row]) -> str:
    """Our time of each case, the floor, and how many times longer each peer takes."""
    others = [p for p in (*GPU_PEERS[1:], DENSE) if any(p.name in r.get("peers", {}) for r in rows)]
    header = ["case", "ours", "p20..p80", "floor", "matmul", *(p.name for p in others)]
    lines = []
    for row in rows:
        if "wrong" in row:
            lines.append([row["name"], "WRONG", *["-"] * (len(header) - 2)])
            continue
        ours = row["peers"]["ours"]
        lines.append(
            [
                row["name"],
                duration(ours["median"]),
                f"{duration(ours['low'])}..{duration(ours['high'])}",
                duration(row["floor_seconds"]),
                f"{row['matmul_share']:.0%}",
                *(times(ratio(row, p.name)) for p in others),
            ]
        )
    return columns(header, lines)


def means_table(rows: Sequence[Row], layout: Layout = columns) -> str:
    """For each dtype, pass and peer: geometric mean of the ratios, and the worst cell."""
    lines = []
    for dtype in dict.fromkeys(r["case"]["dtype"] for r in select(rows)):
        for phase in (FORWARD, TRAIN):
            for peer in GPU_PEERS[1:]:
                found = ratios(select(rows, dtype=dtype, phase=phase), peer.name)
                if found:
                    worst, row = min(found, key=lambda f: f[0])
                    mean = statistics.geometric_mean([v for v, _ in found])
                    what = f"{dtype} {phase} against {peer.label}"
                    lines.append(
                        [what, f"{mean:.2f}x", str(len(found)), f"{worst:.2f}x", row["name"]]
                    )
    header = ["how many times faster", "geometric mean", "cells", "worst", "worst cell"]
    return layout(header, lines)


def memory_table(rows: Sequence[Row], layout: Layout = columns) -> str:
    """Peak memory of each peer, for the rows where it was measured."""
    measured = [r for r in select(rows) if "peak_bytes" in r["peers"]["ours"]]
    names = [
        p for p in ("ours", "gather", "sdpa", "eager") if any(p in r["peers"] for r in measured)
    ]
    lines = [
        [r["name"], *(mebibytes(r["peers"].get(n, {}).get("peak_bytes")) for n in names)]
        for r in measured
    ]
    return layout(["peak memory", *names], lines) if lines else ""


def few_queries_table(rows: Sequence[Row], layout: Layout = columns) -> str:
    """Few queries over many keys: our time, the ratios of peers, and our share of a plain read."""
    lines = [
        [
            row["name"],
            duration(row["peers"]["ours"]["median"]),
            *(times(ratio(row, peer)) for peer in ("gather", "sdpa")),
            f"{row['bytes'] / row['peers']['ours']['median'] / 1e9:.0f} GB/s",
            f"{row['read_share']:.0%}",
        ]
        for row in select(rows)
    ]
    header = ["few queries", "ours", "gather", "sdpa", "bytes read", "rate / a plain read's"]
    return layout(header, lines) if lines else ""


def skipped_lines(rows: Sequence[Row]) -> list[str]:
    """Each reason why a peer was not measured, with the number of cases."""
    counts: dict[str, int] = {}
    for row in select(rows):
        for name, peer in row["peers"].items():
            if "skipped" in peer:
                reason = f"{BY_NAME[name].label}: {peer['skipped']}"
                counts[reason] = counts.get(reason, 0) + 1
    return [
        f"{reason} ({count} {'case' if count == 1 else 'cases'})"
        for reason, count in counts.items()
    ]


def network_table(rows: Sequence[Row], layout: Layout = columns) -> str:
    """Time and memory of the U-Net with each core."""
    labels = {
        "sparse": "masked_attention",
        "dense": "dense attention",
        "sdpa": "masked SDPA",
        "identity": "attention products removed",
    }
    lines = []
    for row in rows:
        for core, label in labels.items():
            if "wrong" in row:
                continue
            measured = row["cores"][core]
            lines.append(
                [
                    f"U-Net {row['phase']}, {label}",
                    duration(measured["median"]),
                    times(measured["times_ours"]),
                    mebibytes(measured.get("peak_bytes")),
                ]
            )
    return layout(["128 x 128, keep 0.25 qk", "time", "against ours", "peak memory"], lines)


def goals_table(results: Results, layout: Layout = columns) -> str:
    """Each goal, what the run measured, and whether it is met."""
    marks = {True: "yes", False: "no", None: ""}
    found = gpu_goals(results) if results["machine"].get("gpu") else goals(results)
    lines = [[g.what, g.goal, g.measured, marks[g.met]] for g in found]
    return layout(["what", "goal", "measured", "met"], lines)


def processor(facts: Row) -> str:
    """GPU if there is one, CPU, threads and instruction tier in one line."""
    tiers = [b["build"].get("tier", b["name"]) for b in facts["backends"] if b["available"]]
    gpu = f"{facts['gpu']} ({facts['gpu_arch']}), " if facts.get("gpu") else ""
    return f"{gpu}{facts['cpu']}, {facts['threads']} threads, {tiers[0]}"


def machine_line(facts: Row) -> str:
    """Processor, versions, commit and date in one line."""
    return (
        f"{processor(facts)}; torch {facts['torch']}, "
        f"maskattn_kernels {facts['maskattn_kernels']} ({facts['commit'] or 'no checkout'}), "
        f"{facts['date']}"
    )


def text(results: Results) -> str:
    """The whole report."""
    parts = [machine_line(results["machine"])]
    if not results["complete"]:
        parts.append("This run was interrupted: only its finished rows are shown.")
    if results["cells"]:
        parts.append(
            "Peers: how many times longer than ours, median over rounds; '-' = not measured."
        )
        parts += [cells_table(results["cells"]), means_table(results["cells"])]
    parts.append(few_queries_table(results.get("few_queries", [])))
    parts.append(memory_table(results["cells"] + results["tokens"]))
    if results["network"]:
        parts.append(network_table(results["network"]))
    parts.append("\n".join(skipped_lines(results["cells"])))
    parts.append("\n".join(break_even_words(results)))
    wrong = [
        f"{r['name']}: {r['wrong']}"
        for s in results.values()
        if isinstance(s, list)
        for r in s
        if "wrong" in r
    ]
    if wrong:
        parts.append("WRONG RESULTS, not timed:\n" + "\n".join(wrong))
    parts.append(goals_table(results))
    return "\n\n".join(part for part in parts if part)
