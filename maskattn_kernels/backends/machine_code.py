# SPDX-License-Identifier: BSD-3-Clause
"""What is in the machine code of a GPU kernel: read from a cubin, judged, and printed in a table.

For the kernels of Triton (`maskattn tiles`), of CUDA (`tools/cuda_kernels.py`), in CuTe-DSL
(`tools/cute_kernels.py`) and of FlashAttention-4 (`tools/fa4_kernels.py`) alike.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar


@dataclass(frozen=True, kw_only=True)
class MachineCode:
    """One kernel for one chip. Counts are of instructions."""

    registers: int
    stack: int  # bytes a thread keeps outside of its registers
    spills: int
    tensor: int  # products on the tensor cores: HGMMA, tcgen05, HMMA or MFMA
    wgmma: int
    async_copies: int
    float_atomics: int


def find_tool(name: str) -> str | None:
    """Where a program of the CUDA toolkit is, on the path or in the wheel of triton."""
    triton = importlib.util.find_spec("triton")
    folders = [Path(p) for p in triton.submodule_search_locations or []] if triton else []
    wheels = [str(folder / "backends" / "nvidia" / "bin") for folder in folders]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(wheels))


def read_cubin(cubin: Path, cuobjdump: str) -> Iterator[tuple[str, str, dict[str, int]]]:
    """For every kernel of a file its symbol, its machine code, and the fields of MachineCode."""

    def dump(option: str) -> str:
        command = [cuobjdump, option, str(cubin)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    bodies = r"Function : (\S+)\n(.*?)(?=Function : |\Z)"
    codes = dict(re.findall(bodies, dump("-sass"), flags=re.DOTALL))
    usage = r"Function (\S+):\s+REG:(\d+) STACK:(\d+)"
    for symbol, registers, stack in re.findall(usage, dump("-res-usage")):
        code = codes[symbol]
        yield (
            symbol,
            code,
            {
                "registers": int(registers),
                "stack": int(stack),
                "spills": count(r"\b(LDL|STL)\b", code),
                "tensor": count(r"\b(HGMMA|HMMA|UTCHMMA|UTCQMMA)\b", code),
                "wgmma": count(r"\bHGMMA\b", code),
                "async_copies": count(r"\bLDGSTS\b", code),
                "float_atomics": count(
                    r"\b(RED|REDG|ATOM|ATOMG)\b[.\w]*\.(F16|F32|BF16|FTZ)", code
                ),
            },
        )


def count(pattern: str, code: str) -> int:
    """How often a regular expression is found in machine code."""
    return sum(1 for _ in re.finditer(pattern, code))


def common_faults(kernel: MachineCode, *, spills: bool, tensor: bool, copies: bool) -> list[str]:
    """What no kernel may have, and what this one must have: no spills, products on the tensor
    cores, asynchronous copies."""
    why = []
    if kernel.float_atomics:
        why.append(f"{kernel.float_atomics} atomic additions of floats: not repeatable")
    if spills and (kernel.stack or kernel.spills):
        why.append(f"{kernel.stack} bytes of stack, {kernel.spills} spills")
    if tensor and not kernel.tensor:
        why.append("no product on the tensor cores")
    if copies and not kernel.async_copies:
        why.append("no asynchronous copy in its gathers")
    return why


COLUMNS = " regs  stack spills tensor  async"


def cells(kernel: MachineCode, faults: list[str]) -> str:
    """A kernel's cells under COLUMNS, and what is wrong with it."""
    return (
        f"{kernel.registers:5} {kernel.stack:6} {kernel.spills:6} {kernel.tensor:6} "
        f"{kernel.async_copies:6}  {'; '.join(faults)}"
    ).rstrip()


Kernel = TypeVar("Kernel", bound=MachineCode)


def print_table(
    header: str,
    kernels: Iterable[Kernel],
    line: Callable[[Kernel], str],
    faults: Callable[[Kernel], list[str]],
) -> int:
    """Prints a row for each kernel when it is there; the exit status, 1 if one has faults."""
    print(header)
    total = faulty = 0
    for kernel in kernels:
        total, faulty = total + 1, faulty + bool(faults(kernel))
        print(line(kernel), flush=True)
    print(f"{total} kernels, {faulty} not as they must be")
    return 1 if faulty else 0
