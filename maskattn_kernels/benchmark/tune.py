# SPDX-License-Identifier: BSD-3-Clause
"""Measures tiles of the Triton kernels on this GPU, for the table in `backends/tuning.py`.

For each kernel, width of numbers, head_dim and size class, every tile that fits the chip is timed
on one call of that class; the other kernels keep the tiles of the table. A tile that gives a wrong
result, or does not compile, is reported and left out.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from maskattn_kernels.backends import tuning
from maskattn_kernels.benchmark.cases import FORWARD, TRAIN, Case, make_inputs
from maskattn_kernels.benchmark.check import WrongResult, check, oracle
from maskattn_kernels.benchmark.peers import make_call
from maskattn_kernels.benchmark.timing import race
from maskattn_kernels.common.text import first_line
from maskattn_kernels.functional import masked_attention

__all__ = ["HEAD_DIMS", "Ranking", "candidates", "measure_tiles", "tune_tiles"]

HEAD_DIMS = (64, 128, 256)
#: (tokens, batch) of the call that represents a size class.
CALLS = {"large": (8192, 8), "small": (1024, 2)}
KEPT = 3  # number of configurations printed: the best one and fallbacks
BITS = {"bfloat16": 16, "float16": 16, "float32": 32}


@dataclass(frozen=True)
class Ranking:
    """The tiles of one entry of the table, best first.

    Attributes:
        kernel, bits, head_dim, size: the entry.
        seconds: of a whole call, by tile.
        failed: why a tile has no time, by tile.
    """

    kernel: str
    bits: int
    head_dim: int
    size: str
    seconds: dict[tuning.Config, float]
    failed: dict[tuning.Config, str]

    def line(self) -> str:
        """A line of the table, with the times of its tiles."""
        if not self.seconds:
            return f"# {self.kernel} ({self.head_dim}, {self.size!r}): no tile ran"
        best = sorted(self.seconds, key=self.seconds.__getitem__)[:KEPT]
        tiles = ", ".join(str(tuple(config)) for config in best)
        times = ", ".join(f"{self.seconds[config] * 1e6:.1f}" for config in best)
        return f'({self.head_dim}, "{self.size}"): ({tiles},),  # us: {times}'


def candidates(
    kernel: str, arch: str, bits: int, head_dim: int, limit: int | None
) -> list[tuning.Config]:
    """The tiles to measure: sizes for tensor cores that fit into shared memory.

    Example:
        >>> tiles = candidates("fwd", "sm_90", 16, 64, None)
        >>> Config = tuning.Config
        >>> Config(128, 64, 8, 3) in tiles, Config(8, 64, 4, 2) in tiles
        (True, False)
    """
    sides, least = (16, 32, 64, 128), 2048 if bits == 16 else 512
    tiles = [tuning.Config(*c) for c in product(sides, sides, (4, 8), (1, 2, 3))]
    tiles = [c for c in tiles if least <= c.block_m * c.block_n <= 8 * least]
    return [c for c in tiles if not tuning.refuse(kernel, c, bits, head_dim, arch, limit)]


def tune_tiles(dtypes: tuple[str, ...]) -> Iterator[Ranking]:
    """Rank the tiles of every entry for this GPU, one by one.

    Args:
        dtypes: names; one is enough for a width of numbers.
    """
    facts = torch.cuda.get_device_properties(torch.cuda.current_device())
    arch = f"sm_{facts.major}{facts.minor}"
    limit = getattr(facts, "shared_memory_per_block_optin", None)  # no type stub has it
    for dtype, kernel, head_dim, size in product(dtypes, tuning.KERNELS, HEAD_DIMS, CALLS):
        tokens, batch = CALLS[size]
        phase = FORWARD if kernel == "fwd" else TRAIN
        case = Case(tokens, head_dim, batch, "k", 0.25, dtype, phase, "cuda")
        tiles = candidates(kernel, arch, BITS[dtype], head_dim, limit)
        seconds, failed = measure_tiles(case, kernel, tiles)
        yield Ranking(kernel, BITS[dtype], head_dim, size, seconds, failed)


def triton_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, mode: str) -> Tensor:
    """A peer as in `peers`: this package with the backend `triton`."""
    query_mask = mask if mode == "qk" else None
    return masked_attention(
        query, key, value, key_mask=mask, query_mask=query_mask, backend="triton"
    )


def measure_tiles(
    case: Case, kernel: str, tiles: list[tuning.Config]
) -> tuple[dict[tuning.Config, float], dict[tuning.Config, str]]:
    """Seconds of a call by tile, and the reason for each tile without a time."""
    inputs = make_inputs(case)
    right = oracle(case, inputs)
    call = make_call(triton_attention, case, inputs)
    runs: dict[str, Callable[[], object]] = {}
    by_name, failed = {str(tuple(tile)): tile for tile in tiles}, {}
    for name, tile in by_name.items():

        def with_tile(tile: tuning.Config = tile) -> tuple[Tensor, ...]:
            with tuning.forced(kernel, tile):
                return call()

        try:
            check(case, with_tile(), right)
        except WrongResult as wrong:
            failed[tile] = f"wrong result: {wrong}"
        except Exception as error:  # compilers' and drivers' errors have many types
            failed[tile] = first_line(error)[:100]
        else:
            runs[name] = with_tile
    times = race(runs, 0.02 * len(runs), device=case.device) if runs else None
    return {by_name[n]: times.timing(n).median for n in runs if times}, failed
