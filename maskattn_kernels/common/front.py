# SPDX-License-Identifier: BSD-3-Clause
"""The front of some choices: those that no other one beats in both cost and value."""

from collections.abc import Callable, Iterable
from typing import TypeVar

__all__ = ["front_of"]

T = TypeVar("T")


def front_of(
    items: Iterable[T], cost: Callable[[T], float], value: Callable[[T], float]
) -> list[T]:
    """The items that no other beats: none costs as little and is better, or is as good for less.

    Args:
        items: to compare.
        cost: of an item, such as its milliseconds.
        value: of an item, such as its score.

    Returns:
        from the lowest cost to the highest, and so from the lowest value to the highest.

    Example:
        >>> front_of([(9, 70), (5, 60), (7, 59)], cost=lambda i: i[0], value=lambda i: i[1])
        [(5, 60), (9, 70)]
    """
    front: list[T] = []
    for item in sorted(items, key=lambda item: (cost(item), -value(item))):
        if not front or value(item) > value(front[-1]):
            front.append(item)
    return front
