# SPDX-License-Identifier: BSD-3-Clause
"""Peak memory of a program that does nothing but run a network on some images.

A process of its own for each: it loads only what it needs, so that of a file in ONNX Runtime has no
torch in it. The system's record of its peak is read while it waits to be ended.
"""

import subprocess
import tempfile
from collections.abc import Sequence

from maskattn_kernels.common.errors import CommandError
from maskattn_kernels.common.peak_memory import Unmeasurable, peak_of_process

__all__ = ["READY", "ProgramEnded", "peak_of_program"]

READY = "ready"
"""What a program prints when it is done, before it waits for the end of its input."""


class ProgramEnded(CommandError):
    """A program ended before it was done, out of memory for instance."""


def peak_of_program(words: Sequence[str]) -> int | None:
    """Highest resident bytes of a program until it prints `READY`; None = not told by this system.

    Args:
        words: of its command line.

    Raises:
        ProgramEnded: it ended before; with the last line of its errors.
    """
    with (
        tempfile.TemporaryFile("w+", errors="replace") as errors,
        subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as program,
    ):
        try:
            for line in program.stdout or ():
                if line.strip() == READY:
                    return peak_of_process(program.pid)
        except Unmeasurable:
            return None
        finally:
            program.kill()
        errors.seek(0)
        last = errors.read().strip().rpartition("\n")[2]
        raise ProgramEnded(
            f"its process ended with {program.wait()}{': ' if last else ''}{last[:200]}"
        )
