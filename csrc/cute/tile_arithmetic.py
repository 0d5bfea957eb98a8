# SPDX-License-Identifier: BSD-3-Clause
"""Sizes and index arithmetic of the kernels in CuTe-DSL, as functions of plain integers.

The kernels call them with numbers of the GPU, tests with numbers of Python.
"""

from typing import NamedTuple

# Head dims of a tile; a smaller head dim is padded with zeros to the next.
WIDTHS = {"sm_90a": (64, 128, 256), "sm_100a": (64, 128)}
ROW_CHUNKS = 8  # chunks of 16 bytes in the 128 bytes that the swizzle permutes
CHUNK = 8  # 16-bit numbers in 16 bytes
GROUP = 128  # threads of a warpgroup
STAGES = 2  # tiles of keys, and of values, that shared memory holds
QUERIES = 128  # that a block owns
GROUP_QUERIES = 64  # rows of a product of one warpgroup on Hopper
CONSUMERS = {"sm_90a": 2, "sm_100a": 1}  # warpgroups that attend, beside the one that gathers


def threads_of(arch: str) -> int:
    """Threads of a block."""
    return GROUP * (CONSUMERS[arch] + 1)


def keys_of(width: int) -> int:
    """Keys of a tile: what fits into shared memory and registers."""
    return 64 if width > 128 else 128


class Memory(NamedTuple):
    """Where things lie in the shared memory of a block, in bytes."""

    q: int  # (QUERIES, width), later the results
    k: int  # (STAGES, keys, width)
    v: int
    weights: int  # (QUERIES, keys), Blackwell only
    terms: int  # (STAGES, keys) float32: what is added to the score of a key
    tokens: int  # (STAGES, keys) int32
    queries: int  # (QUERIES,) int32: tokens
    barriers: int  # 4 x STAGES: full and empty, of keys and of values
    done: int  # 2 barriers, of the products with keys and with values; Blackwell only
    tensor: int  # where the tensor memory of the block begins; Blackwell only
    end: int


def memory_of(width: int, arch: str) -> Memory:
    keys = keys_of(width)
    tile, row = STAGES * keys * width * 2, STAGES * keys * 4
    weights = QUERIES * keys * 2 if arch == "sm_100a" else 0
    sizes = (
        QUERIES * width * 2,
        tile,
        tile,
        weights,
        row,
        row,
        QUERIES * 4,
        4 * STAGES * 8,
        16,
        16,
    )
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + size)
    return Memory(*starts)


def chunk_offset(row: int, chunk: int, rows: int) -> int:
    """Where 16 bytes of a tile of `rows` rows lie, in bytes.

    The layout is the one that products read with a swizzle of 128 bytes: columns of 64 numbers one
    after the other, rows of 128 bytes in each, and in each row the chunks in the order chunk ^
    (row % 8), by which a column of chunks is spread over all banks.
    """
    return (chunk // ROW_CHUNKS * rows + row) * 128 + ((chunk % ROW_CHUNKS) ^ (row % 8)) * 16


def copies_of(rows: int, width: int) -> int:
    """Chunks that each thread of a warpgroup copies of a tile."""
    return rows * (width // CHUNK) // GROUP


def piece_of(thread: int, copy: int, width: int) -> tuple[int, int]:
    """The row and the chunk that a thread copies at its turn `copy`: neighbours copy neighbours."""
    chunks = width // CHUNK
    return thread // chunks + copy * (GROUP // chunks), thread % chunks


def score_place(thread: int, number: int) -> tuple[int, int]:
    """Row and column of a number of a product's result, which 128 threads share by 64 rows."""
    warp, lane = thread // 32, thread % 32
    return (
        16 * warp + lane // 4 + number // 2 % 2 * 8,
        2 * (lane % 4) + number % 2 + number // 4 * 8,
    )
