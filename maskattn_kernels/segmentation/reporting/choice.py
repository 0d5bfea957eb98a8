# SPDX-License-Identifier: BSD-3-Clause
"""Which rows of a report are worth a look, and which one fits a budget."""

import math
from collections.abc import Sequence
from typing import Any

from maskattn_kernels.common.front import front_of

__all__ = ["metric_of", "on_front", "recommended"]

Row = dict[str, Any]

NEAR = 0.5
"""Points of the score that somebody without a budget gives for speed."""
_SAME = 1  # decimals of a score: what differs by less counts as equal


def metric_of(task: str) -> str:
    """The score that a report compares by.

    Args:
        task: of the network.

    Example:
        >>> metric_of("semantic"), metric_of("panoptic")
        ('mIoU', 'PQ')
    """
    return "mIoU" if task == "semantic" else "PQ"


def on_front(rows: Sequence[Row], metric: str) -> list[Row]:
    """The rows that no other row beats: none is as fast and better, or as good and faster.

    Args:
        rows: measured ones.
        metric: that is compared beside the time.

    Returns:
        from the fastest to the slowest, and so from the worst to the best.

    Example:
        >>> rows = [{"ms": ms, "scores": {"mIoU": s}} for ms, s in ((9, 70), (5, 60), (7, 59))]
        >>> [row["ms"] for row in on_front(rows, "mIoU")]
        [5, 9]
    """
    return front_of(rows, lambda row: row["ms"], lambda row: _score(row, metric))


def recommended(
    rows: Sequence[Row], metric: str, budget_ms: float | None
) -> tuple[Row | None, str]:
    """A row for a budget, and a sentence that says so.

    Within the budget the best score wins, and of scores that are equal when rounded to a tenth of a
    point the fastest. Without a budget it is the fastest within half a point of the best.

    Args:
        rows: measured ones.
        metric: that is compared.
        budget_ms: milliseconds that an image may take; None = no budget.

    Example:
        >>> row = {"keep": 0.25, "size": [96, 128], "precision": "fp32", "runtime": "torch"}
        >>> row |= {"scores": {"mIoU": 70.0}, "ms": 9.0, "peak_memory_mb": None, "file_mb": 5.0}
        >>> recommended([row], "mIoU", 5)[1]
        'Nothing takes at most 5 ms an image; the fastest, keep 0.25 at 96 x 128 in fp32 by torch, \
takes 9.0 ms: mIoU 70.0, a file of 5.0 MB.'
    """
    if not rows:
        return None, "Nothing could be measured."
    fastest = min(rows, key=lambda row: row["ms"])
    if budget_ms is None:
        best = max(_score(row, metric) for row in rows)
        near = [row for row in rows if _score(row, metric) >= best - NEAR] or list(rows)
        row = min(near, key=lambda row: row["ms"])
        within = f"{NEAR:g} points of the best {metric} ({best:.1f})"
        return row, f"The fastest within {within} is {_way(row)}: {_facts(row, metric)}."
    affordable = [row for row in rows if row["ms"] <= budget_ms]
    if not affordable:
        takes = f"takes {fastest['ms']:.1f} ms: {_facts(fastest, metric, with_ms=False)}"
        return fastest, (
            f"Nothing takes at most {budget_ms:g} ms an image; the fastest, {_way(fastest)}, "
            f"{takes}."
        )
    row = max(affordable, key=lambda row: (round(_score(row, metric), _SAME), -row["ms"]))
    return row, f"For {budget_ms:g} ms an image take {_way(row)}: {_facts(row, metric)}."


def _score(row: Row, metric: str) -> float:
    score = row["scores"][metric]
    return -math.inf if score is None else score  # nothing to score


def _way(row: Row) -> str:
    keep = "" if row["keep"] is None else f"keep {row['keep']:g} "
    size = "the images' own size" if row["size"] is None else "{} x {}".format(*row["size"])
    return f"{keep}at {size} in {row['precision']} by {row['runtime']}"


def _facts(row: Row, metric: str, with_ms: bool = True) -> str:
    score = row["scores"][metric]
    facts = [f"{metric} {score:.1f}"] if score is not None else []
    if with_ms:
        facts.append(f"{row['ms']:.1f} ms")
    if row["peak_memory_mb"] is not None:
        facts.append(f"{row['peak_memory_mb']:.0f} MB of memory")
    return ", ".join([*facts, f"a file of {row['file_mb']:.1f} MB"])
