# SPDX-License-Identifier: BSD-3-Clause
"""Compiles the CUDA kernels for GPUs that need not be here, and reads what came out.

    python tools/cuda_kernels.py [--arch sm_80,sm_90,sm_100,sm_120]

prints a row for every kernel, and ends with 1 if one is not as it must be: without spills, without
atomic additions of floats (results repeat to the last bit), its 16-bit products on the tensor
cores, its gathers by asynchronous copies. Needs nvcc (13.0 knows all four chips); the machine code
is read by the cuobjdump of the CUDA toolkit or of triton.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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

SOURCES = Path(__file__).resolve().parents[1] / "csrc" / "cuda"
ARCHS = ("sm_80", "sm_90", "sm_100", "sm_120")
NO_CUOBJDUMP = "no cuobjdump: it comes with the CUDA toolkit and with triton"
TILED = ("fwd_kernel", "dq_kernel", "dkdv_kernel")


@dataclass(frozen=True, kw_only=True)
class Kernel(MachineCode):
    """One kernel for one chip."""

    arch: str
    name: str  # with its template arguments
    global_addresses: int  # of 64 bits
    narrow_addresses: int  # loads and stores of global memory by less


def missing() -> str:
    """What is not here to compile and to look inside; empty if nothing."""
    if not shutil.which("nvcc"):
        return "no nvcc"
    return "" if find_tool("cuobjdump") else NO_CUOBJDUMP


def compile_source(source: Path, arch: str, flags: tuple[str, ...] = ()) -> list[Kernel]:
    """All kernels of a source file."""
    number = arch.removeprefix("sm_")
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        target = f"arch=compute_{number},code={arch}"
        command = ["nvcc", "-std=c++17", "-gencode", target, *flags]
        command += ["-cubin", str(source), "-o", str(cubin)]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            raise RuntimeError(f"{source.name} for {arch}: {run.stderr.strip()}")
        return [
            Kernel(arch=arch, name=_readable(symbol), **facts, **_addresses(code))
            for symbol, code, facts in read_cubin(cubin, find_tool("cuobjdump") or "cuobjdump")
        ]


def _addresses(code: str) -> dict[str, int]:
    """Accesses of global memory, by 64 bits and by less."""
    wide = count(r"\b(?:LDG|STG|LDGSTS)\b[^;]*\.64\]|\b(?:LDG|STG|LDGSTS)\.E[^;]*\.64", code)
    every = count(r"\b(?:LDG|STG|LDGSTS)\b", code)
    return {"global_addresses": wide, "narrow_addresses": every - wide}


def _readable(symbol: str) -> str:
    """`fwd_kernel<BFloat16, 64>` of a mangled name."""
    name = re.search(r"\d+([a-z_]+_kernel)(.*)", symbol)
    if name is None:
        return symbol
    head = name[2].split("EEv")[0]
    arguments = re.findall(r"BFloat16|Half|(?<=I)f(?=L|E|$)|(?<=Li)\d+|(?<=Lb)[01]", head)
    arguments = ["float" if a == "f" else a for a in arguments]
    return f"{name[1]}<{', '.join(arguments)}>" if arguments else name[1]


def faults(kernel: Kernel) -> list[str]:
    """What a kernel must not be."""
    is_tiled, is_float = kernel.name.startswith(TILED), "float" in kernel.name
    why = common_faults(kernel, spills=True, tensor=is_tiled and not is_float, copies=is_tiled)
    if kernel.narrow_addresses:
        why.append(f"{kernel.narrow_addresses} global addresses of less than 64 bits")
    return why


def compile_all(archs: tuple[str, ...], flags: tuple[str, ...] = ()) -> Iterator[Kernel]:
    """Every kernel for every chip, a source file and chip at a time."""
    sources = sorted(p for p in SOURCES.glob("*.cu") if p.name != "device.cu")
    jobs = [(source, arch) for arch in archs for source in sources]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for kernels in pool.map(lambda job: compile_source(*job, flags), jobs):
            yield from kernels


HEADER = f"{'chip':7} {'kernel':32} {COLUMNS}"


def line(kernel: Kernel) -> str:
    """A row of the table under HEADER."""
    return f"{kernel.arch:7} {kernel.name:32} {cells(kernel, faults(kernel))}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default=",".join(ARCHS), help="chips, separated by commas")
    archs = tuple(parser.parse_args().arch.split(","))
    if missing():
        print(f"cuda_kernels: cannot run: {missing()}", file=sys.stderr)
        return 1
    return print_table(HEADER, compile_all(archs), line, faults)


if __name__ == "__main__":
    sys.exit(main())
