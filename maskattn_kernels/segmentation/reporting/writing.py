# SPDX-License-Identifier: BSD-3-Clause
"""A report as text: a table in Markdown, rows in CSV, all of it in JSON."""

import csv
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from maskattn_kernels.common.atomic import replace_file

__all__ = ["left_out", "machine_text", "markdown", "table", "write_texts"]

_FACTS = ("ms", "processor_ms", "images_per_second", "peak_memory_mb", "file_mb")
_HEADS = ("ms", "processor ms", "images/s", "memory MB", "file MB")


def table(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """The measured rows as cells, heads first; the last cell has a star on the front of the best.

    Args:
        report: as `report` returns it.
    """
    metric = report["metric"]
    cells: list[tuple[str, ...]] = [
        ("keep", "size", "precision", "runtime", metric, *_HEADS, "front")
    ]
    for row in report["rows"]:
        if row["reason"] is not None:
            continue
        score, memory = row["scores"][metric], row["peak_memory_mb"]
        cells.append(
            (
                "trained" if row["keep"] is None else f"{row['keep']:g}",
                "own" if row["size"] is None else "{}x{}".format(*row["size"]),
                row["precision"],
                row["runtime"],
                "-" if score is None else f"{score:.1f}",
                f"{row['ms']:.1f}",
                f"{row['processor_ms']:.1f}",
                f"{row['images_per_second']:.1f}",
                "-" if memory is None else f"{memory:.0f}",
                f"{row['file_mb']:.1f}",
                "*" if row["front"] else "",
            )
        )
    return cells


def left_out(report: dict[str, Any]) -> list[str]:
    """A line for each reason why something was not measured.

    Args:
        report: as `report` returns it.
    """
    why: dict[str, list[str]] = {}
    for row in report["rows"]:
        if row["reason"] is not None:
            way = f"{row['precision']} by {row['runtime']}"
            found = why.setdefault(row["reason"], [])
            found += [way] if way not in found else []
    return [f"{', '.join(ways)}: {reason}" for reason, ways in why.items()]


def machine_text(settings: dict[str, Any]) -> str:
    """Threads and processor of a report, by its ``settings``.

    Example:
        >>> machine_text({"threads": 2, "processor": "some processor"})
        '2 threads of some processor'
    """
    threads = settings["threads"]
    return f"{threads} thread{'s' if threads > 1 else ''} of {settings['processor']}"


def markdown(report: dict[str, Any]) -> str:
    """The whole report for people.

    Args:
        report: as `report` returns it.
    """
    heads, *rows = table(report)
    lines = ["| " + " | ".join(cells) + " |" for cells in (heads, ("---",) * len(heads), *rows)]
    settings = report["settings"]
    missing = [f"- {line}" for line in left_out(report)]
    return "\n".join(
        [
            "# Deployment report",
            "",
            f"**{report['sentence']}**",
            "",
            *lines,
            "",
            "![scores against time](report.png)",
            "",
            f"{report['metric']} on {settings['images']} images at their own size. Times are from "
            "the pixels of one image at the size of the row to its labels, without reading, "
            f"resizing and grouping, in {machine_text(settings)}: medians of a race in which all "
            "took turns; processor ms are those in which its threads computed. Memory is the peak "
            "of a process that does nothing else, with Python and the runtime. A star is on rows "
            "that no other row beats.",
            *(["", "Not measured:", "", *missing] if missing else []),
            "",
        ]
    )


def write_texts(folder: Path, report: dict[str, Any]) -> None:
    """Write ``report.json``, ``report.csv`` and ``report.md``.

    Args:
        folder: of the report.
        report: as `report` returns it.
    """
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    for name, content in (("report.json", text), ("report.md", markdown(report))):
        replace_file(folder / name, partial(Path.write_text, data=content, encoding="utf-8"))
    replace_file(folder / "report.csv", lambda path: _write_csv(path, report["rows"]))


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    scores = list(dict.fromkeys(name for row in rows for name in row["scores"]))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        plain = ("keep", "height", "width", "precision", "runtime", "version")
        writer.writerow([*plain, *scores, *_FACTS, "front", "reason"])
        for row in rows:
            height, width = row["size"] or ("own", "own")
            first = (row["keep"], height, width, row["precision"], row["runtime"], row["version"])
            rest = (row["scores"].get(name) for name in scores)
            facts = (row[fact] for fact in _FACTS)
            writer.writerow([*first, *rest, *facts, row["front"], row["reason"]])
