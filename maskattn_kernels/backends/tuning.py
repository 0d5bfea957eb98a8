# SPDX-License-Identifier: BSD-3-Clause
"""The one table of tile sizes of the Triton kernels, and the choice from it: pure, no triton here.

An entry serves one kernel on some architectures, for one width of numbers and head_dim up to a
size. Its configurations are in order of preference: one whose shared memory does not fit the chip
is refused, with the reason, and the next one is taken. They are informed guesses; no measurement
chose them yet. Nothing is tuned at a user's first call.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

KERNELS = ("fwd", "dkdv", "dq")
ARCHS = ("sm_80", "sm_90", "sm_100", "gfx942")  # those with entries of their own
SHARED_MEMORY = {  # bytes that one program may have
    "sm_80": 166_912, "sm_86": 101_376, "sm_87": 166_912, "sm_89": 101_376,
    "sm_90": 232_448,
    "sm_100": 232_448, "sm_103": 232_448, "sm_120": 101_376, "sm_121": 101_376,
    "gfx90a": 65_536, "gfx942": 65_536, "gfx950": 65_536,
}  # fmt: skip
# What a processor holds: bytes of shared memory (1 KiB of each block's is not its own), threads,
# blocks.
PROCESSOR = {
    "sm_80": (167_936, 2048, 32), "sm_86": (102_400, 1536, 16), "sm_87": (167_936, 1536, 16),
    "sm_89": (102_400, 1536, 24), "sm_90": (233_472, 2048, 32), "sm_100": (233_472, 2048, 32),
    "sm_103": (233_472, 2048, 32), "sm_120": (102_400, 1536, 24), "sm_121": (102_400, 1536, 24),
}  # fmt: skip
REGISTERS, REGISTERS_AT_A_TIME = 65_536, 256  # of a processor; given to a warp in such steps
# Chips without entries of their own take those of the chip they resemble most.
RELATIVES = {
    "sm_86": "sm_80", "sm_87": "sm_80", "sm_89": "sm_80", "sm_103": "sm_100", "sm_120": "sm_80",
    "sm_121": "sm_80", "gfx90a": "gfx942", "gfx950": "gfx942",
}  # fmt: skip
MAX_SPLITS = 16
KEY_BLOCKS_OF_A_SPLIT = 4  # at least, or the second launch costs more than it saves


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
# spills with all options on, as `maskattn tiles` shows, with Triton 3.6, 3.7, 3.8 and 3.9 (but dkdv
# in float32 at head_dim 128 on sm_80: two with 3.6); of those the largest are assumed best.
TABLE: tuple[Entry, ...] = (
    *_entries("fwd", _HOPPER, 16, {
        (64, "large"): ((128, 64, 8, 3),),
        (64, "small"): ((64, 64, 4, 3),),
        (128, "large"): ((128, 64, 8, 3),),
        (128, "small"): ((64, 64, 8, 3),),
        (256, "large"): ((128, 32, 8, 2), (64, 32, 8, 2)),
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
        (64, "large"): ((64, 128, 8, 3),),
        (64, "small"): ((64, 64, 4, 3),),
        (128, "large"): ((32, 128, 8, 3),),
        (128, "small"): ((32, 64, 8, 3),),
        (256, "large"): ((32, 32, 8, 2),),
        (256, "small"): ((32, 32, 8, 2),),
    }),
    *_entries("dkdv", _BLACKWELL, 16, {
        (64, "large"): ((64, 128, 8, 3),),
        (64, "small"): ((64, 64, 8, 3),),
        (128, "large"): ((32, 64, 8, 3),),
        (128, "small"): ((32, 64, 8, 3),),
        (256, "large"): ((32, 32, 8, 2),),
        (256, "small"): ((32, 32, 8, 2),),
    }),
    *_entries("dkdv", _AMPERE, 16, {
        (64, "large"): ((32, 64, 8, 2),),
        (64, "small"): ((32, 64, 8, 2),),
        (128, "large"): ((64, 64, 8, 3), (32, 64, 8, 2)),
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
    *_entries("dq", (*_HOPPER, *_BLACKWELL), 16, {
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


def head_dim_pad(head_dim: int) -> int:
    """The width of a tile: a power of two, and at least 16, as tensor cores need."""
    return max(16, 1 << (head_dim - 1).bit_length())


def shared_memory(kernel: str, config: Config, bits: int, head_dim: int, arch: str) -> int:
    """Bytes of shared memory that a kernel takes at most: what stays, what streams, two tiles of
    scores. A loop of `stages` stages holds one tile less, the last one being in use, but two where
    products are asynchronous. Short sequences read no index ahead, but one tile of keys more, and
    keep two lists of 256 tokens. On CDNA without stages all that stays fits into registers; tcgen05
    takes more operands from shared memory. The tests compare it with what compilers say.
    """
    block_m, block_n, _, stages = config
    row = head_dim_pad(head_dim) * bits // 8
    stays = {"fwd": block_m, "short": block_m, "dkdv": 2 * block_n, "dq": 2 * block_m}[kernel]
    streams = 2 * (block_m if kernel == "dkdv" else block_n)
    tiles = streams if arch in _CDNA and stages == 1 else stays + streams * max(stages - 1, 2)
    scores = 2 * block_m * block_n * bits // 8
    if arch == "sm_100" and kernel in ("dkdv", "dq"):
        tiles, scores = tiles + (streams if bits == 16 else 0), scores + 2048
    if kernel == "short":
        tiles, scores = tiles + block_n, scores + 2048
    return tiles * row + scores


def blocks_of_processor(arch: str, registers: int, warps: int, shared: int) -> int:
    """How many blocks of a kernel an NVIDIA processor runs at a time.

    One block alone leaves the tensor cores idle whenever it does anything else.

    Args:
        arch: one of PROCESSOR.
        registers: of a thread.
        warps: of a block.
        shared: bytes of shared memory of a block.

    Example:
        >>> blocks_of_processor("sm_90", 152, 8, 65_536), blocks_of_processor("sm_90", 128, 8, 0)
        (1, 2)
    """
    memory, threads, blocks = PROCESSOR[arch]
    of_warp = -(-registers * 32 // REGISTERS_AT_A_TIME) * REGISTERS_AT_A_TIME
    return min(
        blocks,
        threads // (32 * warps),
        REGISTERS // (of_warp * warps),
        memory // (shared + 1024),
    )


_forced: dict[str, Config] = {}


@contextmanager
def forced(kernel: str, config: Config) -> Iterator[None]:
    """Calls inside take this configuration of a kernel: how tiles are measured. Not for threads."""
    _forced[kernel] = config
    try:
        yield
    finally:
        del _forced[kernel]


def choose_config(
    kernel: str,
    arch: str,
    bits: int,
    head_dim: int,
    rows: int,
    processors: int,
    limit: int | None = None,
) -> Config:
    """The first configuration of the entry for this call that fits the chip.

    Args:
        kernel: one of KERNELS.
        arch: "sm_90", "gfx942", ..., or "interpreter".
        bits: width of the numbers, 16 or 32.
        head_dim: 1 to 256.
        rows: batch * heads * tokens that stay: queries, or keys for "dkdv".
        processors: how many programs the chip runs at a time, at least.
        limit: bytes of shared memory of one program, if known better than from SHARED_MEMORY.

    Raises:
        RuntimeError: no configuration fits; the message has the reason for each.
    """
    if kernel in _forced:
        return _forced[kernel]
    limit = SHARED_MEMORY.get(arch) if limit is None else limit
    arch = RELATIVES.get(arch, arch)
    entry = find_entry(kernel, arch, bits, head_dim, "large")
    stays = entry.configs[0].block_n if kernel == "dkdv" else entry.configs[0].block_m
    if rows < stays * processors:
        entry = find_entry(kernel, arch, bits, head_dim, "small")
    why = []
    for config in entry.configs:
        refusal = refuse(kernel, config, bits, head_dim, arch, limit)
        if not refusal:
            return config
        why.append(refusal)
    raise RuntimeError(f"no configuration of {kernel} fits {arch}: {'; '.join(why)}")


def refuse(
    kernel: str, config: Config, bits: int, head_dim: int, arch: str, limit: int | None
) -> str:
    """Why a configuration cannot run on a chip; empty when it can."""
    needs = shared_memory(kernel, config, bits, head_dim, arch)
    if limit is None or needs <= limit:
        return ""
    return f"{tuple(config)} needs {needs} bytes of shared memory, the chip has {limit}"


def find_entry(kernel: str, arch: str, bits: int, head_dim: int, size: str) -> Entry:
    for entry in TABLE:
        key = (entry.kernel, entry.bits, entry.size)
        if key == (kernel, bits, size) and arch in entry.archs and head_dim <= entry.head_dim:
            return entry
    raise RuntimeError(f"no entry for {kernel} on {arch}, {bits} bits, head_dim {head_dim}")


def key_splits(programs: int, key_len: int, block_n: int, processors: int) -> int:
    """Among how many programs the keys of a block of queries are shared, so that the chip fills.

    A power of two, because every number is one more compilation.
    """
    wanted = min(
        processors // max(programs, 1), key_len // (KEY_BLOCKS_OF_A_SPLIT * block_n), MAX_SPLITS
    )
    return 1 << (wanted.bit_length() - 1) if wanted > 1 else 1
