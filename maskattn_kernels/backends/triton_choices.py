# SPDX-License-Identifier: BSD-3-Clause
"""What the plans of both passes have in common: the chip, tiles, selections, packed rows,
numerics."""

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from maskattn_kernels.backends import tuning
from maskattn_kernels.backends.base import empty_result
from maskattn_kernels.backends.triton_forward import LOG2E
from maskattn_kernels.backends.triton_pack import pack_kernel
from maskattn_kernels.backends.triton_plans import ABSENT, INTERPRETED, Launch, Result, as_read

# What one program of the small kernels owns: tokens of a mask, numbers of a tile.
SELECT_BLOCK = 64 if INTERPRETED else 1024
TILE_NUMBERS = 1024 if INTERPRETED else 8192
# Tokens of sequences so short that the forward pass reads masks itself, and splits no keys.
SHORT = 32 if INTERPRETED else 256


class Chip(NamedTuple):
    arch: str
    processors: int
    shared_memory: int | None  # bytes that one program may have


class Selection(NamedTuple):
    """A token index as the kernels take it, or a short mask; all tokens where there is none."""

    indices: int  # its place among the tensors of a plan: of indices, or of a mask's bytes
    counts: int
    # indices: batch, head; counts: batch, head; or mask: batch, head, token. 0 = one serves all.
    strides: tuple[int, ...]

    @property
    def given(self) -> bool:
        return self.indices != ABSENT


ALL = Selection(ABSENT, ABSENT, (0, 0, 0, 0))


def selection_of(indices: Tensor | None, counts: Tensor | None, place: int) -> Selection:
    """An index whose tensors are the inputs `place` and `place + 1`."""
    if indices is None or counts is None:
        return ALL
    read = as_read(indices)
    strides = [t.stride(dim) if t.shape[dim] > 1 else 0 for t in (read, counts) for dim in (0, 1)]
    return Selection(place, place + 1, tuple(strides))


def result_like(t: Tensor, fill: float | None = None) -> Result:
    """A result as `base.empty_result` lays it out."""
    laid_out = empty_result(t.to("meta"))
    return Result(tuple(t.shape), laid_out.stride(), t.dtype, fill)


def strides_of(per_token: Tensor | None) -> tuple[int, ...]:
    return per_token.stride() if per_token is not None else (0, 0, 0)


def is_packed(streamed: tuple[Tensor, ...], readers: int) -> bool:
    """Whether tensors are copied to packed rows before `readers` tokens read them: where their rows
    are not such as Triton knows to start at multiples of 16 bytes."""
    aligned = all(
        t.data_ptr() % 16 == 0 and not any(s % 16 for s in t.stride()[:3]) for t in streamed
    )
    return readers > SHORT and not aligned


def packed_width(head_dim: int) -> int:
    """Numbers of a packed row: Triton knows the multiples of 16 among strides, and no others."""
    return -(-head_dim // 16) * 16


def pack(
    a: Tensor, b: Tensor, places: tuple[int, int], selection: Selection, first_result: int
) -> tuple[Result, Launch]:
    """The packed rows of each of two tensors of one shape, and what writes them: to the results
    `first_result` and the next one."""
    batch, heads, n, d = a.shape
    width, block = packed_width(d), small_block(d)
    rows = (heads * n * width, n * width, width, 1)
    launch = Launch(
        pack_kernel, batch * heads * triton.cdiv(n, block),
        (*places, first_result, first_result + 1, selection.indices, selection.counts), (),
        (a.stride()[:3], b.stride()[:3], selection.strides, heads, n),
        {
            "HAS_INDEX": selection.given, "D": d, "D_READ": width,
            "D_PAD": tuning.head_dim_pad(d), "BLOCK": block,
        },
    )  # fmt: skip
    return Result((batch, heads, n, width), rows, a.dtype), launch


def unit_of(t: Tensor) -> float:
    """The unit of scores, see `triton_forward`."""
    return 1.0 if t.dtype is torch.float32 else LOG2E.value


def numerics_of(t: Tensor, width: int, precision: str) -> dict[str, Any]:
    """`width` is that of the rows that are read, packed or not."""
    d = t.shape[-1]
    return {
        "D": d, "D_READ": width, "D_PAD": tuning.head_dim_pad(d),
        "UNIT": unit_of(t), "PRECISION": precision,
    }  # fmt: skip


def precision_of(dtype: torch.dtype) -> str:
    """How `tl.dot` multiplies: float32 truly, unless torch's own products may use TF32.

    Not as "tf32x3": docs/backends.md says why.
    """
    if INTERPRETED:
        return "widened" if dtype is torch.bfloat16 else "ieee"
    if dtype is not torch.float32 or torch.version.hip:  # not every AMD chip has a TF32
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def tile_of(config: tuning.Config) -> dict[str, int]:
    return {
        "BLOCK_M": config.block_m, "BLOCK_N": config.block_n,
        "num_warps": config.warps, "num_stages": config.stages,
    }  # fmt: skip


def config_for(kernel: str, t: Tensor, rows: int, chip: Chip) -> tuning.Config:
    bits = 8 * t.element_size()
    return tuning.choose_config(
        kernel, chip.arch, bits, t.shape[-1], rows, chip.processors, chip.shared_memory
    )


def programs_at_a_time(kernel: str, config: tuning.Config, t: Tensor, chip: Chip) -> int:
    bits, d = 8 * t.element_size(), t.shape[-1]
    return tuning.programs_at_a_time(kernel, config, bits, d, chip.arch, chip.processors)


def small_block(head_dim: int) -> int:
    """Rows of a tile of TILE_NUMBERS numbers."""
    return max(16, TILE_NUMBERS // tuning.head_dim_pad(head_dim))


def chip_of(device: torch.device) -> Chip:
    return Chip("interpreter", 8, None) if INTERPRETED else _gpu(device.index)


@cache
def _gpu(index: int) -> Chip:
    facts = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        arch = facts.gcnArchName.split(":")[0]
        return Chip(arch, facts.multi_processor_count, facts.shared_memory_per_block)
    arch = f"sm_{facts.major}{facts.minor}"
    shared_memory = getattr(facts, "shared_memory_per_block_optin", None)  # no type stub has it
    return Chip(arch, facts.multi_processor_count, shared_memory)
