# SPDX-License-Identifier: BSD-3-Clause
"""Peak memory on the CPU, each measurement in a process of its own.

It is forked from a server that has imported torch and done nothing with it, so what one peer leaves
behind is never another's. There the inputs are made, the same code runs once on 64 tokens to load
what it loads, and `peak_growth` measures the call. Where it cannot, the answer is None.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Callable
from typing import Any

import torch

from maskattn_kernels.common.peak_memory import Unmeasurable


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
