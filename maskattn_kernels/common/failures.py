# SPDX-License-Identifier: BSD-3-Clause
"""What to say of a command that failed while it ran: the reason in one line, and the cure."""

import errno
import os

from maskattn_kernels.common.text import first_line

__all__ = ["is_full_disk", "known_failure"]

_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_NO_MEMORY = ("can't allocate memory", "out of memory", "not enough memory")


def is_full_disk(error: BaseException) -> bool:
    """Whether ``error`` says that a file could not grow: a full disk, a quota, or a limit."""
    return isinstance(error, OSError) and error.errno in _FULL


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory of the CPU or of a GPU was missing."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(t in str(error).lower() for t in _NO_MEMORY)


def known_failure(error: BaseException) -> str | None:
    """A line that says all there is to say, or None for an error that is not known here.

    Example:
        >>> from maskattn_kernels.common.failures import known_failure
        >>> known_failure(OSError(28, "No space left on device", "out/labels/1.png"))
        'out/labels/1.png: No space left on device'
        >>> known_failure(MemoryError())
        'out of memory (MemoryError); smaller batches or smaller images need less'
    """
    if is_out_of_memory(error):
        return f"out of memory ({first_line(error)}); smaller batches or smaller images need less"
    if isinstance(error, OSError) and error.errno:
        reason = error.strerror or os.strerror(error.errno)
        return reason if error.filename is None else f"{error.filename}: {reason}"
    return None
