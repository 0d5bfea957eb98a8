# SPDX-License-Identifier: BSD-3-Clause
"""The compiled backends. The only module that loads the compiled libraries, and it never fails to
import.

Loading `lib/libmaskattn_cpu.so` registers the CPU ops, `lib/libmaskattn_cuda.so` those for NVIDIA
GPUs; the latter is loaded only into a torch that has CUDA. There is no Python in either: their
build facts come through C functions. When a library cannot be loaded, the reason is kept in words
for `backends()` and for the error of a call that asks for the backend.
"""

import ctypes
import json
import re
from pathlib import Path

import torch

from maskattn_kernels.backends.base import SCHEMAS, Backend, kernel_limits, too_old
from maskattn_kernels.problem import Problem
from maskattn_kernels.torch_compat import driver_cuda

PACKAGE = Path(__file__).parents[1]


class Library:
    """The compiled library of one backend, or the reasons why it is not loaded."""

    def __init__(self, backend: str, words: str, report_key: str) -> None:
        """`report_key` is where the build report says why this library was not built."""
        self.backend = backend
        self.not_loaded: list[str] = []
        path = PACKAGE / "lib" / f"libmaskattn_{backend}.so"
        if not path.is_file():
            self.not_loaded.append(f"the {words} is not built{_build_report(report_key)}")
            return
        try:
            torch.ops.load_library(path)
            self._functions = ctypes.CDLL(str(path))
        except (OSError, RuntimeError) as error:  # cannot be loaded; ops refused
            text = " ".join(str(error.__cause__ or error).split())
            version = torch.__version__
            self.not_loaded.append(f"the {words} does not load with torch {version}: {text}")
            return
        ops = [f"{backend}_{name}" for name in SCHEMAS]
        missing = [name for name in ops if not hasattr(torch.ops.maskattn, name)]
        if missing:
            self.not_loaded.append(f"the {words} lacks the ops {', '.join(missing)}")

    def build_info(self) -> dict[str, str]:
        """What was compiled; empty where the library is not loaded."""
        if self.not_loaded:
            return {}
        function = self._functions[f"maskattn_{self.backend}_build_info"]
        function.restype = ctypes.c_char_p
        return dict(line.split(": ", 1) for line in function().decode().splitlines())

    def tier(self) -> str:
        """The instruction-set tier of a call now. RuntimeError if it cannot run here."""
        function = self._functions["maskattn_cpu_tier"]
        function.restype = ctypes.c_char_p
        error = ctypes.c_char_p()
        tier = function(ctypes.byref(error))
        if tier is None:
            raise RuntimeError((error.value or b"").decode())
        return tier.decode()


def _build_report(key: str) -> str:
    """What the build left in words when it built nothing, as ': reason'."""
    report = PACKAGE / "_build_report.json"
    if not report.is_file():
        return ""
    reason = json.loads(report.read_text()).get(key, "")
    return f": {reason}" if reason else ""


class CpuBackend(Backend):
    name = "cpu"
    takes_any_bias = True

    def __init__(self) -> None:
        self._library = Library("cpu", "compiled library", "reason")

    def unavailable(self) -> list[str]:
        if self._library.not_loaded:
            return self._library.not_loaded
        try:
            self._library.tier()
        except RuntimeError as error:  # MASKATTN_CPU_TIER names a tier that cannot run here
            return [str(error)]
        return []

    def reasons(self, problem: Problem) -> list[str]:
        # A wrong MASKATTN_CPU_TIER is left to the op, which reads it at every call and raises.
        why = list(self._library.not_loaded)
        if problem.device_type != "cpu":
            why.append(f"runs on cpu tensors, got {problem.device_type}")
        return why + kernel_limits(problem)

    def build(self) -> dict[str, str]:
        facts = self._library.build_info()
        return facts if self.unavailable() else facts | {"tier": self._library.tier()}


class CudaBackend(Backend):
    name = "cuda"
    by_name_only = "triton is faster on the GPU that was measured"

    def __init__(self) -> None:
        self._library: Library | None = None
        if torch.version.cuda:
            self._library = Library("cuda", "CUDA library", "cuda_reason")

    def unavailable(self) -> list[str]:
        if self._library is None:
            return [f"needs an NVIDIA GPU, and torch {torch.__version__} is built without CUDA"]
        if not torch.cuda.is_available():
            return [*self._library.not_loaded, f"torch {torch.__version__} finds no GPU"]
        return self._library.not_loaded + too_old() + _driver_too_old(self.build())

    def reasons(self, problem: Problem) -> list[str]:
        why = list(self._library.not_loaded) if self._library else []
        if problem.device_type != "cuda" or not self._library:
            why.append(f"runs on tensors on an NVIDIA GPU, got {problem.device_type}")
        else:
            why += too_old() + _driver_too_old(self.build())
        return why + kernel_limits(problem)

    def build(self) -> dict[str, str]:
        return self._library.build_info() if self._library else {}


def _driver_too_old(build: dict[str, str]) -> list[str]:
    """Why the driver runs nothing that this CUDA compiled; empty when it does."""
    nvcc = re.search(r"nvcc (\d+)", build.get("compiler", ""))
    if nvcc is None:
        return []
    driver = driver_cuda() // 1000
    if int(nvcc[1]) <= driver:
        return []
    cure = f"build it with CUDA {driver}, or update the driver"
    return [f"the CUDA library is built with CUDA {nvcc[1]}, the driver has CUDA {driver}: {cure}"]
