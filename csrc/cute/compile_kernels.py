# SPDX-License-Identifier: BSD-3-Clause
"""Compiles the kernels of this folder ahead of time; needs nvidia-cutlass-dsl and no GPU."""

import importlib
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

import tile_arithmetic as tiles

FORWARDS = {"sm_90a": "forward_sm90"}  # modules, by the chips they are for
DTYPES = {"bfloat16": "BFloat16", "float16": "Float16"}


class Compiled(NamedTuple):
    """One kernel for one chip."""

    arch: str
    dtype: str
    width: int  # head dims of a tile
    symbol: str
    cubin: bytes

    @property
    def name(self) -> str:
        return f"{self.arch}-{self.dtype}-{self.width}"


def compile_kernel(arch: str, dtype: str, width: int) -> Compiled:
    """One kernel, whatever GPU is here."""
    cutlass = importlib.import_module("cutlass")
    module = importlib.import_module(FORWARDS[arch])
    call = module.Call(*(cutlass.Int64(0) for _ in module.Call._fields))
    launch = module.Forward(getattr(cutlass, DTYPES[dtype]), width)
    with tempfile.TemporaryDirectory() as folder:
        options = f"--gpu-arch {arch} --keep-cubin --dump-dir {folder}"
        compiled = cutlass.cute.compile(
            launch, call, cutlass.Float32(1.0), cutlass.Int32(1), options=options
        )
        (symbol,) = compiled.kernel_info
        return Compiled(arch, dtype, width, symbol, compiled.artifacts.CUBIN)


def compile_all(archs: tuple[str, ...] = tuple(FORWARDS)) -> Iterator[Compiled]:
    """Every kernel, one after the other: about two seconds each."""
    for arch in archs:
        for dtype in DTYPES:
            for width in tiles.WIDTHS:
                yield compile_kernel(arch, dtype, width)
