# SPDX-License-Identifier: BSD-3-Clause
"""The results of a run as plots. Needs matplotlib, which the extra [bench] installs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from maskattn_kernels.benchmark.peers import BY_NAME
from maskattn_kernels.benchmark.report import machine_line
from maskattn_kernels.benchmark.rows import Results, Row
from maskattn_kernels.benchmark.summary import select
from maskattn_kernels.common.plot_look import LOOK

__all__ = ["STYLES", "plain_ticks", "plot_all"]

#: Colours that colour-blind readers can tell apart (Okabe and Ito), and a marker each.
STYLES: dict[str, dict[str, Any]] = {
    "ours": {"color": "#0072B2", "marker": "o", "linewidth": 2.4, "zorder": 5},
    "gather": {"color": "#E69F00", "marker": "s"},
    "sdpa": {"color": "#009E73", "marker": "^"},
    "eager": {"color": "#CC79A7", "marker": "D"},
    "dense": {"color": "#56B4E9", "marker": "v", "linestyle": "--"},
}
FLOOR: dict[str, Any] = {"color": "#444444", "linestyle": ":", "linewidth": 1.4}


def _line(axes: Axes, rows: Sequence[Row], x: str, peer: str, y: str, factor: float) -> None:
    points = [
        (r["case"][x], r["peers"][peer][y] * factor)
        for r in rows
        if (r["peers"].get(peer) or {}).get(
            y
        )  # a peak too small to measure is 0, which a log axis cannot show
    ]
    if points:
        points.sort()
        axes.plot(*zip(*points, strict=True), label=BY_NAME[peer].label, **STYLES[peer])


def plain_ticks(axes: Axes) -> None:
    """Numbers at the powers of ten of a logarithmic y axis only."""
    axes.yaxis.set_major_locator(LogLocator(base=10, numticks=20))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    low, high = axes.get_ylim()
    if high / low < 100:  # otherwise at most two powers of ten
        axes.yaxis.set_minor_locator(LogLocator(base=10, subs=(2, 5)))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _legend_below(figure: Any, axes: Axes, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


@rc_context(LOOK)
def plot_keeps(results: Results, path: Path) -> bool:
    """Time against keep ratio for each peer; one panel for each shape, mode and dtype.

    Returns:
        whether there was anything to plot.
    """
    rows = select(results["keeps"])
    panels = list(
        dict.fromkeys(
            (r["case"]["dtype"], r["case"]["tokens"], r["case"]["head_dim"], r["case"]["mode"])
            for r in rows
        )
    )
    if not panels:
        return False
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.1 * lines + 0.7), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (dtype, tokens, head_dim, mode) in zip(grid.flat, panels, strict=False):
        chosen = select(rows, dtype=dtype, tokens=tokens, head_dim=head_dim, mode=mode)
        for peer in ("ours", "gather", "sdpa", "eager", "dense"):
            _line(axes, chosen, "keep", peer, "median", 1e3)
        floor = sorted((r["case"]["keep"], r["floor_seconds"] * 1e3) for r in chosen)
        axes.plot(*zip(*floor, strict=True), label="floor of this machine", **FLOOR)
        axes.set(yscale="log", xlabel="keep ratio", ylabel="ms", xlim=(0, 1.04))
        plain_ticks(axes)
        axes.set_title(f"N={tokens}, D={head_dim}, {mode}, {dtype}")
    _legend_below(figure, grid.flat[0], 6)
    figure.suptitle(f"Forward, one head, one image\n{machine_line(results['machine'])}", fontsize=9)
    figure.savefig(path)
    return True


@rc_context(LOOK)
def plot_tokens(results: Results, path: Path) -> bool:
    """Time and peak memory against the number of tokens.

    Returns:
        whether there was anything to plot.
    """
    rows = select(results["tokens"])
    if not rows:
        return False
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    time, memory = figure.subplots(1, 2)
    for peer in ("ours", "gather", "sdpa", "eager"):
        _line(time, rows, "tokens", peer, "median", 1e3)
        _line(memory, rows, "tokens", peer, "peak_bytes", 2**-20)
    floor = sorted((r["case"]["tokens"], r["floor_seconds"] * 1e3) for r in rows)
    time.plot(*zip(*floor, strict=True), label="floor of this machine", **FLOOR)
    case = rows[0]["case"]
    time.set(xscale="log", yscale="log", xlabel="tokens N", ylabel="ms", title="time")
    memory.set(
        xscale="log", yscale="log", xlabel="tokens N", ylabel="MiB", title="peak memory of the call"
    )
    for axes in (time, memory):
        ticks = sorted({r["case"]["tokens"] for r in rows})
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        plain_ticks(axes)
    _legend_below(figure, time, 5)
    figure.suptitle(
        f"{case['phase']}, D={case['head_dim']}, {case['mode']}, keep {case['keep']:g}, "
        f"{case['dtype']}\n"
        f"{machine_line(results['machine'])}",
        fontsize=9,
    )
    figure.savefig(path)
    return True


def plot_all(results: Results, stem: Path) -> list[Path]:
    """Write every plot that has data, as ``<stem>-keep.png`` and ``<stem>-tokens.png``."""
    written = []
    for name, plot in (("keep", plot_keeps), ("tokens", plot_tokens)):
        path = stem.with_name(f"{stem.name}-{name}.png")
        if plot(results, path):
            written.append(path)
    return written
