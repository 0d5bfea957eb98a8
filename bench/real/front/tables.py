# SPDX-License-Identifier: BSD-3-Clause
"""The results of accuracy against time as Markdown and as a plot, for docs/deploy.md."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from bench.deploy import RUNTIMES
from bench.frm.tables import TABLE as FRM_TABLE
from bench.real.front.plan import FRM, HERE, MOBILE, NETWORKS, RANDOM_START, THEIRS
from bench.real.front.plan import TABLE as NAME
from bench.real.tables import by_seed, cells
from bench.trainings import ROOT, Record, Table
from maskattn_kernels.benchmark.pages import table
from maskattn_kernels.common.front import front_of
from maskattn_kernels.common.plot_look import LOOK

TABLE = Table(HERE / "runs.jsonl")
SPEED = HERE / "speed.json"  # of speed.py
PLOT = ROOT / "docs" / "front.png"
GROUPS = {**{name: f"{NAME}-{name}" for name in NETWORKS}, **FRM}
HEADER = ("network", "mIoU", "ONNX Runtime, ms", "OpenVINO, ms", "GFLOPs", "parameters")

Times = dict[tuple[str, str], float]


class Point(NamedTuple):
    """A network of the plot: mean mIoU over its seeds, and ms in its faster runtime."""

    name: str
    ms: float
    miou: float


def blocks() -> dict[str, str]:
    """The table, by the name of its block."""
    measured = speed()
    return {"front": front_table(finished(), times_of(measured), measured["costs"])}


def finished() -> dict[str, Record]:
    """The finished runs of this study, and those of bench/frm with the same recipe."""
    return {**FRM_TABLE.read(), **TABLE.read()}


def speed() -> Record:
    """What speed.py has measured."""
    return json.loads(SPEED.read_text(encoding="utf-8"))


def times_of(measured: Record) -> Times:
    """Milliseconds by network and runtime."""
    return {tuple(row["name"].split(", ")): row["cpu_ms"] for row in measured["rows"]}


def front_table(found: dict[str, Record], ms: Times, costs: dict[str, Record]) -> str:
    """A row for each network, the fastest first."""
    lines = (
        [
            shown(name),
            *cells(found, [GROUPS[name]]),
            *(f"{ms[name, runtime]:.1f}" for runtime in RUNTIMES),
            f"{costs[name]['gflops']:.2f}",
            f"{costs[name]['parameters'] / 1e6:.1f} M",
        ]
        for name in sorted(costs, key=lambda name: fastest(name, ms))
    )
    return table(HEADER, lines)


def shown(name: str) -> str:
    """A network as the table and the plot call it."""
    return f"mobile ({name})" if name == MOBILE else name


def fastest(name: str, ms: Times) -> float:
    """Milliseconds in the faster runtime."""
    return min(ms[name, runtime] for runtime in RUNTIMES)


def points(found: dict[str, Record], ms: Times) -> list[Point]:
    """The networks that are trained, the fastest first; without the one from random weights."""
    made = []
    for name in dict.fromkeys(name for name, _ in ms):
        values = by_seed(found, GROUPS[name]).values()
        if values and name != RANDOM_START:
            made.append(Point(name, fastest(name, ms), sum(values) / len(values)))
    return sorted(made, key=lambda point: point.ms)


def front(of: list[Point]) -> list[Point]:
    """Those of some points, the fastest first, that no faster one equals in mIoU."""
    return front_of(of, lambda point: point.ms, lambda point: point.miou)


def plot(path: Path) -> None:
    """mIoU against milliseconds, with the front as a line."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(LOOK):
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.subplots()
        found = points(finished(), times_of(speed()))
        line: Any = {"color": "#9aa2ab", "linewidth": 1.2, "zorder": 1}
        best = front(found)
        axes.plot([p.ms for p in best], [p.miou for p in best], **line)
        for label, own, color, marker in (
            ("this package", True, "#0072B2", "o"),
            ("other libraries", False, "#E69F00", "s"),
        ):
            group = [p for p in found if (p.name not in THEIRS) == own]
            style: Any = {"color": color, "label": label, "markersize": 7}
            axes.plot([p.ms for p in group], [p.miou for p in group], marker, **style)
        for p in found:
            beside: Any = {"xytext": (7, -3)}
            if p in best:  # left of the line, where no other network can be
                beside = {"xytext": (-7, 2), "horizontalalignment": "right"}
            axes.annotate(
                shown(p.name), (p.ms, p.miou), textcoords="offset points", fontsize=9, **beside
            )
        axes.set(
            xlabel="ms of one 192 x 256 image, one thread, the faster of two runtimes",
            ylabel="mIoU of CamVid's validation images",
            xlim=(0, 1.2 * max((p.ms for p in found), default=1)),
        )
        axes.margins(y=0.12)
        axes.legend(loc="upper right")
        figure.savefig(path)
