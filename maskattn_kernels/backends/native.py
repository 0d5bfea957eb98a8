# SPDX-License-Identifier: BSD-3-Clause
"""The compiled backends. The only module that imports the compiled libraries, and it never fails
to import.

Importing `maskattn_kernels._C` registers the CPU ops, `maskattn_kernels._cuda` those for NVIDIA
GPUs; the latter is loaded only into a torch that has CUDA. When that is not possible, the reason is
kept in words for `backends()` and for the error of a call that asks for the backend.
"""

import json
from importlib import resources

import torch

from maskattn_kernels.backends.base import SCHEMAS, Backend, kernel_limits, too_old
from maskattn_kernels.problem import Problem

try:
    from maskattn_kernels import _C

    _IMPORT_ERROR: Exception | None = None
except (ImportError, OSError, RuntimeError) as error:  # absent; cannot be loaded; ops refused
    _C = None  # type: ignore[assignment]
    _IMPORT_ERROR = error

_CUDA_ERROR: Exception | None = None
if torch.version.cuda:
    try:
        from maskattn_kernels import _cuda
    except (ImportError, OSError, RuntimeError) as error:
        _CUDA_ERROR = error


def _why_not_loaded(library: str, error: Exception | None, prefix: str, report: str) -> list[str]:
    """Why a library is not there with all ops of its backend; `report` is the key of the build's
    own words."""
    if error is not None:
        if isinstance(error, ImportError) and error.name == "maskattn_kernels":
            return [f"the {library} is not built{_build_report(report)}"]
        text = " ".join(str(error).split())
        return [f"the {library} does not load with torch {torch.__version__}: {text}"]
    missing = [f"{prefix}_{n}" for n in SCHEMAS if not hasattr(torch.ops.maskattn, f"{prefix}_{n}")]
    return [f"the {library} lacks the ops {', '.join(missing)}"] if missing else []


def _build_report(key: str) -> str:
    """What the build left in words when it built nothing, as ': reason'."""
    report = resources.files("maskattn_kernels") / "_build_report.json"
    if not report.is_file():
        return ""
    reason = json.loads(report.read_text()).get(key, "")
    return f": {reason}" if reason else ""


class CpuBackend(Backend):
    name = "cpu"

    def __init__(self) -> None:
        self._not_loaded = _why_not_loaded("compiled library", _IMPORT_ERROR, "cpu", "reason")

    def unavailable(self) -> list[str]:
        if self._not_loaded:
            return self._not_loaded
        try:
            _C.cpu_tier()
        except RuntimeError as error:  # MASKATTN_CPU_TIER names a tier that cannot run here
            return [" ".join(str(error).split())]
        return []

    def reasons(self, problem: Problem) -> list[str]:
        # A wrong MASKATTN_CPU_TIER is left to the op, which reads it at every call and raises.
        why = list(self._not_loaded)
        if problem.device_type != "cpu":
            why.append(f"runs on cpu tensors, got {problem.device_type}")
        return why + kernel_limits(problem)

    def build(self) -> dict[str, str]:
        if self._not_loaded:
            return {}
        facts = dict(_C.build_info())
        if not self.unavailable():
            facts["tier"] = _C.cpu_tier()
        return facts


class CudaBackend(Backend):
    name = "cuda"
    by_name_only = "it has not been measured on a GPU yet"

    def __init__(self) -> None:
        self._not_loaded: list[str] = []
        if torch.version.cuda:
            self._not_loaded = _why_not_loaded("CUDA library", _CUDA_ERROR, "cuda", "cuda_reason")

    def unavailable(self) -> list[str]:
        if not torch.version.cuda:
            return [f"needs an NVIDIA GPU, and torch {torch.__version__} is built without CUDA"]
        if not torch.cuda.is_available():
            return [*self._not_loaded, f"torch {torch.__version__} finds no GPU"]
        return self._not_loaded + too_old()

    def reasons(self, problem: Problem) -> list[str]:
        why = list(self._not_loaded)
        if problem.device_type != "cuda" or not torch.version.cuda:
            why.append(f"runs on tensors on an NVIDIA GPU, got {problem.device_type}")
        else:
            why += too_old()
        return why + kernel_limits(problem)

    def build(self) -> dict[str, str]:
        return {} if self._not_loaded or not torch.version.cuda else dict(_cuda.build_info())
