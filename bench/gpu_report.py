# SPDX-License-Identifier: BSD-3-Clause
"""What was measured on GPUs as the tables of docs/gpu.md.

    python bench/gpu_report.py            the tables as Markdown
    python bench/gpu_report.py --write    into the page

Of bench/results/ the last complete run of ``maskattn bench --device cuda --grid small``, the last
of gpu_forward.py, the last rankings of tiles, and what `tools/gpu_check.py` said of the tests.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskattn_kernels.benchmark.pages import fill, table
from maskattn_kernels.benchmark.peers import BY_NAME, OURS
from maskattn_kernels.benchmark.report import (
    duration,
    goals_table,
    machine_line,
    means_table,
    network_table,
    times,
)
from maskattn_kernels.benchmark.rows import Results, Row
from maskattn_kernels.benchmark.summary import ratio

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
PAGE = ROOT / "docs" / "gpu.md"
GPU = "*-NVIDIA-*"
TIMED_OUT = 124
#: Columns: peers whose calls a CUDA graph can hold, and peers as users call them.
IN_GRAPHS = ("cuda", "fa4", "sdpa", "varlen-nw", "fa4-varlen-nw")
WHOLE = ("gather", "sdpa", "flex", "varlen", "fa4-varlen")


def blocks() -> dict[str, str]:
    """All tables, by the name of their block."""
    speed, complete = _last_complete()
    kernels = json.loads(_last("kernels").read_text(encoding="utf-8"))
    return {
        "run": f"* Run: {_link(speed)}\n* {machine_line(complete['machine'])}",
        "tests": tests_table(json.loads(_last("check").read_text(encoding="utf-8"))),
        "gpu time": _cells(complete["cells"], IN_GRAPHS, _gpu_seconds, _gpu_ratio),
        "whole calls": _cells(complete["cells"], WHOLE, _call_seconds, ratio),
        "means": means_table(complete["cells"], table),
        "network": network_table(complete["network"], table),
        "forward kernels": forward_table(kernels),
        "host": host_table(kernels),
        "goals": goals_table(complete, table),
    }


def _last(kind: str) -> Path:
    return max(RESULTS.glob(f"{GPU}-{kind}.json"))  # names begin with the date


def _last_complete() -> tuple[Path, Results]:
    """The last run of the small grid that was not cut."""
    for path in sorted(RESULTS.glob(f"{GPU}-small.json"), reverse=True):
        results: Results = json.loads(path.read_text(encoding="utf-8"))
        if results["complete"]:
            return path, results
    raise ValueError("bench/results: expected a complete run of the small grid on a GPU, got none")


def _link(path: Path) -> str:
    return f"[`{path.name}`](../bench/results/{path.name})"


def tests_table(found: dict[str, Any]) -> str:
    """Each step of `tools/gpu_check.py` that ran tests, in all of its runs."""
    rows = []
    for run in found["runs"]:
        for step in run["steps"]:
            counts = step.get("tests", {})
            words = ", ".join(f"{number} {word}" for word, number in counts.items() if number)
            if words and step["status"] == TIMED_OUT:
                words += f", cut after {step['seconds']:.0f} s"
            if words:
                rows.append([step["step"], run["commit"][:7], words])
    return table(["step", "commit", "outcome"], rows)


def _cells(rows: Sequence[Row], peers: Sequence[str], seconds: Any, against: Any) -> str:
    """A row a cell: our time, and how many times longer each peer takes."""
    header = ["case", "ours", *(BY_NAME[name].label for name in peers)]
    lines = []
    for row in rows:
        cells = [times(against(row, name)) for name in peers]
        lines.append([row["name"], duration(seconds(row)), *cells])
    return table(header, lines)


def _gpu_seconds(row: Row) -> float:
    return float(row["peers"][OURS.name]["graph"]["median"])


def _gpu_ratio(row: Row, peer: str) -> float | None:
    found = row["peers"].get(peer, {}).get("graph_times_ours")
    return None if found is None else float(found)


def _call_seconds(row: Row) -> float:
    return float(row["peers"][OURS.name]["median"])


def forward_table(found: dict[str, Any]) -> str:
    """Each backend's time on the GPU, and of the whole call in brackets."""
    names = list(next(iter(found["forward_us"].values())))
    lines = [
        [case, *(f"{row[name]['gpu']:.0f} ({row[name]['call']:.0f})" for name in names)]
        for case, row in found["forward_us"].items()
    ]
    return table(["us on the GPU (whole call)", *names], lines)


def host_table(found: dict[str, Any]) -> str:
    """What the host needs to launch a training call."""
    lines = [
        [case, name, f"{row['forward']:.0f} us", f"{row['backward']:.0f} us"]
        for case, rows in found["host_us"].items()
        for name, row in rows.items()
    ]
    return table(["case", "way", "forward", "backward"], lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="into docs/gpu.md")
    found = blocks()
    if parser.parse_args(argv).write:
        PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
        print(f"written: {PAGE}")
    else:
        print("\n\n".join(found.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
