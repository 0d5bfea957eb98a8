# SPDX-License-Identifier: BSD-3-Clause
"""``maskattn info``: versions, the machine, backends with their reasons, and what runs a call."""

import platform
from collections.abc import Sequence

import torch

from maskattn_kernels import __version__, backends, explain
from maskattn_kernels.benchmark.machine import machine_facts
from maskattn_kernels.common.command_line import Parser

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Run ``maskattn info`` with the arguments ``argv``; returns the exit code."""
    Parser(prog="maskattn info", description="Versions, this machine, backends.").parse_args(argv)
    facts = machine_facts()
    flags = " ".join(facts["cpu_flags"]) or "none of interest"  # type: ignore[arg-type]
    python = platform.python_version()
    print(f"maskattn_kernels {__version__}, torch {torch.__version__}, python {python}")
    print(f"{facts['cpu']} ({facts['arch']}, {facts['threads']} threads; {flags})")
    print("backends, best first:")
    for record in backends():
        state = "can run" if record.available else "cannot run"
        print(f"  {record.name}: {state}")
        for reason in record.reasons:
            print(f"    {reason}")
        for key, value in record.build.items():
            print(f"    {key}: {value}")
    tokens = torch.empty(1, 1, 4096, 64)
    mask = torch.ones(1, 4096, dtype=torch.bool)
    chosen = explain(tokens, tokens, tokens, key_mask=mask)
    print(f"a float32 call on the CPU with 4096 tokens runs on: {chosen.backend}")
    return 0
