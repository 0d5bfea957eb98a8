# SPDX-License-Identifier: BSD-3-Clause
"""Compiles, without a GPU, the kernels that the backend fa4 asks FlashAttention-4 for.

    python tools/fa4_kernels.py [--arch sm_90,sm_100]

makes the calls of the backend on tensors without memory, prints a row for every kernel, and ends
with 1 if one does not use the tensor cores, or gathers its keys without asynchronous copies.
Needs the extra `[fa4]` and triton, whose cuobjdump reads the machine code.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from maskattn_kernels.backends import fa4_ops
from maskattn_kernels.backends.machine_code import (
    COLUMNS,
    MachineCode,
    cells,
    common_faults,
    find_tool,
    print_table,
    read_cubin,
)

ARCHS = {"sm_90": 132, "sm_100": 148}  # and how many processors a usual GPU of it has
DTYPES = ("bfloat16", "float16")
HEAD_DIMS = {
    "sm_90": tuple(range(16, 257, 16)),
    "sm_100": (*range(16, 129, 16), 256),
}
#: What calls have besides a mask of keys, or in its place: a kernel each.
KINDS = ("queries", "bias", "group", "everything", "no mask")


@dataclass(frozen=True)
class Job:
    """One call, and the chip it is compiled for."""

    arch: str
    head_dim: int
    dtype: str
    kind: str = ""

    def __str__(self) -> str:
        words = (self.arch, str(self.head_dim), self.dtype, self.kind.replace(" ", "_"))
        return "-".join(word for word in words if word)


@dataclass(frozen=True, kw_only=True)
class Kernel(MachineCode):
    """One kernel for one chip."""

    job: Job


def missing() -> str:
    """What is not here to compile and to look inside; empty if nothing."""
    if not fa4_ops.INSTALLED:
        return "flash-attn-4 is not installed; pip install 'maskattn_kernels[fa4]'"
    return "" if find_tool("cuobjdump") else "no cuobjdump: it comes with triton"


def jobs(arch: str) -> list[Job]:
    """Every head dim and dtype with a mask of keys, and every kind of call once."""
    every = [Job(arch, head_dim, dtype) for head_dim in HEAD_DIMS[arch] for dtype in DTYPES]
    return every + [Job(arch, 64, "bfloat16", kind) for kind in KINDS]


def prepare(arch: str, dumps: str) -> None:
    """This process compiles for `arch`: what FlashAttention-4 reads when it is imported."""
    os.environ["CUTE_DSL_ARCH"] = f"{arch}a"
    os.environ["FLASH_ATTENTION_ARCH"] = arch
    os.environ["FLASH_ATTENTION_NUM_SMS"] = str(ARCHS[arch])
    os.environ["CUTE_DSL_KEEP_CUBIN"] = "1"
    os.environ["CUTE_DSL_DUMP_DIR"] = tempfile.mkdtemp(dir=dumps)
    warnings.simplefilter("ignore")


class Hardware:
    """What kernels for Blackwell ask of a GPU when they are compiled."""

    def get_device_multiprocessor_count(self) -> int:
        return int(os.environ["FLASH_ATTENTION_NUM_SMS"])


class Compiled(Exception):
    """A call has compiled its kernel: there is nothing to put back."""


def compile_job(job: Job) -> Kernel:
    """The kernel of one call."""
    import cutlass
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from maskattn_kernels.backends import fa4_calls, fa4_kernels

    def attend(*args: object) -> None:
        fa4_kernels.attend(*args)
        raise Compiled

    fa4_calls.attend = attend
    cutlass.utils.HardwareInfo = Hardware
    torch.cuda.device_of = lambda t: nullcontext()  # there is no device to make current
    dtype, n = getattr(torch, job.dtype), 300
    with FakeTensorMode(allow_non_fake_inputs=True), suppress(Compiled):

        def tensor(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device="cuda")

        heads = 4 if job.kind in ("group", "everything") else 1
        query = tensor(2, heads, n, job.head_dim)
        key, value = (tensor(2, 1, n, job.head_dim) for _ in range(2))
        index = (tensor(2, 1, n, dtype=torch.int32), tensor(2, 1, dtype=torch.int32))
        queries = index if job.kind in ("queries", "everything") else (None, None)
        keys, bias = index, None
        if job.kind in ("bias", "everything"):  # a bias makes lists of keys of its own
            keys, bias = (None, None), tensor(2, 1, n, dtype=torch.float32)
        elif job.kind == "no mask":
            keys = (None, None)
        fa4_calls.fwd(query, key, value, *queries, *keys, bias, job.head_dim**-0.5)
    (cubin,) = Path(os.environ["CUTE_DSL_DUMP_DIR"]).glob("*.cubin")
    ((_, _, facts),) = read_cubin(cubin, find_tool("cuobjdump") or "cuobjdump")
    cubin.unlink()
    return Kernel(job=job, **facts)


def faults(kernel: Kernel) -> list[str]:
    """What a kernel must not be. It may spill: 4.0.0b36 does at some head dims of Hopper, and at
    all of Blackwell."""
    gathers = kernel.job.kind != "no mask"
    return common_faults(kernel, spills=False, tensor=True, copies=gathers)


def compile_all(arch: str, wanted: list[Job]) -> Iterator[Kernel]:
    """The kernels of some calls, in processes that compile for one chip."""
    with tempfile.TemporaryDirectory() as dumps:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(os.cpu_count(), spawn, prepare, (arch, dumps)) as pool:
            yield from pool.map(compile_job, wanted)


HEADER = f"{'call':32} {COLUMNS}"


def line(kernel: Kernel) -> str:
    """A row of the table under HEADER."""
    return f"{kernel.job!s:32} {cells(kernel, faults(kernel))}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default=",".join(ARCHS), help="chips, separated by commas")
    archs = parser.parse_args().arch.split(",")
    if unknown := [arch for arch in archs if arch not in ARCHS]:
        parser.error(f"--arch: expected some of {','.join(ARCHS)}, got {','.join(unknown)}")
    if missing():
        print(f"fa4_kernels: cannot run: {missing()}", file=sys.stderr)
        return 1
    kernels = (kernel for arch in archs for kernel in compile_all(arch, jobs(arch)))
    return print_table(HEADER, kernels, line, faults)


if __name__ == "__main__":
    sys.exit(main())
