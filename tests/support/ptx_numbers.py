# SPDX-License-Identifier: BSD-3-Clause
"""Numbers for `ptx.py`: types and operators, and where a product finds its operands in shared
memory."""

from collections.abc import Callable

import numpy as np

OPERATORS: dict[str, Callable] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "max": np.fmax, "min": np.fmin,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "neu": np.not_equal, "equ": np.equal,
}  # fmt: skip
SIMPLE = ("add", "sub", "max", "min", "and", "or", "xor")
TYPES = {
    "f32": np.float32, "pred": bool, "b16": np.uint16, "u16": np.uint16, "b32": np.uint32,
    "u32": np.uint32, "s32": np.int32, "b64": np.uint64, "u64": np.uint64, "s64": np.int64,
}  # fmt: skip


def operand_places(descriptor: int, rows: int, transposed: bool) -> np.ndarray:
    """The addresses (rows, 16) of an operand in shared memory with a swizzle of 128 bytes."""
    start, leading, stride = ((descriptor >> shift & 0x3FFF) * 16 for shift in (0, 16, 32))
    assert descriptor >> 62 == 1 and descriptor >> 49 & 7 == 0, "not a swizzle of 128 bytes"
    row, k = np.arange(rows)[:, None], np.arange(16)[None]
    if transposed:  # 64 rows side by side, then 8 k
        places = row % 64 * 2 + row // 64 * leading + k % 8 * 128 + k // 8 * stride
    else:
        places = row % 8 * 128 + row // 8 * stride + k * 2
    places = places + start
    return places ^ (places >> 7 & 7) << 4


def half_bits(values: np.ndarray, kind: str) -> np.ndarray:
    if kind == "f16x2":
        with np.errstate(all="ignore"):
            return values.astype(np.float16).view(np.uint16).astype(np.uint32)
    bits = values.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> np.uint64(16) & np.uint64(1))) >> np.uint64(16)
    return np.where(np.isnan(values), 0x7FFF, rounded).astype(np.uint32)


def numbers(bits: np.ndarray, kind: str) -> np.ndarray:
    if kind == "f16":
        return bits.view(np.float16)
    return (bits.astype(np.uint32) << 16).view(np.float32)
