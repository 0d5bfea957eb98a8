# SPDX-License-Identifier: BSD-3-Clause
"""Work ahead in threads, in order and never too far."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count as count_from
from itertools import islice
from typing import TypeVar

__all__ = ["ahead", "batched", "map_ahead"]

T = TypeVar("T")
R = TypeVar("R")


_numbers = count_from(1)


@contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads whose end is waited for."""
    name = f"background-{next(_numbers)}-"
    pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
    try:
        yield pool
    finally:
        # After an interrupt a generator is closed wherever it is collected: in one of these
        # threads too, which cannot wait for itself.
        pool.shutdown(wait=not threading.current_thread().name.startswith(name))


def ahead(items: Iterable[T], count: int = 2) -> Iterator[T]:
    """The same items, made in a thread, up to ``count`` of them before they are asked for.

    An error while making an item is raised where that item is asked for.

    Example:
        >>> from maskattn_kernels.common.background import ahead
        >>> list(ahead(number**2 for number in range(4)))
        [0, 1, 4, 9]
    """
    iterator, end = iter(items), object()
    with _pool(1) as thread:
        waiting: deque[Future] = deque(thread.submit(next, iterator, end) for _ in range(count))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(thread.submit(next, iterator, end))
            yield item


def map_ahead(function: Callable[[T], R], items: Iterable[T], threads: int = 2) -> Iterator[R]:
    """``map(function, items)`` in threads: results in order, twice as many under way as threads.

    Example:
        >>> from maskattn_kernels.common.background import map_ahead
        >>> list(map_ahead(abs, [-2, 3, -4]))
        [2, 3, 4]
    """
    iterator = iter(items)
    with _pool(threads) as pool:
        waiting = deque(pool.submit(function, item) for item in islice(iterator, 2 * threads))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in islice(iterator, 1))
            yield result


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` items; the last one may be shorter.

    Example:
        >>> from maskattn_kernels.common.background import batched
        >>> list(batched("abcde", 2))
        [['a', 'b'], ['c', 'd'], ['e']]
    """
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
