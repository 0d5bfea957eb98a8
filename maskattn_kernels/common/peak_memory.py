# SPDX-License-Identifier: BSD-3-Clause
"""Peak memory of one call: as the operating system sees it, or on a GPU as torch's allocator does.

On the CPU the kernel's record of the process's peak is set back, the call runs, and the growth of
the resident set from just before the call to its peak is the answer. Results of the call and every
scratch buffer count; the inputs do not. Memory that an earlier call left to the process can hide a
part of it, so the allocator hands its free memory back first.
"""

import ctypes
from collections.abc import Callable

import torch

__all__ = ["Unmeasurable", "gpu_peak_growth", "peak_growth", "peak_of_process"]


class Unmeasurable(Exception):
    """This system does not tell: it is not Linux, or a container whose /proc is read-only."""


PROC = "/proc/self"


def _status(field: str, process: int | None = None) -> int:
    """A memory field of a process in bytes; None = this one."""
    folder = PROC if process is None else f"/proc/{process}"
    try:
        with open(f"{folder}/status", encoding="ascii") as status:
            for line in status:
                if line.startswith(field + ":"):
                    return int(line.split()[1]) * 1024
    except OSError as error:
        raise Unmeasurable(str(error)) from None
    raise Unmeasurable(f"{folder}/status has no {field}")


def _set_peak_back() -> None:
    try:
        ctypes.CDLL(None).malloc_trim(0)  # so that memory freed before is not silently used again
        with open(f"{PROC}/clear_refs", "w", encoding="ascii") as refs:
            refs.write("5")
    except (OSError, AttributeError) as error:  # read-only, not permitted, no malloc_trim
        raise Unmeasurable(str(error)) from None


def peak_growth(call: Callable[[], object]) -> int:
    """Bytes that this process's resident set grows by during a ``call``, up to its highest point.

    Raises:
        Unmeasurable: this system does not tell.
    """
    _set_peak_back()
    before = _status("VmRSS")
    result = call()
    peak = _status("VmHWM")
    del result
    return max(0, peak - before)


def peak_of_process(process: int) -> int:
    """Highest resident bytes so far of a running process, since its program began.

    Its own ``getrusage`` would not do: that starts with what the process held that started it.

    Args:
        process: its number.

    Raises:
        Unmeasurable: this system does not tell.
    """
    return _status("VmHWM", process)


def gpu_peak_growth(call: Callable[[], object]) -> int:
    """Bytes that torch holds more of the GPU's memory during a ``call``."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
