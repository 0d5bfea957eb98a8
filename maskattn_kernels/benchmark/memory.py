# SPDX-License-Identifier: BSD-3-Clause
"""Peak memory of one call: as the operating system sees it, or on a GPU as torch's allocator does.

On the CPU each measurement runs in a process of its own (forked from a server that has imported
torch and done nothing with it), so what one peer leaves behind is never another's. There the inputs
are made, the same code runs once on 64 tokens to load what it loads, the kernel's record of the
peak is set back, the call runs, and the growth of the resident set from just before the call to its
peak is reported. Results of the call and every scratch buffer count; the inputs do not.

Where the peak of a process cannot be set back (another system than Linux, a container whose /proc
is read-only), the answer is None.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
import sys
from collections.abc import Callable
from typing import Any

import torch


class Unmeasurable(Exception):
    """This system does not offer what is needed."""


PROC = "/proc/self"


def _status(field: str) -> int:
    """A memory field of this process in bytes."""
    try:
        with open(f"{PROC}/status", encoding="ascii") as status:
            for line in status:
                if line.startswith(field + ":"):
                    return int(line.split()[1]) * 1024
    except OSError as error:
        raise Unmeasurable(str(error)) from None
    raise Unmeasurable(f"{PROC}/status has no {field}")


def _set_peak_back() -> None:
    try:
        ctypes.CDLL(None).malloc_trim(0)  # so that memory freed before is not silently used again
        with open(f"{PROC}/clear_refs", "w", encoding="ascii") as refs:
            refs.write("5")
    except (OSError, AttributeError) as error:  # read-only, not permitted, no malloc_trim
        raise Unmeasurable(str(error)) from None


def peak_growth(call: Callable[[], object]) -> int:
    """Growth of this process's resident set during a call, from before it to its highest point.

    Raises:
        Unmeasurable: this system does not tell.
    """
    _set_peak_back()
    before = _status("VmRSS")
    result = call()
    peak = _status("VmHWM")
    del result
    return max(0, peak - before)


def gpu_peak_growth(call: Callable[[], object]) -> int:
    """Growth of what torch holds of the GPU's memory during a call."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _child(sender: Any, threads: int, function: Callable[..., int], args: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent ends this process
    torch.set_num_threads(threads)
    try:
        sender.send(function(*args))
    except Unmeasurable:
        sender.send(None)
    except Exception as error:
        sender.send(f"{type(error).__name__}: {error}")


def in_fresh_process(function: Callable[..., int], *args: Any) -> int | None:
    """Run ``function(*args)`` in a process of its own and hand back its number.

    Args:
        function: a function of a module, that can be named to another process.
        *args: its arguments, which must pickle.

    Returns:
        the number, or None where this system does not offer what is needed.

    Raises:
        RuntimeError: when the function raised, or its process was ended (out of memory).
    """
    if not sys.platform.startswith("linux"):
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["maskattn_kernels.benchmark.cells"])
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(sender, torch.get_num_threads(), function, args))
    child.start()
    sender.close()
    try:
        answer = receiver.recv()
    except EOFError:
        answer = "the process was ended, probably for its memory"
    except BaseException:
        child.kill()
        raise
    finally:
        child.join()
    if isinstance(answer, str):
        raise RuntimeError(answer)
    return answer
