# SPDX-License-Identifier: BSD-3-Clause
"""A DataLoader whose processes hand on errors as they are.

torch raises an error of a loading process with that process's traceback as its text, 1,500
characters in which the name of the file comes last.
"""

import atexit
import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from typing import Any, cast
from weakref import WeakSet

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from maskattn_kernels.common.signals import SIGNALS
from maskattn_kernels.common.text import one_line

__all__ = ["Loader"]

#: Loading processes. They ignore SIGTERM, by which multiprocessing ends those that are left over.
_STARTED: WeakSet[Any] = WeakSet()
os.register_at_fork(after_in_child=_STARTED.clear)  # they are no children of a child


@atexit.register
def _end_processes() -> None:
    """End the loading processes of iterators that are still in use when this process ends."""
    for process in _STARTED:
        process.kill()


class Loader(DataLoader):
    """Batches of a map-style data set.

    Args:
        items: the data set.
        workers: processes that load; 0 = this process.
        collate: makes a batch of a list of items.
        options: of `torch.utils.data.DataLoader`.

    Raises:
        Exception: what reading an item raised, wherever it was read; its cause has the traceback of
            the loading process.
    """

    def __init__(
        self, items: Dataset, workers: int, collate: Callable[[list[Any]], Any], **options: Any
    ) -> None:
        super().__init__(
            _Caught(items),
            num_workers=workers,
            collate_fn=partial(_collated, collate),
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_ignore_signals,
            **options,
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        failure = yield from self._until_failure()
        if failure is not None:
            # Nothing here holds the iterator any more, whose end ends the processes.
            self._iterator = None
            raise failure.error from RuntimeError(f"in a loading process:\n{failure.trace}")

    def _until_failure(self) -> Generator[Any, None, "_Failure | None"]:
        before = set(multiprocessing.active_children())
        batches = super().__iter__()
        _STARTED.update(set(multiprocessing.active_children()) - before)
        for batch in batches:
            if isinstance(batch, _Failure):
                return batch
            yield batch
        return None


@dataclass
class _Failure:
    """An error of a loading process, on its way to the process that trains."""

    error: Exception
    trace: str


class _Caught(Dataset):
    """Items, or in a loading process a `_Failure` in place of one that cannot be read."""

    def __init__(self, items: Dataset) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(cast(Sized, self.items))

    def __getitem__(self, index: Any) -> Any:
        if get_worker_info() is None:
            return self.items[index]
        try:
            return self.items[index]
        except Exception as error:
            return _Failure(_portable(error), traceback.format_exc())


def _portable(error: Exception) -> Exception:
    """The error, or where it does not survive pickling another one that says the same."""
    try:
        if type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    except Exception:  # whatever its class does
        pass
    return RuntimeError(f"{type(error).__name__}: {one_line(error)}")


def _collated(collate: Callable[[list[Any]], Any], items: Sequence[Any]) -> Any:
    failures = (item for item in items if isinstance(item, _Failure))
    return next(failures, None) or collate(list(items))


def _ignore_signals(worker: int) -> None:
    """Terminals and schedulers send signals to the loading processes as well; the training process
    ends them."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
