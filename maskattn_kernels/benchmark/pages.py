# SPDX-License-Identifier: BSD-3-Clause
"""Markdown tables, and pages of docs/ with blocks that commands write.

A block stands between the lines ``<!-- begin: NAME -->`` and ``<!-- end -->``; everything else on a
page is written by hand.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["fill", "table"]

BLOCK = re.compile(r"(?<=<!-- begin: )([\w -]+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of a ``header`` and ``rows`` of cells.

    Example:
        >>> print(table(["peer", "times"], [["SDPA", "2.0x"]]))
        | peer | times |
        |---|---|
        | SDPA | 2.0x |
    """
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


def fill(page: str, blocks: Mapping[str, str]) -> str:
    """The page with the text of its blocks put between their markers.

    Args:
        page: Markdown with a pair of markers for each block.
        blocks: the text of each block by its name.

    Raises:
        ValueError: the page has other blocks than those given.

    Example:
        >>> print(fill("<!-- begin: speed -->\\n<!-- end -->", {"speed": "2.0x"}))
        <!-- begin: speed -->
        <BLANKLINE>
        2.0x
        <BLANKLINE>
        <!-- end -->
    """
    got = sorted(found[1] for found in BLOCK.finditer(page))
    if got != sorted(blocks):
        raise ValueError(f"page: expected blocks {', '.join(sorted(blocks))}, got {', '.join(got)}")
    return BLOCK.sub(lambda found: f"{found[1]}{found[2]}\n{blocks[found[1]]}\n\n", page)
