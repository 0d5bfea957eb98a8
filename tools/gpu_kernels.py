# SPDX-License-Identifier: BSD-3-Clause
"""Compiles, without a GPU, the Triton kernels that `gpu_check.py` will launch on one.

    python tools/gpu_kernels.py [--arch sm_90] [--cache FOLDER] [--only tests,bench,tiles]

Every call that the check makes is made here on CPU tensors, in front of a stub of the driver
(`tests/support/stub_driver.py`), so that Triton's cache holds exactly the kernels that the GPU will
ask for. The cache serves a machine with the same Triton; where it serves none, the same command
fills it there, with all processors.

The tiles to be measured are compiled too, looked into, and sifted: FOLDER/tiles.json has for each
entry of `backends/tuning.py` the at most 15 that are worth a GPU's time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / "build" / "triton"
KINDS = ("tests", "bench", "tiles")
SWEEP = 600  # random calls


def prepare(cache: Path) -> None:
    """This process compiles into `cache`; the stub is loaded before a libcuda can be."""
    os.environ["TRITON_CACHE_DIR"] = str(cache)
    os.environ["TRITON_STORE_BINARY_ONLY"] = "1"  # tens of kilobytes a kernel
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    for folder in ("tests/support", "tests/ops", "tests/kernels", ""):
        sys.path.insert(0, str(ROOT / folder))
    from stub_driver import load

    load()


def calls_of_tests() -> Iterator[Callable[[], object]]:
    """The case table, what only a GPU shows, and the random sweep, forward and backward."""
    import test_gpu
    from cases import CASES, Case, make
    from harness import FLOATS, Target, arguments, run
    from test_sweep import gpu_case

    from maskattn_kernels import masked_attention

    def both(case: Case, dtype) -> None:
        x = make(case, dtype)
        run(Target("triton", dtype), x)
        qkv = (x.query, x.key, x.value)
        masked_attention(*qkv, key_bias=x.key_bias, backend="triton", **arguments(x))

    for case, dtype in product((*CASES, test_gpu.CASE, test_gpu.SHORT), FLOATS):
        yield partial(both, case, dtype)
    for seed in range(SWEEP):
        yield partial(both, gpu_case(seed), FLOATS[seed % len(FLOATS)])


def calls_of_bench() -> Iterator[Callable[[], object]]:
    """The cells of the benchmark."""
    from dataclasses import replace

    from maskattn_kernels.benchmark.cases import grid, make_inputs
    from maskattn_kernels.benchmark.peers import make_call
    from maskattn_kernels.benchmark.tune import triton_attention

    for case in grid("small", ("bfloat16",), "cuda"):
        there = replace(case, device="cpu")
        yield lambda case=there: make_call(triton_attention, case, make_inputs(case))()


def launch(share: int, shares: int, kind: str, arch: str, cache: Path, most: int | None) -> int:
    """One process's share of the calls of a kind; how many there were."""
    prepare(cache)
    from stub_driver import using

    calls = list(calls_of_tests() if kind == "tests" else calls_of_bench())[:most][share::shares]
    random.Random(share).shuffle(calls)  # processes seldom compile the same kernel at a time
    with using(arch):
        for call in calls:
            call()
    return len(calls)


def wanted_entries(cache: Path) -> list[tuple[str, str, int, str]]:
    """The entries of the table of tiles that are tuned."""
    prepare(cache)
    from maskattn_kernels.benchmark.tune import entries

    return entries(("bfloat16",))


def sift(entry: tuple[str, str, int, str], arch: str, cache: Path) -> dict:
    """The tiles of one entry that are worth measuring, as a row of tiles.json."""
    prepare(cache)
    from stub_driver import using

    from maskattn_kernels.benchmark.tune import shortlist

    with using(arch):
        tiles, dropped = shortlist(entry, arch)
    return {"entry": entry, "tiles": tiles, "dropped": dropped}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="sm_90", help="the GPU to compile for (default sm_90)")
    parser.add_argument("--cache", type=Path, default=CACHE, help="default build/triton")
    parser.add_argument("--only", default=",".join(KINDS), help=f"default {','.join(KINDS)}")
    parser.add_argument("--calls", type=int, help="at most so many of a kind; default all")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    kinds, start = given.only.split(","), time.monotonic()
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        parser.error(f"--only: expected some of {','.join(KINDS)}, got {','.join(unknown)}")
    with ProcessPoolExecutor(given.processes) as pool:
        for kind in (k for k in kinds if k != "tiles"):
            share = partial(
                launch, shares=given.processes, kind=kind, arch=given.arch, cache=given.cache,
                most=given.calls,
            )  # fmt: skip
            calls = sum(pool.map(share, range(given.processes)))
            print(f"{kind}: {calls} calls, {time.monotonic() - start:.0f} s", flush=True)
        if "tiles" in kinds:
            wanted = pool.submit(wanted_entries, given.cache).result()
            rows = list(pool.map(partial(sift, arch=given.arch, cache=given.cache), wanted))
            (given.cache / "tiles.json").write_text(json.dumps(rows, indent=1) + "\n")
            kept = sum(len(row["tiles"]) for row in rows)
            print(f"tiles: {kept} worth measuring, {time.monotonic() - start:.0f} s", flush=True)
    held = sum(p.stat().st_size for p in given.cache.rglob("*") if p.is_file())
    print(f"{given.cache}: {held / 2**20:.1f} MiB for {given.arch}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
