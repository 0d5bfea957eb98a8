# SPDX-License-Identifier: BSD-3-Clause
"""The compiled backends. The only module that imports the compiled library, and it never fails to
import.

Importing `maskattn_kernels._C` registers the ops. When that is not possible, the reason is kept in
words for `backends()` and for the error of a call that asks for the backend.
"""

import json
from importlib import resources

import torch

from maskattn_kernels.backends.base import SCHEMAS, Backend
from maskattn_kernels.problem import Problem

try:
    from maskattn_kernels import _C

    _IMPORT_ERROR: Exception | None = None
except (ImportError, OSError, RuntimeError) as error:  # absent; cannot be loaded; ops refused
    _C = None  # type: ignore[assignment]
    _IMPORT_ERROR = error


def _why_not_loaded() -> list[str]:
    if _C is None:
        if isinstance(_IMPORT_ERROR, ImportError) and _IMPORT_ERROR.name == "maskattn_kernels":
            return [f"the compiled library is not built{_build_report()}"]
        text = " ".join(str(_IMPORT_ERROR).split())
        return [f"the compiled library does not load with torch {torch.__version__}: {text}"]
    missing = [n for n in SCHEMAS if not hasattr(torch.ops.maskattn, f"cpu_{n}")]
    if missing:
        return [f"the compiled library lacks the ops {', '.join('cpu_' + n for n in missing)}"]
    return []


def _build_report() -> str:
    """What the build left in words when it built nothing, as ': reason'."""
    report = resources.files("maskattn_kernels") / "_build_report.json"
    if not report.is_file():
        return ""
    reason = json.loads(report.read_text()).get("reason", "")
    return f": {reason}" if reason else ""


class CpuBackend(Backend):
    name = "cpu"
    dtypes = (torch.float32, torch.bfloat16, torch.float16)

    def __init__(self) -> None:
        self._not_loaded = _why_not_loaded()

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
        if problem.dtype not in self.dtypes:
            why.append(f"supports float32, bfloat16 and float16, got {problem.dtype}")
        if problem.head_dim == 0:
            why.append("needs a head_dim of at least 1, got 0")
        return why

    def build(self) -> dict[str, str]:
        if self._not_loaded:
            return {}
        facts = dict(_C.build_info())
        if not self.unavailable():
            facts["tier"] = _C.cpu_tier()
        return facts
