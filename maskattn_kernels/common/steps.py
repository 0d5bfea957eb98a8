# SPDX-License-Identifier: BSD-3-Clause
"""Progress of a command that has a known number of steps."""

import sys
import time

__all__ = ["print_step"]


def print_step(number: int, steps: int, text: str, start: float) -> None:
    """One line on stderr for a finished step: its number, the time so far, and what it was.

    Args:
        number: of the step, from 1.
        steps: how many there are.
        text: about the step.
        start: `time.monotonic` when the first step began.
    """
    elapsed = int(time.monotonic() - start)
    clock = f"{elapsed // 60}:{elapsed % 60:02d}"
    place = f"{number:>{len(str(steps))}}/{steps}"
    print(f"[{place} {clock}] {text}".rstrip(), file=sys.stderr, flush=True)
