# SPDX-License-Identifier: BSD-3-Clause
"""Errors about data that cannot be used, and notes about data that can."""

import sys
from collections.abc import Sequence
from reprlib import Repr

__all__ = ["DataError", "LayoutError", "Tally", "shown", "told"]

_SHORT = Repr()
_SHORT.maxlevel = 2
_SHORT.maxstring = _SHORT.maxother = 60


class DataError(ValueError):
    """Data that cannot be used: one line with what is wrong, in which file, and what to do."""


class LayoutError(DataError):
    """A folder or file that the layout of the data set must have is not there."""


def told(failed: Sequence[str], most: int = 20) -> int:
    """Print on stderr what a command had to leave out; returns its exit code: 1 if anything.

    Args:
        failed: a line for each file that cannot be used.
        most: so many of them are printed.
    """
    for line in failed[:most]:
        print(f"failed: {line}", file=sys.stderr)
    if len(failed) > most:
        print(f"failed: {len(failed) - most} more", file=sys.stderr)
    return 1 if failed else 0


def shown(value: object) -> str:
    """A value of a user's file for an error: never long, however deep or large the value is.

    Example:
        >>> shown([[[[1]]] * 1000] * 1000), shown("a" * 10_000)[:8]
        ('[[[...], [...], [...], [...], [...], [...], ...], ...', "'aaaaaaa")
    """
    if isinstance(value, int):
        return str(value) if -(10**18) < value < 10**18 else "a huge number"
    text = " ".join(_SHORT.repr(value).split())
    return text if len(text) <= 60 else f"{text[:51]} ..."


class Tally:
    """Counts what a reader leaves out or guesses, by kind, with the first example of each.

    Args:
        where: the file or folder, with which each line begins.

    Example:
        >>> tally = Tally("a.json")
        >>> tally.add("objects mark no pixel", "annotation 3")
        >>> tally.add("objects mark no pixel", "annotation 8")
        >>> tally.lines()
        ('a.json: 2 objects mark no pixel, such as annotation 3',)
    """

    def __init__(self, where: object) -> None:
        self._where = where
        self._cases: dict[str, dict[str, None]] = {}

    def add(self, kind: str, example: str) -> None:
        """Count a case of ``kind``; the same ``example`` of a kind counts once."""
        self._cases.setdefault(kind, {})[example] = None

    def lines(self) -> tuple[str, ...]:
        """One line for each kind."""
        return tuple(
            f"{self._where}: {len(examples)} {kind}, such as {next(iter(examples))}"
            for kind, examples in self._cases.items()
        )
