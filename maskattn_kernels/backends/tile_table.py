# SPDX-License-Identifier: BSD-3-Clause
"""The one table of tile sizes of the Triton kernels: pure, no triton here.

An entry serves one kernel on some architectures, for one width of numbers and head_dim up to a
size. Its configurations are in order of preference. On sm_90 those in 16 bits were measured on an
H200 where `bench/results/*-tiles.json` has them (`maskattn bench --tune` prints lines for this
table); the others are informed guesses.
"""

from dataclasses import dataclass
from typing import NamedTuple


class Config(NamedTuple):
    block_m: int  # queries of a tile
    block_n: int  # keys of a tile
    warps: int
    stages: int


@dataclass(frozen=True)
class Entry:
    kernel: str
    archs: tuple[str, ...]
    bits: int  # 16 for float16 and bfloat16, 32 for float32
    head_dim: int  # up to
    size: str  # "large", or "small": too few large tiles to fill the chip
    configs: tuple[Config, ...]


def _entries(
    kernel: str, archs: tuple[str, ...], bits: int, rows: dict[tuple[int, str], tuple]
) -> list[Entry]:
    return [
        Entry(kernel, archs, bits, head_dim, size, tuple(Config(*c) for c in configs))
        for (head_dim, size), configs in rows.items()
    ]


_HOPPER = ("sm_90",)
_BLACKWELL = ("sm_100",)
_AMPERE = ("sm_80",)
_CDNA = ("gfx942",)
_INTERPRETER = ("interpreter",)  # small, so that small inputs have many tiles and ragged ones

