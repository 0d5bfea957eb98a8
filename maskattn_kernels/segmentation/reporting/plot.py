# SPDX-License-Identifier: BSD-3-Clause
"""Scores against time, with the front of the best: the picture of a report."""

from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from maskattn_kernels.common.atomic import replace_file
from maskattn_kernels.common.plot_look import LOOK
from maskattn_kernels.segmentation.reporting.writing import machine_text

__all__ = ["plot_report"]

#: Colours that colour-blind readers can tell apart (Okabe and Ito).
_COLORS = {"torch": "#D55E00", "onnxruntime": "#0072B2", "openvino": "#009E73"}
_MARKERS = {"fp32": "o", "bf16": "s", "fp16": "D", "int8": "^"}
_GREY = "#444444"


@rc_context(LOOK)
def plot_report(report: dict[str, Any], path: Path) -> None:
    """Write the picture; the colour is the runtime, the marker the precision.

    Args:
        report: as `report` returns it, with at least one row with a score.
        path: of the PNG.
    """
    metric = report["metric"]
    rows = [r for r in report["rows"] if r["reason"] is None and r["scores"][metric] is not None]
    front = sorted((r for r in rows if r["front"]), key=lambda row: row["ms"])
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    for row in rows:
        axes.plot(
            row["ms"],
            row["scores"][metric],
            color=_COLORS[row["runtime"]],
            marker=_MARKERS[row["precision"]],
            markersize=9 if row["front"] else 6,
            alpha=1.0 if row["front"] else 0.35,
            markeredgewidth=0,
            linestyle="",
            zorder=3,
        )
    _draw_front(axes, front, metric, max(row["ms"] for row in rows))
    _mark(axes, report, metric)
    axes.set(xlabel="ms an image", ylabel=metric)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.12, y=0.15)
    _legend(figure, axes, rows)
    settings = report["settings"]
    axes.set_title(f"{settings['images']} images, {machine_text(settings)}")
    replace_file(path, lambda temporary: figure.savefig(temporary, format="png"))


def _draw_front(axes: Axes, front: list[dict[str, Any]], metric: str, slowest: float) -> None:
    """Steps: at each time the best score that can be had in it."""
    times = [row["ms"] for row in front]
    scores = [row["scores"][metric] for row in front]
    axes.step(
        [*times, slowest], [*scores, scores[-1]], where="post", color=_GREY, linewidth=1.6, zorder=2
    )
    for row in front:
        keep = "" if row["keep"] is None else f"keep {row['keep']:g}, "
        size = "own size" if row["size"] is None else "{}x{}".format(*row["size"])
        axes.annotate(
            f"{keep}{size}",
            (row["ms"], row["scores"][metric]),
            xytext=(-6, 7),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=_GREY,
        )


def _mark(axes: Axes, report: dict[str, Any], metric: str) -> None:
    """A ring around the recommended row, and a line at the budget."""
    row = report["recommended"]
    if row is not None and row["scores"][metric] is not None:
        axes.plot(
            row["ms"],
            row["scores"][metric],
            marker="o",
            markersize=17,
            markerfacecolor="none",
            markeredgecolor=_GREY,
            markeredgewidth=1.6,
            zorder=4,
        )
    if report["budget_ms"] is not None:
        axes.axvline(report["budget_ms"], color=_GREY, linestyle=":", linewidth=1.4)
        axes.annotate(
            f"{report['budget_ms']:g} ms",
            (report["budget_ms"], 0),
            xycoords=("data", "axes fraction"),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=8,
            color=_GREY,
        )


def _legend(figure: Figure, axes: Axes, rows: list[dict[str, Any]]) -> None:
    runtimes = [name for name in _COLORS if any(row["runtime"] == name for row in rows)]
    precisions = [name for name in _MARKERS if any(row["precision"] == name for row in rows)]
    handles = [axes.plot([], [], "o", color=_COLORS[name], label=name)[0] for name in runtimes]
    handles += [
        axes.plot([], [], _MARKERS[name], color=_GREY, label=name)[0] for name in precisions
    ]
    handles += axes.plot([], [], color=_GREY, linewidth=1.6, label="front of the best")
    handles += axes.plot(
        [], [], "o", markersize=10, markerfacecolor="none", color=_GREY, label="recommended"
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
