# SPDX-License-Identifier: BSD-3-Clause
"""Compiles the kernels of this folder ahead of time; needs nvidia-cutlass-dsl and no GPU.

    python csrc/cute/compile_kernels.py --out FOLDER

writes a cubin for each chip, dtype and width of a tile, and kernels.cpp, which holds them all as
the table of csrc/cuda/cute.h.
"""

import argparse
import importlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import tile_arithmetic as tiles

FORWARDS = {"sm_90a": "forward_sm90", "sm_100a": "forward_sm100"}  # modules, by their chips
DTYPES = {"bfloat16": "BFloat16", "float16": "Float16"}  # their names in CuTe-DSL and C++


class Compiled(NamedTuple):
    """One kernel for one chip."""

    arch: str
    dtype: str
    width: int  # head dims of a tile
    symbol: str
    cubin: bytes
    ptx: str

    @property
    def name(self) -> str:
        return f"{self.arch}-{self.dtype}-{self.width}"


def compile_kernel(arch: str, dtype: str, width: int) -> Compiled:
    """One kernel, whatever GPU is here."""
    cutlass = importlib.import_module("cutlass")
    module, rows = importlib.import_module(FORWARDS[arch]), importlib.import_module("token_rows")
    call = rows.Call(*(cutlass.Int64(0) for _ in rows.Call._fields))
    launch = module.Forward(getattr(cutlass, DTYPES[dtype]), width)
    with tempfile.TemporaryDirectory() as folder:
        options = f"--gpu-arch {arch} --keep-cubin --keep-ptx --dump-dir {folder}"
        compiled = cutlass.cute.compile(
            launch, call, cutlass.Float32(1.0), cutlass.Int32(1), options=options
        )
        (symbol,), artifacts = compiled.kernel_info, compiled.artifacts
        return Compiled(arch, dtype, width, symbol, artifacts.CUBIN, artifacts.PTX)


def compile_all(archs: tuple[str, ...] = tuple(FORWARDS)) -> Iterator[Compiled]:
    """Every kernel, one after the other: about two seconds each."""
    for arch in archs:
        for dtype in DTYPES:
            for width in tiles.WIDTHS[arch]:
                yield compile_kernel(arch, dtype, width)


HEAD = """// Written by csrc/cute/compile_kernels.py.
#include "cuda/cute.h"

#define MASKATTN_CUBIN(name, path)                                                        \\
  __asm__(".section .rodata\\n.balign 64\\n" #name ":\\n.incbin \\"" path "\\"\\n.previous\\n"); \\
  extern "C" __attribute__((visibility("hidden"))) const char name[]
"""


def export(folder: Path) -> None:
    """Writes cubins and kernels.cpp."""
    folder.mkdir(parents=True, exist_ok=True)
    cubins, rows = [], []
    for number, kernel in enumerate(compile_all()):
        path = folder.resolve() / f"{kernel.name}.cubin"
        path.write_bytes(kernel.cubin)
        cubins.append(f'MASKATTN_CUBIN(maskattn_cute_{number}, "{path}");')
        capability, dtype = kernel.arch.removeprefix("sm_").rstrip("a"), DTYPES[kernel.dtype]
        sizes = f"{kernel.width}, {tiles.QUERIES}, {tiles.threads_of(kernel.arch)}"
        shared = tiles.memory_of(kernel.width, kernel.arch).end
        rows.append(
            f"    {{{capability}, DType::k{dtype}, {sizes}, {shared},\n"
            f'     "{kernel.symbol}", maskattn_cute_{number}}},'
        )
    lines = [
        HEAD, *cubins, "", "namespace maskattn {", "namespace {", "const CuteKernel kKernels[] = {",
        *rows, "};", "}  // namespace", "",
        f"CuteKernels cute_kernels() {{ return {{kKernels, {len(rows)}}}; }}", "",
        "}  // namespace maskattn", "",
    ]  # fmt: skip
    (folder / "kernels.cpp").write_text("\n".join(lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    export(parser.parse_args().out)
