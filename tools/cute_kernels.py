# SPDX-License-Identifier: BSD-3-Clause
"""Compiles the forward kernels in CuTe-DSL for GPUs that need not be here, and reads what came out.

    python tools/cute_kernels.py [--arch sm_90a]

prints a row for every kernel, and ends with 1 if one is not as it must be: without spills, its
products on the tensor cores, its gathers by asynchronous copies, a fence for every kind of copy
that a product reads. Needs nvidia-cutlass-dsl and a cuobjdump, as the CUDA toolkit and triton have.
"""

import argparse
import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from maskattn_kernels.backends.machine_code import (
    COLUMNS,
    MachineCode,
    cells,
    common_faults,
    count,
    find_tool,
    print_table,
    read_cubin,
)

SOURCES = Path(__file__).resolve().parents[1] / "csrc" / "cute"
sys.path.append(str(SOURCES))

import compile_kernels  # noqa: E402

ARCHS = tuple(compile_kernels.FORWARDS)


@dataclass(frozen=True, kw_only=True)
class Kernel(MachineCode):
    """One kernel for one chip."""

    name: str
    size: int  # bytes of the object
    fences: int  # between copies and the products that read them
    parameters: tuple[tuple[int, int], ...]  # offset and size of each, in bytes


def missing() -> str:
    """What is not here to compile and to look inside; empty if nothing."""
    if not importlib.util.find_spec("cutlass"):
        return "nvidia-cutlass-dsl is not installed; pip install nvidia-cutlass-dsl"
    return "" if find_tool("cuobjdump") else "no cuobjdump: it comes with triton"


def read(kernel: compile_kernels.Compiled) -> Kernel:
    """What is in the machine code of a kernel."""
    cuobjdump = find_tool("cuobjdump") or "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(kernel.cubin)
        ((_, code, facts),) = read_cubin(cubin, cuobjdump)
        command = [cuobjdump, "-elf", str(cubin)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    each = r"KPARAM_INFO.*?Offset\s*: (0x[0-9a-f]+)\s+Size\s*: (0x[0-9a-f]+)"
    found = [(int(offset, 16), int(size, 16)) for offset, size in re.findall(each, said, re.DOTALL)]
    return Kernel(
        name=kernel.name,
        size=len(kernel.cubin),
        fences=count(r"\bFENCE\.VIEW\.ASYNC", code),
        parameters=tuple(sorted(found)),
        **facts,
    )


def compile_all(archs: tuple[str, ...]) -> Iterator[Kernel]:
    """Every kernel for every chip."""
    return map(read, compile_kernels.compile_all(archs))


def faults(kernel: Kernel) -> list[str]:
    """What a kernel must not be."""
    why = common_faults(kernel, spills=True, tensor=True, copies=True)
    if not kernel.fences:
        why.append("no fence between its copies and its products")
    return why


HEADER = f"{'kernel':24} {COLUMNS} fences  bytes"


def line(kernel: Kernel) -> str:
    """A row of the table under HEADER."""
    row = f"{kernel.name:24} {cells(kernel, [])} {kernel.fences:6} {kernel.size:6}"
    return f"{row}  {'; '.join(faults(kernel))}".rstrip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default=",".join(ARCHS), help="chips, separated by commas")
    archs = tuple(parser.parse_args().arch.split(","))
    if unknown := [arch for arch in archs if arch not in ARCHS]:
        parser.error(f"--arch: expected some of {','.join(ARCHS)}, got {','.join(unknown)}")
    if missing():
        print(f"cute_kernels: cannot run: {missing()}", file=sys.stderr)
        return 1
    return print_table(HEADER, compile_all(archs), line, faults)


if __name__ == "__main__":
    sys.exit(main())
