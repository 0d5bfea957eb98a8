# SPDX-License-Identifier: BSD-3-Clause
"""How far a long command is: one line on a terminal, a line now and then in a file."""

import shutil
import sys
import time
from typing import TextIO

__all__ = ["Progress"]


class Progress:
    """Progress on stderr.

    On a terminal one line is rewritten. Elsewhere (a file, a pipe) a line is printed every
    ``seconds``, and the last one at the end.

    Args:
        seconds: between two lines, where stderr is not a terminal.
        stream: where to print; None = stderr.
        after: seconds at the beginning, in which states are not shown.

    Example:
        >>> import sys
        >>> from maskattn_kernels.common.progress import Progress
        >>> with Progress(stream=sys.stdout) as progress:
        ...     for number in range(1, 4):
        ...         progress.show(f"{number}/3 images")
        3/3 images
    """

    def __init__(
        self, seconds: float = 10.0, stream: TextIO | None = None, after: float = 0.0
    ) -> None:
        self.seconds = seconds
        self.stream = sys.stderr if stream is None else stream
        self.terminal = self.stream.isatty()
        self._printed_at = time.monotonic()
        self._shown_from = self._printed_at + after
        self._pending: str | None = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def show(self, text: str) -> None:
        """Show ``text`` as the state now; it replaces the one before."""
        if time.monotonic() < self._shown_from:
            return
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1  # a line that wraps cannot be rewritten
            print(f"\r{text[:width]}\033[K", end="", file=self.stream, flush=True)
            self._pending = ""
        elif time.monotonic() - self._printed_at < self.seconds:
            self._pending = text
        else:
            self._print(text)

    def note(self, text: str) -> None:
        """Print ``text`` as a line that stays."""
        self.close()
        self._print(text)

    def close(self) -> None:
        """Leave the last state on a line of its own, so that others can print."""
        if self._pending is not None:
            self._print(self._pending)

    def _print(self, text: str) -> None:
        print(text, file=self.stream, flush=True)
        self._printed_at, self._pending = time.monotonic(), None