# Each configuration is (block_m, block_n, warps, stages). The first of each entry compiles without
# spills, with all options on and (dkdv) with a mask of keys alone, as the tests hold. Where nothing
# was measured, of the tiles of which a processor runs two at a time the largest are assumed best.
TABLE: tuple[Entry, ...] = (
    *_entries("fwd", _HOPPER, 16, {
        (64, "large"): ((64, 128, 4, 2), (128, 64, 8, 3)),
        (64, "small"): ((64, 64, 4, 3),),
        (128, "large"): ((64, 64, 4, 1),),
        (128, "small"): ((64, 64, 4, 3),),
        (256, "large"): ((128, 32, 8, 3), (64, 32, 8, 2)),
        (256, "small"): ((64, 32, 8, 2),),
    }),
    *_entries("fwd", _BLACKWELL, 16, {
        (64, "large"): ((128, 64, 8, 3),),
        (64, "small"): ((64, 64, 4, 3),),
        (128, "large"): ((128, 64, 8, 3),),
        (128, "small"): ((64, 64, 8, 3),),
        (256, "large"): ((64, 64, 8, 2),),
        (256, "small"): ((64, 64, 8, 2),),
    }),
    *_entries("fwd", _AMPERE, 16, {
        (64, "large"): ((128, 64, 8, 3),),
        (64, "small"): ((64, 64, 4, 2),),
        (128, "large"): ((128, 32, 8, 3), (64, 32, 8, 3)),
        (128, "small"): ((64, 64, 8, 2),),
        (256, "large"): ((64, 32, 8, 2), (32, 32, 4, 2)),
        (256, "small"): ((64, 32, 8, 2), (32, 32, 4, 2)),
    }),
    *_entries("fwd", _CDNA, 16, {
        (64, "large"): ((128, 64, 4, 2), (64, 64, 4, 1)),
        (64, "small"): ((64, 64, 4, 2),),
        (128, "large"): ((128, 32, 4, 1), (64, 32, 4, 1)),
        (128, "small"): ((64, 32, 4, 1),),
        (256, "large"): ((64, 32, 8, 1), (32, 32, 4, 1)),
        (256, "small"): ((32, 32, 4, 1),),
    }),
    *_entries("fwd", _HOPPER, 32, {
        (64, "large"): ((32, 64, 8, 2),),
        (64, "small"): ((16, 32, 8, 2),),
        (128, "large"): ((32, 32, 8, 2),),
        (128, "small"): ((16, 16, 4, 2),),
        (256, "large"): ((16, 32, 8, 2), (16, 16, 8, 2)),
        (256, "small"): ((16, 16, 4, 2),),
    }),
    *_entries("fwd", _BLACKWELL, 32, {
        (64, "large"): ((32, 64, 8, 2),),
        (64, "small"): ((16, 32, 4, 2),),
        (128, "large"): ((16, 32, 8, 2),),
        (128, "small"): ((16, 16, 4, 2),),
        (256, "large"): ((16, 32, 8, 2), (16, 16, 8, 2)),
        (256, "small"): ((16, 16, 4, 2),),
    }),
    *_entries("fwd", _AMPERE, 32, {
        (64, "large"): ((64, 32, 8, 2),),
        (64, "small"): ((16, 32, 4, 2),),
        (128, "large"): ((32, 32, 8, 2),),
        (128, "small"): ((16, 16, 4, 2),),
        (256, "large"): ((16, 32, 8, 2), (16, 16, 8, 2)),
        (256, "small"): ((16, 16, 4, 2),),
    }),
    *_entries("fwd", _CDNA, 32, {
        (64, "large"): ((64, 32, 4, 1),),
        (64, "small"): ((32, 32, 4, 1),),
        (128, "large"): ((32, 32, 4, 1),),
        (128, "small"): ((16, 32, 4, 1),),
        (256, "large"): ((16, 16, 4, 1),),
        (256, "small"): ((16, 16, 4, 1),),
    }),
    *_entries("dkdv", _HOPPER, 16, {
        (64, "large"): ((64, 64, 4, 1),),
        (64, "small"): ((32, 64, 4, 2),),
        (128, "large"): ((32, 64, 4, 1),),
        (128, "small"): ((32, 64, 4, 1),),
        (256, "large"): ((64, 32, 8, 1),),
        (256, "small"): ((32, 32, 8, 2),),
    }),
    *_entries("dkdv", _BLACKWELL, 16, {
        (64, "large"): ((64, 64, 8, 3),),
        (64, "small"): ((64, 64, 8, 3),),
        (128, "large"): ((32, 64, 8, 3),),
        (128, "small"): ((32, 64, 8, 3),),
        (256, "large"): ((32, 32, 8, 2),),
        (256, "small"): ((32, 32, 8, 2),),
    }),
    *_entries("dkdv", _AMPERE, 16, {
        (64, "large"): ((32, 64, 8, 2),),
        (64, "small"): ((32, 64, 8, 2),),
        (128, "large"): ((32, 64, 8, 2),),
        (128, "small"): ((32, 64, 8, 2),),
        (256, "large"): ((32, 32, 8, 2), (16, 32, 8, 1)),
        (256, "small"): ((32, 32, 8, 2), (16, 32, 8, 1)),
    }),
    *_entries("dkdv", _CDNA, 16, {
        (64, "large"): ((64, 64, 4, 1),),
        (64, "small"): ((32, 64, 4, 1),),
        (128, "large"): ((32, 64, 4, 1), (32, 32, 4, 1)),
        (128, "small"): ((32, 32, 4, 1),),
        (256, "large"): ((16, 32, 8, 1), (16, 16, 4, 1)),
        (256, "small"): ((16, 32, 8, 1), (16, 16, 4, 1)),
    }),
    *_entries("dkdv", _HOPPER, 32, {
        (64, "large"): ((16, 64, 8, 2),),
        (64, "small"): ((16, 16, 4, 2),),
        (128, "large"): ((32, 16, 8, 2),),
        (128, "small"): ((16, 16, 4, 2),),
        (256, "large"): ((16, 16, 8, 2),),
        (256, "small"): ((16, 16, 8, 2),),
    }),
    *_entries("dkdv", _BLACKWELL, 32, {
        (64, "large"): ((16, 64, 8, 2),),
        (64, "small"): ((16, 16, 4, 2),),
        (128, "large"): ((16, 32, 8, 2),),
        (128, "small"): ((16, 16, 4, 2),),
        (256, "large"): ((16, 16, 8, 2),),
        (256, "small"): ((16, 16, 8, 2),),
    }),
    *_entries("dkdv", _AMPERE, 32, {
        (64, "large"): ((16, 32, 8, 2),),
        (64, "small"): ((16, 32, 8, 2),),
        (128, "large"): ((16, 32, 8, 2),),
        (128, "small"): ((16, 32, 8, 2),),
        (256, "large"): ((16, 16, 8, 2),),
        (256, "small"): ((16, 16, 8, 2),),
    }),
    *_entries("dkdv", _CDNA, 32, {
        (64, "large"): ((32, 32, 4, 1),),
        (64, "small"): ((16, 32, 4, 1),),
        (128, "large"): ((16, 16, 4, 1),),
        (128, "small"): ((16, 16, 4, 1),),
        (256, "large"): ((16, 16, 4, 1),),
        (256, "small"): ((16, 16, 4, 1),),
    }),
    *_entries("dq", _HOPPER, 16, {
        (64, "large"): ((128, 64, 8, 3),),
        (64, "small"): ((64, 64, 4, 3),),
        (128, "large"): ((64, 64, 4, 2), (128, 64, 8, 3)),
        (128, "small"): ((64, 64, 4, 3),),
        (256, "large"): ((128, 32, 8, 3),),
        (256, "small"): ((64, 32, 8, 2),),
    }),
    *_entries("dq", _BLACKWELL, 16, {
        (64, "large"): ((128, 64, 8, 3),),
        (64, "small"): ((64, 64, 4, 3),),
        (128, "large"): ((128, 64, 8, 3),),
        (128, "small"): ((64, 64, 4, 3),),
        (256, "large"): ((64, 32, 8, 2),),
        (256, "small"): ((64, 32, 8, 2),),
    }),
    *_entries("dq", _AMPERE, 16, {
        (64, "large"): ((128, 32, 4, 3),),
        (64, "small"): ((64, 32, 4, 3),),
        (128, "large"): ((128, 32, 8, 3), (64, 32, 8, 2)),
        (128, "small"): ((64, 64, 8, 3), (64, 32, 8, 2)),
        (256, "large"): ((64, 32, 8, 2), (32, 16, 8, 2)),
        (256, "small"): ((64, 32, 8, 2), (32, 16, 8, 2)),
    }),
    *_entries("dq", _CDNA, 16, {
        (64, "large"): ((64, 64, 4, 1),),
        (64, "small"): ((64, 32, 4, 1),),
        (128, "large"): ((64, 32, 4, 1), (32, 32, 4, 1)),
        (128, "small"): ((32, 32, 4, 1),),
        (256, "large"): ((32, 16, 8, 1), (16, 16, 4, 1)),
        (256, "small"): ((32, 16, 8, 1), (16, 16, 4, 1)),
    }),
    *_entries("dq", (*_HOPPER, *_BLACKWELL, *_AMPERE), 32, {
        (64, "large"): ((64, 16, 4, 2),),
        (64, "small"): ((32, 32, 8, 2),),
        (128, "large"): ((32, 16, 4, 2),),
        (128, "small"): ((32, 16, 4, 2),),
        (256, "large"): ((16, 16, 4, 2),),
        (256, "small"): ((16, 16, 4, 2),),
    }),
    *_entries("dq", _CDNA, 32, {
        (64, "large"): ((32, 32, 4, 1),),
        (64, "small"): ((32, 16, 4, 1),),
        (128, "large"): ((16, 16, 4, 1),),
        (128, "small"): ((16, 16, 4, 1),),
        (256, "large"): ((16, 16, 4, 1),),
        (256, "small"): ((16, 16, 4, 1),),
    }),
    *_entries("fwd", _INTERPRETER, 32, {
        (256, "large"): ((64, 32, 1, 1),),
        (256, "small"): ((32, 32, 1, 1),),
    }),
    *_entries("fwd", _INTERPRETER, 16, {
        (256, "large"): ((64, 64, 1, 1),),
        (256, "small"): ((32, 16, 1, 1),),
    }),
    *_entries("dkdv", _INTERPRETER, 32, {
        (256, "large"): ((32, 64, 1, 1),),
        (256, "small"): ((32, 32, 1, 1),),
    }),
    *_entries("dkdv", _INTERPRETER, 16, {
        (256, "large"): ((64, 64, 1, 1),),
        (256, "small"): ((16, 32, 1, 1),),
    }),
    *_entries("dq", _INTERPRETER, 32, {
        (256, "large"): ((64, 32, 1, 1),),
        (256, "small"): ((32, 32, 1, 1),),
    }),
    *_entries("dq", _INTERPRETER, 16, {
        (256, "large"): ((64, 64, 1, 1),),
        (256, "small"): ((32, 16, 1, 1),),
    }),
)  # fmt: skip
