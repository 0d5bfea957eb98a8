# SPDX-License-Identifier: BSD-3-Clause
"""The choice of tiles for the Triton kernels, and of how many programs share a block: pure, no
triton here.

Of an entry of `tile_table`, a configuration whose shared memory does not fit the chip is refused,
with the reason, and the next one is taken. Nothing is tuned at a user's first call.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from maskattn_kernels.backends.tile_table import _CDNA, TABLE, Config, Entry

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
BLOCKS_OF_A_SPLIT = 4  # at least, or the second launch costs more than it saves
LIKELY_KEEP = 4  # of so many tokens under a mask one is expected to be selected


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


def forced_tiles() -> tuple[tuple[str, Config], ...]:
    """What `forced` says now."""
    return tuple(_forced.items()) if _forced else ()


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


_BY_KIND: dict[tuple[str, str, int, str], list[Entry]] = {}
for _entry in TABLE:
    for _arch in _entry.archs:
        _kind = (_entry.kernel, _arch, _entry.bits, _entry.size)
        _BY_KIND.setdefault(_kind, []).append(_entry)


def find_entry(kernel: str, arch: str, bits: int, head_dim: int, size: str) -> Entry:
    for entry in _BY_KIND.get((kernel, arch, bits, size), ()):
        if head_dim <= entry.head_dim:
            return entry
    raise RuntimeError(f"no entry for {kernel} on {arch}, {bits} bits, head_dim {head_dim}")


def programs_at_a_time(
    kernel: str, config: Config, bits: int, head_dim: int, arch: str, processors: int
) -> int:
    """How many programs of a tile the chip runs at a time, at least: each thread may have all the
    registers that there are."""
    if arch not in PROCESSOR:
        return processors
    shared = shared_memory(kernel, config, bits, head_dim, RELATIVES.get(arch, arch))
    return processors * max(1, blocks_of_processor(arch, 255, config.warps, shared))


def key_splits(programs: int, key_len: int, block_n: int, places: int) -> int:
    """Among how many programs the keys of a block of queries are shared, so that the chip fills.

    A power of two, because every number is one more compilation. Programs and lengths are those
    expected: how many tokens a mask selects is not known here.
    """
    return _splits(places // max(programs, 1), key_len // (BLOCKS_OF_A_SPLIT * block_n))


def query_splits(programs: int, query_len: int, block_m: int, places: int) -> int:
    """The same for the queries that stream by a block of keys in the backward pass."""
    return key_splits(programs, query_len, block_m, places)


def _splits(*limits: int) -> int:
    wanted = min(*limits, MAX_SPLITS)
    return 1 << (wanted.bit_length() - 1) if wanted > 1 else 1
