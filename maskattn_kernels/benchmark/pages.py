# SPDX-License-Identifier: BSD-3-Clause
"""Markdown tables, and pages of docs/ with blocks that commands write.

A block stands between the lines ``<!-- begin: NAME -->`` and ``<!-- end -->``; everything else on a
page is written by hand.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["fill", "names", "table"]

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


def names(page: str) -> set[str]:
    """The names of the blocks of a page."""
    return {found[1] for found in BLOCK.finditer(page)}


def fill(page: str, blocks: Mapping[str, str]) -> str:
    """The page with the text of its blocks put between their markers.

    Args:
        page: Markdown; it need not have every block.
        blocks: the text of each block by its name.

    Raises:
        ValueError: the page has a block that was not given.

    Example:
        >>> print(fill("<!-- begin: speed -->\\n<!-- end -->", {"speed": "2.0x"}))
        <!-- begin: speed -->
        <BLANKLINE>
        2.0x
        <BLANKLINE>
        <!-- end -->
    """
    unknown = names(page) - blocks.keys()
    if unknown:
        raise ValueError(f"page: expected blocks {', '.join(sorted(blocks))}, got {min(unknown)}")
    return BLOCK.sub(lambda found: f"{found[1]}{found[2]}\n{blocks[found[1]]}\n\n", page)
