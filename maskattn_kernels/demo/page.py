# SPDX-License-Identifier: BSD-3-Clause
"""Numbers and pictures into one page of HTML that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from string import Template
from typing import Any

from maskattn_kernels.benchmark.report import duration, machine_line

Row = dict[str, Any]

#: Row labels of the table of whole forwards.
NETWORKS = {
    "dense": "dense attention",
    "swapped": "swapped: masked_attention",
    "bare": "attention products left out",
}


def mebibytes(count: int | None) -> str:
    if count is None:
        return "-"
    return f"{count / 2**20:.0f} MiB" if count >= 10 * 2**20 else f"{count / 2**20:.1f} MiB"


def gigaflops(count: int) -> str:
    return f"{count / 1e9:.1f}" if count >= 1e9 else f"{count / 1e9:.3f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], strong: int = -1) -> str:
    """An HTML table; the cells of column ``strong`` stand out."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = []
    for row in rows:
        cells = [
            f'<td class="strong">{escape(c)}</td>' if i == strong else f"<td>{escape(c)}</td>"
            for i, c in enumerate(row)
        ]
        body.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def tiles(numbers: Row) -> str:
    """The few numbers that matter."""
    forward = numbers["forward"]
    found = [
        (f"{forward['times_faster']:.1f}x", "faster than dense, one whole forward"),
        (f"{forward['over_bare']:.2f}x", "the time of the network without attention products"),
    ]
    peaks = [forward[name].get("peak_bytes") for name in ("dense", "swapped")]
    if all(peaks):
        found.append((f"1/{peaks[0] / peaks[1]:.0f}", "of the dense network's peak memory"))
    largest = max(a["relative_difference"] for a in numbers["agreement"])
    found.append((f"{largest:.0e}", "largest difference between the answers, relative to logits"))
    return "".join(f'<div class="tile"><b>{b}</b><span>{escape(s)}</span></div>' for b, s in found)


def figure(source: str, caption: str) -> str:
    return (
        f'<figure><img src="{source}" alt="{escape(caption)}" loading="lazy">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def card(title: str, note: str, figures: Sequence[tuple[str, str]]) -> str:
    """A photograph's row of pictures, each with its caption."""
    strip = "".join(figure(source, caption) for source, caption in figures)
    return (
        f'<div class="card"><h3>{escape(title)}<small>{escape(note)}</small></h3>'
        f'<div class="strip">{strip}</div></div>'
    )


def agreement_table(rows: Sequence[Row]) -> str:
    header = (
        "photograph",
        "dense, error",
        "swapped, error",
        "allowed",
        "largest difference",
        "largest logit",
        "same best class",
    )
    lines = [
        [
            r["name"],
            f"{r['dense_error']:.1e}",
            f"{r['swapped_error']:.1e}",
            f"{r['allowed']:.1e}",
            f"{r['largest']:.1e}",
            f"{r['largest_logit']:.2f}",
            f"{r['same_class']:.2%}",
        ]
        for r in rows
    ]
    return table(header, lines, strong=2)


def forward_table(forward: Row) -> str:
    header = ("network", "time", "20 % .. 80 %", "times faster than dense", "peak memory", "GFLOP")
    lines = []
    for name, label in NETWORKS.items():
        row = forward[name]
        faster = forward["dense"]["median"] / row["median"]
        lines.append(
            [
                label,
                duration(row["median"]),
                f"{duration(row['low'])} .. {duration(row['high'])}",
                f"{forward['times_faster'] if name == 'swapped' else faster:.1f}x",
                mebibytes(row.get("peak_bytes")),
                gigaflops(row["flops"]),
            ]
        )
    return table(header, lines, strong=3)


def layers_table(rows: Sequence[Row]) -> str:
    header = (
        "scale",
        "tokens",
        "channels",
        "selected",
        "dense time",
        "masked time",
        "times faster",
        "dense memory",
        "masked memory",
        "dense GFLOP",
        "masked GFLOP",
    )
    lines = [
        [
            r["scale"],
            str(r["tokens"]),
            str(r["head_dim"]),
            str(r["selected"]),
            duration(r["dense"]["median"]),
            duration(r["sparse"]["median"]),
            f"{r['times_faster']:.1f}x",
            mebibytes(r["dense"]["peak_bytes"]),
            mebibytes(r["sparse"]["peak_bytes"]),
            gigaflops(r["dense"]["flops"]),
            gigaflops(r["sparse"]["flops"]),
        ]
        for r in rows
    ]
    return table(header, lines, strong=6)


def scores_line(scores: Row) -> str:
    """The scores at the end of the training, in words."""
    return ", ".join(f"{name} {scores[name]:.1f}" for name in ("mIoU", "PQ", "AP"))


def panel(source: str) -> str:
    return f'<div class="card wide"><img class="panel" src="{source}" alt="A prediction"></div>'


def render(
    numbers: Row,
    cards: Sequence[str],
    charts: Mapping[str, str],
    cells: Sequence[str],
    panels: Sequence[str],
) -> str:
    """The page.

    Args:
        numbers: everything measured, as it stands in ``numbers.json``.
        cards: one for each photograph, see `card`.
        charts: pictures as data URIs: ``layers_chart``, ``keeps_chart``, ``loss_chart``.
        cells: what the network that comes with the package finds, as data URIs.
        panels: predictions of the network that was trained just now, as data URIs.
    """
    template = resources.files("maskattn_kernels.demo").joinpath("page.html").read_text("utf-8")
    agreement = numbers["agreement"]
    return Template(template).substitute(
        tiles=tiles(numbers),
        pictures="\n".join(cards),
        largest=f"{max(a['largest'] for a in agreement):.1e}",
        logits=f"{max(a['largest_logit'] for a in agreement):.1f}",
        accuracy=f"{numbers['accuracy']:g}",
        agreement=agreement_table(agreement),
        side=str(numbers["side"]),
        forward=forward_table(numbers["forward"]),
        layers=layers_table(numbers["layers"]),
        nuclei=str(numbers["nuclei"]),
        cells="\n".join(panel(source) for source in cells),
        scores=scores_line(numbers["training"]["scores"]),
        steps=f"{numbers['training']['log'][-1]['step']:.0f}",
        panels="\n".join(panel(source) for source in panels),
        **charts,
        report=escape(numbers["swapped"]),
        machine=escape(machine_line(numbers["machine"])),
    )
