# SPDX-License-Identifier: BSD-3-Clause
"""Compiles the CUDA kernels for GPUs that need not be here, and reads what came out.

    python tools/cuda_kernels.py [--arch sm_80,sm_90,sm_100,sm_120]

prints a row for every kernel, and ends with 1 if one is not as it must be: without spills, without
atomic additions of floats (results repeat to the last bit), its 16-bit products on the tensor
cores, its gathers by asynchronous copies. Needs nvcc (13.0 knows all four chips); the machine code
is read by the cuobjdump of the CUDA toolkit or of triton.
"""

import argparse
import importlib.util
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

SOURCES = Path(__file__).resolve().parents[1] / "csrc" / "cuda"
ARCHS = ("sm_80", "sm_90", "sm_100", "sm_120")
TILED = ("fwd_kernel", "dq_kernel", "dkdv_kernel")
SHARED_MEMORY = 99 * 1024  # bytes that a block may have on every chip from sm_80 on


@dataclass(frozen=True)
class Kernel:
    """One kernel for one chip. Counts are of instructions in the machine code."""

    arch: str
    name: str  # with its template arguments
    registers: int
    stack: int  # bytes a thread keeps outside of its registers
    spills: int
    tensor: int  # products on the tensor cores
    async_copies: int
    float_atomics: int
    global_addresses: int  # of 64 bits
    narrow_addresses: int  # loads and stores of global memory by less


def missing() -> str:
    """What is not here to compile and to look inside; empty if nothing."""
    if not shutil.which("nvcc"):
        return "no nvcc"
    return (
        "" if _tool("cuobjdump") else "no cuobjdump: it comes with the CUDA toolkit and with triton"
    )


def _tool(name: str) -> str | None:
    triton = importlib.util.find_spec("triton")
    folders = [Path(p) for p in triton.submodule_search_locations or []] if triton else []
    wheels = [str(folder / "backends" / "nvidia" / "bin") for folder in folders]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(wheels))


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
        usage = _dump("-res-usage", cubin)
        code = _dump("-sass", cubin)
    bodies = dict(re.findall(r"Function : (\S+)\n(.*?)(?=Function : |\Z)", code, flags=re.DOTALL))
    kernels = []
    for symbol, registers, stack in re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+)", usage):
        kernels.append(_kernel(arch, symbol, int(registers), int(stack), bodies[symbol]))
    return kernels


def _kernel(arch: str, symbol: str, registers: int, stack: int, code: str) -> Kernel:
    def count(pattern: str) -> int:
        return len(re.findall(pattern, code))

    wide = count(r"\b(?:LDG|STG|LDGSTS)\b[^;]*\.64\]|\b(?:LDG|STG|LDGSTS)\.E[^;]*\.64")
    return Kernel(
        arch, _readable(symbol), registers, stack,
        spills=count(r"\b(?:LDL|STL)\b"),
        tensor=count(r"\bHMMA\b"),
        async_copies=count(r"\bLDGSTS\b"),
        float_atomics=count(r"\b(?:RED|REDG|ATOM|ATOMG)\b[.\w]*\.(?:F16|F32|BF16|FTZ)"),
        global_addresses=wide,
        narrow_addresses=count(r"\b(?:LDG|STG|LDGSTS)\b") - wide,
    )  # fmt: skip


def _readable(symbol: str) -> str:
    """`fwd_kernel<BFloat16, 64>` of a mangled name."""
    name = re.search(r"\d+([a-z_]+_kernel)(.*)", symbol)
    if name is None:
        return symbol
    head = name[2].split("EEv")[0]
    arguments = re.findall(r"BFloat16|Half|(?<=I)f(?=L|E|$)|(?<=Li)\d+|(?<=Lb)[01]", head)
    arguments = ["float" if a == "f" else a for a in arguments]
    return f"{name[1]}<{', '.join(arguments)}>" if arguments else name[1]


def _dump(option: str, cubin: Path) -> str:
    tool = _tool("cuobjdump")
    if tool is None:
        raise RuntimeError(missing())
    return subprocess.run(
        [tool, option, str(cubin)], check=True, capture_output=True, text=True
    ).stdout


def faults(kernel: Kernel) -> list[str]:
    """What a kernel must not be."""
    why = []
    if kernel.stack or kernel.spills:
        why.append(f"{kernel.stack} bytes of stack, {kernel.spills} spills")
    if kernel.float_atomics:
        why.append(f"{kernel.float_atomics} atomic additions of floats: not repeatable")
    if kernel.narrow_addresses:
        why.append(f"{kernel.narrow_addresses} global addresses of less than 64 bits")
    if kernel.name.startswith(TILED):
        if "float" not in kernel.name and not kernel.tensor:
            why.append("no product on the tensor cores")
        if not kernel.async_copies:
            why.append("no asynchronous copy in its gathers")
    return why


def compile_all(archs: tuple[str, ...], flags: tuple[str, ...] = ()) -> Iterator[Kernel]:
    """Every kernel for every chip, a source file and chip at a time."""
    sources = sorted(p for p in SOURCES.glob("*.cu") if p.name != "device.cu")
    jobs = [(source, arch) for arch in archs for source in sources]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for kernels in pool.map(lambda job: compile_source(*job, flags), jobs):
            yield from kernels


HEADER = (
    f"{'chip':7} {'kernel':32} {'regs':>4} {'stack':>5} {'spills':>6} {'HMMA':>5} {'LDGSTS':>6}"
)


def line(k: Kernel) -> str:
    """A row of the table under HEADER."""
    row = (
        f"{k.arch:7} {k.name:32} {k.registers:4} {k.stack:5} {k.spills:6} {k.tensor:5} "
        f"{k.async_copies:6}  {'; '.join(faults(k))}"
    )
    return row.rstrip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default=",".join(ARCHS), help="chips, separated by commas")
    archs = tuple(parser.parse_args().arch.split(","))
    if missing():
        print(f"cuda_kernels: cannot run: {missing()}", file=sys.stderr)
        return 1
    print(HEADER)
    total = faulty = 0
    for kernel in compile_all(archs):
        total, faulty = total + 1, faulty + bool(faults(kernel))
        print(line(kernel), flush=True)
    print(f"{total} kernels, {faulty} not as they must be")
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
