# SPDX-License-Identifier: BSD-3-Clause
"""The fa4 backend: inference by the kernels of FlashAttention-4, on Hopper and Blackwell GPUs.

The extra `[fa4]` installs the package flash-attn-4, which compiles a kernel at the first call of a
kind. The ops are registered here. `fa4_calls` and `fa4_kernels`, and with them that package, are
loaded at the first call.
"""

import importlib
import importlib.metadata
import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor

from maskattn_kernels.backends import triton_ops
from maskattn_kernels.backends.base import SCHEMAS, Backend
from maskattn_kernels.common.extras import missing_package
from maskattn_kernels.problem import Problem

NO_GRADIENTS = "computes no gradients: call it under torch.no_grad()"
MAJORS = (9, 10, 11)  # compute capabilities whose kernels read pages of one token
# For others its loader leaves out the last keys of a tile on Hopper: tiles of 144, 112 or 80 keys
# are no multiple of the 64, 32 or 16 that its threads copy at once (4.0.0b36, `paged_kv.py`).
HOPPER_HEAD_DIMS = (16, 32, 48, 64, 112, 128, 192, 256)
MAX_TOKENS = 2**31  # of all heads and batch entries: a page number is an int32


class Fa4Backend(Backend):
    name = "fa4"
    by_name_only = "a call costs the host about a millisecond"

    def unavailable(self) -> list[str]:
        if not torch.version.cuda or not torch.cuda.is_available():
            return [*MISSING, f"needs an NVIDIA GPU, and torch {torch.__version__} finds none"]
        return MISSING + _wrong_chip()

    def reasons(self, problem: Problem) -> list[str]:
        why = list(MISSING)
        if problem.device_type != "cuda" or not torch.version.cuda:
            why.append(f"runs on tensors on an NVIDIA GPU, got {problem.device_type}")
            return why + limits(problem, MAJORS[0])
        return why + _wrong_chip() + limits(problem, torch.cuda.get_device_capability()[0])

    def build(self) -> dict[str, str]:
        found = importlib.metadata.distributions(name="flash-attn-4") if INSTALLED else ()
        return {distribution.name: distribution.version for distribution in found}


def limits(problem: Problem, major: int) -> list[str]:
    """Why the kernels for a compute capability cannot run this call; empty when they can."""
    why = []
    if problem.dtype not in (torch.bfloat16, torch.float16):
        why.append(f"supports bfloat16 and float16, got {problem.dtype}")
    head_dim = problem.head_dim
    if head_dim % 16 or not head_dim:
        why.append(f"needs a head_dim that is a multiple of 16, got {head_dim}")
    elif major == 9 and head_dim <= 256 and head_dim not in HOPPER_HEAD_DIMS:
        right = ", ".join(map(str, HOPPER_HEAD_DIMS))
        why.append(f"gets other head_dims than {right} wrong on Hopper GPUs, got {head_dim}")
    elif major > 9 and 128 < head_dim < 256:
        why.append(f"needs a head_dim up to 128, or 256, on this GPU, got {head_dim}")
    tokens = problem.batch * problem.heads * max(problem.query_len, problem.key_len)
    if tokens >= MAX_TOKENS:
        why.append(f"takes fewer than 2^31 tokens in all heads and batch entries, got {tokens}")
    if problem.gradients:
        why.append(NO_GRADIENTS)
    return why


def _is_installed() -> bool:
    """Whether there is a flash_attn.cute; it is not imported, nor an older flash_attn beside it."""
    found = importlib.util.find_spec("flash_attn")
    folders = found.submodule_search_locations if found else None
    return any(Path(folder, "cute", "interface.py").is_file() for folder in folders or ())


def missing(installed: bool) -> list[str]:
    """The packages that lack, each with the command that installs it."""
    why = []
    if not installed:
        why.append(missing_package(ModuleNotFoundError(name="flash_attn"), "fa4"))
    if not triton_ops.INSTALLED:
        why.append("triton, which lists the selected tokens, is not installed")
    return why


INSTALLED = _is_installed()
MISSING = missing(INSTALLED)  # once: compiled code reads it at each call


def _wrong_chip() -> list[str]:
    major, minor = torch.cuda.get_device_capability()
    if major in MAJORS:
        return []
    return [f"needs compute capability 9.x, 10.x or 11.x, the GPU has {major}.{minor}"]


@cache
def _calls() -> ModuleType:
    return importlib.import_module("maskattn_kernels.backends.fa4_calls")


def _select_tokens(mask: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.maskattn.triton_select_tokens(mask)


def _fwd(*args: Any) -> tuple[Tensor, Tensor]:
    return _calls().fwd(*args)


def _bwd(*args: Any) -> NoReturn:
    raise NotImplementedError(f"backend: 'fa4' {NO_GRADIENTS}")


_LIBRARY = torch.library.Library("maskattn", "FRAGMENT")
for _name, _function in (("select_tokens", _select_tokens), ("fwd", _fwd), ("bwd", _bwd)):
    _LIBRARY.define(f"fa4_{_name}{SCHEMAS[_name]}")
    _LIBRARY.impl(f"fa4_{_name}", _function, "CUDA")
