# SPDX-License-Identifier: BSD-3-Clause
"""The machine and software of a measurement: a time means nothing without them."""

import datetime
import importlib.metadata
import platform

import torch

from maskattn_kernels import __version__, backends
from maskattn_kernels.common.commit import own_commit
from maskattn_kernels.common.processor import cpuinfo, processor_name

__all__ = ["gpu_facts", "machine_facts"]

#: CPU flags that decide which kernel tiers can run.
X86_FLAGS = ("avx2", "fma", "avx512f", "avx512bw", "avx512_bf16", "avx512_fp16", "amx_bf16")
ARM_FLAGS = ("asimd", "bf16", "sve")


def gpu_facts() -> dict[str, object]:
    """The current GPU and its software."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "gpu": properties.name,
        "gpu_arch": f"sm_{properties.major}{properties.minor}",
        "gpu_processors": properties.multi_processor_count,
        "gpu_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "triton": importlib.metadata.version("triton"),
    }


def machine_facts(device: str = "cpu") -> dict[str, object]:
    """CPU, versions, threads, instruction tier and date, as strings, numbers and lists for JSON.

    With device "cuda" also the facts of the GPU; otherwise ``gpu`` is None.
    """
    flags = set((cpuinfo("flags") or cpuinfo("Features")).split())
    return {
        "cpu": processor_name(),
        "arch": platform.machine(),
        "cpu_flags": [flag for flag in X86_FLAGS + ARM_FLAGS if flag in flags],
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "maskattn_kernels": __version__,
        "commit": own_commit(),
        "backends": [
            {
                "name": b.name,
                "available": b.available,
                "reasons": list(b.reasons),
                "build": dict(b.build),
            }
            for b in backends()
        ],
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "gpu": None,
        **(gpu_facts() if device == "cuda" else {}),
    }
