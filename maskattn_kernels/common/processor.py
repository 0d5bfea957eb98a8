# SPDX-License-Identifier: BSD-3-Clause
"""What the processor is called, and what Linux says of it."""

import platform
import re
from pathlib import Path

__all__ = ["cpuinfo", "processor_name"]


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
