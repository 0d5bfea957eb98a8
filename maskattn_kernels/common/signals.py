# SPDX-License-Identifier: BSD-3-Clause
"""Ctrl-C and SIGTERM: what they raise, the exit codes, and handlers for the time of a context."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

__all__ = [
    "SIGNALS",
    "Terminated",
    "end_process",
    "exit_code",
    "handle",
    "is_command",
    "raise_interrupt",
]

SIGNALS = (signal.SIGINT, signal.SIGTERM)

Handler = Callable[[int, FrameType | None], object]


class Terminated(KeyboardInterrupt):
    """SIGTERM, as Slurm, Kubernetes, ``docker stop`` and ``timeout`` send it.

    What ends well on Ctrl-C ends well on this, but with exit code 143.
    """


def exit_code(stop: KeyboardInterrupt) -> int:
    """The exit code of a process that a signal ended.

    Args:
        stop: what the signal raised; 143 for `Terminated`, else 130.
    """
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


def is_command() -> bool:
    """Whether this process is the command ``maskattn``, and not a program that imports us."""
    name, started = sys.argv[0], sys.orig_argv
    as_module = "-m" in started and "maskattn_kernels.cli" in started
    return Path(name).stem == "maskattn" or as_module


def raise_interrupt(number: int, frame: FrameType | None) -> None:
    """A handler that raises `KeyboardInterrupt`, or `Terminated` on SIGTERM.

    Args:
        number: of the signal.
        frame: that was interrupted; not used.
    """
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def end_process(number: int, frame: FrameType | None) -> None:
    """A handler that says so in one line and ends the process, without any cleaning up.

    Args:
        number: of the signal.
        frame: that was interrupted; not used.
    """
    if os.environ.get("LOCAL_RANK", "0") == "0":  # the first process speaks for all
        words = " ".join(["maskattn", *sys.argv[1:2]])
        what = "terminated" if number == signal.SIGTERM else "interrupted"
        os.write(2, f"{words}: {what}\n".encode())
    os._exit(128 + number)


@contextmanager
def handle(handler: Handler) -> Iterator[None]:
    """Let ``handler`` have SIGINT and SIGTERM for the time of the context.

    In another thread than the main one nothing changes: Python has no handlers there.

    Args:
        handler: for the first signal; later ones end the process if it is the command, and raise
            in a program that imports us.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: list[int] = []

    def first_or_later(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        if len(seen) == 1:
            handler(number, frame)
        elif is_command():
            end_process(number, frame)
        else:
            raise_interrupt(number, frame)

    before = {number: signal.signal(number, first_or_later) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before or signal.SIG_DFL)
