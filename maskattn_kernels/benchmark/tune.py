# SPDX-License-Identifier: BSD-3-Clause
"""Measures tiles of the Triton kernels on this GPU, for the table in `backends/tuning.py`.

For each kernel, width of numbers, head_dim and size class, tiles are timed on one call of that
class; the other kernels keep the tiles of the table. A tile that gives a wrong result, or does not
compile, is reported and left out. Which tiles are worth the time a compiler says without a GPU:
`shortlist`, whose rows `tools/gpu_kernels.py` writes into a file.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskattn_kernels.backends import tuning
from maskattn_kernels.benchmark.cases import FORWARD, TRAIN, Case, make_inputs
from maskattn_kernels.benchmark.check import WrongResult, check, oracle
from maskattn_kernels.benchmark.peers import make_call
from maskattn_kernels.benchmark.timing import captured, race
from maskattn_kernels.common.text import first_line
from maskattn_kernels.functional import masked_attention

__all__ = [
    "HEAD_DIMS",
    "Ranking",
    "candidates",
    "entries",
    "entry_case",
    "measure_tiles",
    "read_shortlist",
    "shortlist",
    "tune_tiles",
]

HEAD_DIMS = (64, 128, 256)
#: (tokens, batch) of the call that represents a size class.
CALLS = {"large": (8192, 8), "small": (1024, 2)}
LISTED = 15  # tiles of an entry that are measured
#: Of the table: kernel, dtype, head_dim, size.
Entry = tuple[str, str, int, str]
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

    def row(self) -> dict[str, Any]:
        """The same for JSON, with every tile: seconds, or why there are none."""
        entry = {name: getattr(self, name) for name in ("kernel", "bits", "head_dim", "size")}
        found = {**self.seconds, **self.failed}
        return entry | {"tiles": [[*tile, outcome] for tile, outcome in found.items()]}


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


def shortlist(
    entry: Entry, arch: str, most: int = LISTED
) -> tuple[list[tuning.Config], dict[str, str]]:
    """Compile the candidates of an entry, and keep those that are worth measuring.

    To be called where kernels are launched on CPU tensors in front of a stub of the driver. Best
    are tiles of which a processor runs two blocks at a time; among those the largest.

    Returns:
        at most ``most`` tiles, and why the others were dropped, by tile.
    """
    from maskattn_kernels.backends import triton_compile, triton_plans

    kernel, dtype, head_dim, _ = entry
    case = replace(entry_case(*entry), device="cpu")
    call = make_call(triton_attention, case, make_inputs(case))
    function = triton_compile.TILED[kernel]
    ranks: dict[tuning.Config, tuple[bool, int]] = {}
    dropped = {}
    for tile in candidates(kernel, arch, BITS[dtype], head_dim, tuning.SHARED_MEMORY[arch]):
        triton_plans.forget()
        function.device_caches.clear()  # after the call it holds this tile's kernel alone
        try:
            with tuning.forced(kernel, tile):
                call()
        except Exception as error:  # compilers' errors have many types
            dropped[str(tuple(tile))] = first_line(error)[:100]
            continue
        ((compiled,),) = (list(c[0].values()) for c in function.device_caches.values())
        facts = triton_compile._nvidia(compiled.asm["cubin"])
        if facts["spills"] or facts["stack"]:
            dropped[str(tuple(tile))] = f"{facts['spills']} spills, {facts['stack']} bytes of stack"
            continue
        shared = compiled.metadata.shared
        blocks = tuning.blocks_of_processor(arch, facts["registers"], tile.warps, shared)
        ranks[tile] = (blocks > 1, tile.block_m * tile.block_n)
    best = sorted(ranks, key=ranks.__getitem__, reverse=True)
    dropped |= {str(tuple(tile)): "others are more likely" for tile in best[most:]}
    return best[:most], dropped


def entries(dtypes: Iterable[str]) -> list[Entry]:
    """Every entry that is tuned."""
    rows = product(dtypes, tuning.KERNELS, HEAD_DIMS, CALLS)
    return [(kernel, dtype, head_dim, size) for dtype, kernel, head_dim, size in rows]


def entry_case(kernel: str, dtype: str, head_dim: int, size: str) -> Case:
    """The call that represents an entry of the table."""
    tokens, batch = CALLS[size]
    phase = FORWARD if kernel == "fwd" else TRAIN
    return Case(tokens, head_dim, batch, "k", 0.25, dtype, phase, "cuda")


def read_shortlist(path: Path) -> dict[Entry, list[tuning.Config]]:
    """The tiles to measure, by entry, as `tools/gpu_kernels.py` wrote them.

    Raises:
        ValueError: not such a file.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return {tuple(row["entry"]): [tuning.Config(*t) for t in row["tiles"]] for row in rows}
    except OSError as error:
        raise ValueError(f"--tiles: {path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"--tiles: {path}: expected a list of tools/gpu_kernels.py") from None


def tune_tiles(
    dtypes: tuple[str, ...],
    listed: Mapping[Entry, list[tuning.Config]] | None = None,
) -> Iterator[Ranking]:
    """Rank the tiles of every entry for this GPU, one by one.

    Args:
        dtypes: names; one is enough for a width of numbers.
        listed: the tiles to measure (`read_shortlist`) beside those of the table; None = all that
            fit the chip.
    """
    facts = torch.cuda.get_device_properties(torch.cuda.current_device())
    arch = f"sm_{facts.major}{facts.minor}"
    limit = getattr(facts, "shared_memory_per_block_optin", None)  # no type stub has it
    for entry in entries(dtypes):
        kernel, dtype, head_dim, size = entry
        if listed is None:
            tiles = candidates(kernel, arch, BITS[dtype], head_dim, limit)
        else:
            tiles = beside_the_table(entry, arch, listed.get(entry, []))
        seconds, failed = measure_tiles(entry_case(*entry), kernel, tiles)
        yield Ranking(kernel, BITS[dtype], head_dim, size, seconds, failed)


def beside_the_table(entry: Entry, arch: str, tiles: list[tuning.Config]) -> list[tuning.Config]:
    """The tiles that calls take now, without which no other can be called better, and others."""
    kernel, dtype, head_dim, size = entry
    chip = tuning.RELATIVES.get(arch, arch)
    now = tuning.find_entry(kernel, chip, BITS[dtype], head_dim, size).configs
    return list(dict.fromkeys([*now, *tiles]))


def triton_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, mode: str) -> Tensor:
    """A peer as in `peers`: this package with the backend `triton`."""
    query_mask = mask if mode == "qk" else None
    return masked_attention(
        query, key, value, key_mask=mask, query_mask=query_mask, backend="triton"
    )


def measure_tiles(
    case: Case, kernel: str, tiles: list[tuning.Config]
) -> tuple[dict[tuning.Config, float], dict[tuning.Config, str]]:
    """Seconds of a call by tile, and the reason for each tile without a time.

    On a GPU each call is captured in a graph: a short one takes the host longer than the GPU.
    """
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
            runs[name] = captured(with_tile) if case.device == "cuda" else with_tile
    times = race(runs, 0.02 * len(runs), device=case.device) if runs else None
    return {by_name[n]: times.timing(n).median for n in runs if times}, failed
