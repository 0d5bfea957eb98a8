# SPDX-License-Identifier: BSD-3-Clause
"""The Triton backend: masked attention on any GPU that Triton reaches, with nothing compiled at
install.

The ops are registered here; the kernels, and triton, are loaded at the first call: other backends
do not wait for them, and a triton that cannot be imported breaks nothing else. With
TRITON_INTERPRET=1 in the environment the same kernels run on the CPU, slowly, in Triton's
interpreter, which is how they are tested where there is no GPU.
"""

import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import torch

from maskattn_kernels.backends.base import (
    OPTIONAL_SCHEMAS,
    SCHEMAS,
    Backend,
    kernel_limits,
    too_old,
)
from maskattn_kernels.problem import Problem

INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")
INSTALLED = importlib.util.find_spec("triton") is not None


class TritonBackend(Backend):
    name = "triton"

    def unavailable(self) -> list[str]:
        why = [] if INSTALLED else ["triton is not installed"]
        if INTERPRETED:
            return why
        if not torch.cuda.is_available():
            built = torch.version.cuda or torch.version.hip
            lack = "finds no GPU" if built else "is built without CUDA and ROCm"
            hint = "TRITON_INTERPRET=1 runs it on the CPU, for tests"
            return [*why, f"needs a GPU, and torch {torch.__version__} {lack} ({hint})"]
        return why + too_old()

    def reasons(self, problem: Problem) -> list[str]:
        why = [] if INSTALLED else ["triton is not installed"]
        if problem.device_type == "cpu":
            if not INTERPRETED:
                why.append(
                    "runs on cuda tensors, and on cpu tensors only if TRITON_INTERPRET=1 is in "
                    "the environment when maskattn_kernels is imported"
                )
        elif problem.device_type != "cuda":
            why.append(f"runs on cuda tensors, got {problem.device_type}")
        elif not INTERPRETED:
            why += too_old()
        return why + kernel_limits(problem)

    def build(self) -> dict[str, str]:
        if not INSTALLED:
            return {}
        facts = {"triton": importlib.metadata.version("triton")}
        return {**facts, "interpreted": "yes"} if INTERPRETED else facts


@cache
def _launch() -> ModuleType:
    """The host side of the kernels, which imports triton."""
    return importlib.import_module("maskattn_kernels.backends.triton_launch")


def _loading(name: str) -> Callable[..., Any]:
    def op(*args: Any) -> Any:
        return getattr(_launch(), name)(*args)

    return op


_LIBRARY = torch.library.Library("maskattn", "FRAGMENT")
for _name, _schema in (SCHEMAS | {"infer": OPTIONAL_SCHEMAS["infer"]}).items():
    _LIBRARY.define(f"triton_{_name}{_schema}")
    for _key in ("CUDA", "CPU") if INTERPRETED else ("CUDA",):
        _LIBRARY.impl(f"triton_{_name}", _loading(_name), _key)
