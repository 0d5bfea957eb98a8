# SPDX-License-Identifier: BSD-3-Clause
"""What the processor is called, and what Linux says of it."""

import platform
import re
from pathlib import Path

__all__ = ["cpuinfo", "has_slow_bfloat16_pairs", "processor_name"]


def cpuinfo(key: str) -> str:
    """The first value of a ``key`` of /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(rf"^{key}\s*:\s*(.*)$", text, re.MULTILINE)
    return found.group(1).strip() if found else ""


def processor_name() -> str:
    """The processor's name, or of its architecture where the system does not tell.

    Example:
        >>> from maskattn_kernels.common.processor import processor_name
        >>> isinstance(processor_name(), str)
        True
    """
    return cpuinfo("model name") or platform.processor() or platform.machine()


def has_slow_bfloat16_pairs() -> bool:
    """Whether AVX512-BF16 multiplies fewer values in a cycle than float32 does.

    So it is on Intel's cores with AVX512-FP16 (Sapphire and Emerald Rapids), whose bfloat16 is fast
    by AMX only, which a virtual machine may hide. csrc/cpu/tiers.cpp has the same rule. False where
    the system does not tell (only Linux does).

    Example:
        >>> from maskattn_kernels.common.processor import has_slow_bfloat16_pairs
        >>> has_slow_bfloat16_pairs() in (True, False)
        True
    """
    return cpuinfo("vendor_id") == "GenuineIntel" and "avx512_fp16" in cpuinfo("flags").split()
