# SPDX-License-Identifier: BSD-3-Clause
"""Goals on a GPU of Hopper's class in bfloat16, and what a run measured. Pure functions.

Floors come from the run itself: the case's operations at the rate of a large matrix product, or a
copy of its bytes, whichever takes longer. A time that is compared with a floor or a number of
seconds is that of the call's CUDA graph: the GPU's time, without the host's.
"""

from collections.abc import Iterator

from maskattn_kernels.benchmark.cases import FORWARD, TRAIN
from maskattn_kernels.benchmark.peers import BY_NAME, OURS
from maskattn_kernels.benchmark.rows import Results, Row
from maskattn_kernels.benchmark.summary import (
    UNMEASURED,
    Goal,
    mean_goal,
    ratio,
    ratios,
    select,
    worst_goal,
)

__all__ = ["gpu_goals"]

LARGE_FLOOR_SECONDS = 100e-6
MATMUL_SHARES = {FORWARD: 0.5, TRAIN: 0.4}
#: Most seconds of a forward call, by number of tokens.
SHORT_CALLS = {1024: 15e-6, 256: 8e-6}


def gpu_goals(results: Results) -> list[Goal]:
    """Each goal on a GPU, with what the run measured."""
    rows = select(results["cells"], dtype="bfloat16", device="cuda")
    return [*_shares(rows), *_short_calls(rows), *_best_peers(rows), *_masked_peers(rows)]


def _graph_seconds(row: Row) -> float:
    return row["peers"][OURS.name]["graph"]["median"]


def _shares(rows: list[Row]) -> Iterator[Goal]:
    for phase, wanted in MATMUL_SHARES.items():
        large = [r for r in select(rows, phase=phase) if r["floor_seconds"] >= LARGE_FLOOR_SECONDS]
        shares = [(r["flops"] / _graph_seconds(r) / r["matmul_gflops"] / 1e9, r) for r in large]
        what = f"{phase}, share of the matmul rate where the floor is over 100 us"
        yield worst_goal(what, shares, wanted, "{:.0%}")


def _short_calls(rows: list[Row]) -> Iterator[Goal]:
    for tokens, limit in SHORT_CALLS.items():
        calls = select(rows, phase=FORWARD, tokens=tokens)
        what, goal = f"forward, N={tokens}, time on the GPU: worst", f"<= {limit * 1e6:.0f} us"
        if not calls:
            yield Goal(what, goal, UNMEASURED, None)
            continue
        worst = max(calls, key=_graph_seconds)
        seconds = _graph_seconds(worst)
        yield Goal(what, goal, f"{seconds * 1e6:.1f} us at {worst['name']}", seconds <= limit)


def _best_peers(rows: list[Row]) -> Iterator[Goal]:
    free = [p.name for p in BY_NAME.values() if p.masked and not p.waits and p is not OURS]
    for phase in (FORWARD, TRAIN):
        best = []
        for row in select(rows, phase=phase):
            found = [v for name in free if (v := ratio(row, name)) is not None]
            best += [min(found)] if found else []
        yield mean_goal(f"{phase}, best peer that does not wait for the GPU / ours", best, 1.5)


def _masked_peers(rows: list[Row]) -> Iterator[Goal]:
    scattered = [r for r in select(rows, keep=0.25) if r["case"]["tokens"] >= 4096]
    for peer in ("sdpa", "flex"):
        what = f"{BY_NAME[peer].label} / ours, keep 0.25, N >= 4096"
        yield worst_goal(what, ratios(scattered, peer), 3)
