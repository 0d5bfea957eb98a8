# SPDX-License-Identifier: BSD-3-Clause
"""What the plans of both passes have in common: the chip, tiles, selections, numerics."""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskattn_kernels.backends import tuning
from maskattn_kernels.backends.base import empty_result
from maskattn_kernels.backends.triton_forward import LOG2E
from maskattn_kernels.backends.triton_plans import ABSENT, INTERPRETED, Result, as_read

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


def unit_of(t: Tensor) -> float:
    """The unit of scores, see `triton_forward`."""
    return 1.0 if t.dtype is torch.float32 else LOG2E.value


def numerics_of(t: Tensor, precision: str) -> dict[str, Any]:
    d = t.shape[-1]
    return {"D": d, "D_PAD": tuning.head_dim_pad(d), "UNIT": unit_of(t), "PRECISION": precision}


def precision_of(dtype: torch.dtype) -> str:
    """How `tl.dot` multiplies: float32 truly, unless torch's own products may use TF32."""
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
