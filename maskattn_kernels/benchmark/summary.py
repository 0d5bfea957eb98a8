# SPDX-License-Identifier: BSD-3-Clause
"""Summaries of a run: geometric means, worst cells, break-even keep ratios, goals.

Pure functions over the results of a run, or over the JSON file of one; nothing is measured here.
"""

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from maskattn_kernels.benchmark.cases import FORWARD, TRAIN, Case
from maskattn_kernels.benchmark.rows import Results, Row

__all__ = [
    "UNMEASURED",
    "Goal",
    "break_even",
    "break_even_words",
    "goals",
    "mean_goal",
    "ratio",
    "ratios",
    "select",
    "worst_goal",
]

UNMEASURED = "not measured in this run"
#: Goals on forward and on forward+backward against gather + SDPA + scatter: geometric mean by
#: dtype, and the worst cell.
GATHER_GOALS = {
    FORWARD: ({"float32": 1.2, "bfloat16": 1.3}, 1.0),
    TRAIN: ({"float32": 1.15, "bfloat16": 1.5}, 0.95),
}


@dataclass(frozen=True)
class Goal:
    """One line of the table of goals.

    Attributes:
        what: the quantity.
        goal: its limit, as text.
        measured: its value in this run, as text, or why there is none.
        met: whether the value is within the limit; None where it was not measured.
    """

    what: str
    goal: str
    measured: str
    met: bool | None


def select(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """The rows without a wrong result whose case has the wanted values."""
    return [
        r for r in rows if "wrong" not in r and all(r["case"][k] == v for k, v in wanted.items())
    ]


def ratio(row: Row, peer: str) -> float | None:
    """Time of a peer / time of this package; None where the peer was not measured."""
    return row["peers"].get(peer, {}).get("times_ours")


def ratios(rows: Iterable[Row], peer: str) -> list[tuple[float, Row]]:
    """Each `ratio` of a peer that was measured, with its row."""
    return [(value, row) for row in rows if (value := ratio(row, peer)) is not None]


def mean_goal(what: str, values: Sequence[float], wanted: float) -> Goal:
    """A goal on the geometric mean of ratios."""
    goal = f">= {wanted:g}x"
    if not values:
        return Goal(f"{what}: geometric mean", goal, UNMEASURED, None)
    mean = statistics.geometric_mean(values)
    text = f"{mean:.2f}x ({len(values)} cells)"
    return Goal(f"{what}: geometric mean", goal, text, mean >= wanted)


def worst_goal(
    what: str, found: Sequence[tuple[float, Row]], wanted: float, number: str = "{:.2f}x"
) -> Goal:
    """A goal on the smallest of some values; ``number`` formats a value."""
    goal = f">= {wanted:.0%}" if "%" in number else f">= {wanted:g}x"
    if not found:
        return Goal(f"{what}: worst", goal, UNMEASURED, None)
    value, row = min(found, key=lambda f: f[0])
    text = f"{number.format(value)} at {row['name']}"
    return Goal(f"{what}: worst", goal, text, value >= wanted)


def _against_gather(results: Results) -> Iterator[Goal]:
    for phase, (means, least) in GATHER_GOALS.items():
        for dtype, wanted in means.items():
            found = ratios(select(results["cells"], phase=phase, dtype=dtype), "gather")
            what = f"{phase}, gather + SDPA + scatter / ours, {dtype}"
            yield mean_goal(what, [value for value, _ in found], wanted)
            yield worst_goal(what, found, least)


def _against_sdpa(results: Results) -> Iterator[Goal]:
    for mode, wanted in (("k", 4.0), ("qk", 12.0)):
        for phase in (FORWARD, TRAIN):
            rows = select(results["cells"], mode=mode, phase=phase, keep=0.25)
            found = ratios((r for r in rows if r["case"]["tokens"] >= 4096), "sdpa")
            what = f"{phase}, masked SDPA / ours, keep 0.25, N >= 4096, {mode}"
            yield worst_goal(what, found, wanted)


def _rate(results: Results) -> Iterator[Goal]:
    for dtype, tokens, head_dim, wanted in (
        ("float32", 16384, 64, 0.7),
        ("bfloat16", 16384, 64, 0.5),
        ("bfloat16", 4096, 128, 0.6),
    ):
        case = Case(tokens, head_dim, mode="k", keep=0.5, dtype=dtype)
        rows = [row for row in select(results["cells"]) if row["name"] == case.name]
        what = f"rate / torch's matmul rate, ({tokens}, {head_dim}) k 0.5 forward, {dtype}"
        goal = f">= {wanted:.0%}"
        if not rows:
            yield Goal(what, goal, UNMEASURED, None)
            continue
        share, rate = rows[0]["matmul_share"], rows[0]["ours_gflops"]
        text = f"{share:.0%} ({rate:.0f} of {rows[0]['matmul_gflops']:.0f} GFLOP/s)"
        yield Goal(what, goal, text, share >= wanted)


def _overhead(results: Results) -> Iterator[Goal]:
    what = "a call on 64 tokens, no grad / an SDPA call"
    if not results["overhead"] or "wrong" in results["overhead"][0]:
        yield Goal(what, "<= 2x", UNMEASURED, None)
        return
    peers = results["overhead"][0]["peers"]
    times = peers["ours"]["times_sdpa"]
    ours, sdpa = (peers[name]["median"] * 1e6 for name in ("ours", "dense"))
    text = f"{times:.2f}x ({ours:.0f} us, SDPA {sdpa:.0f} us)"
    yield Goal(what, "<= 2x", text, times <= 2)


def _memory_share(cores: Row) -> float | None:
    sparse, dense = (cores[core].get("peak_bytes") for core in ("sparse", "dense"))
    return sparse / dense if sparse and dense else None


def _network(results: Results) -> Iterator[Goal]:
    cores = {r["phase"]: r["cores"] for r in results["network"] if "wrong" not in r}
    forward, train = cores.get(FORWARD), cores.get(TRAIN)
    name = "U-Net 128 x 128, keep 0.25 qk: "
    value = 1 / forward["identity"]["times_ours"] if forward else None
    yield _times_goal(f"{name}forward / without attention products", value, "<=", 1.15)
    value = forward["dense"]["times_ours"] if forward else None
    yield _times_goal(f"{name}forward, dense / ours", value, ">=", 7)
    value = _memory_share(forward) if forward else None
    yield _times_goal(f"{name}forward, peak memory / dense", value, "<=", 0.33)
    value = train["dense"]["times_ours"] if train else None
    yield _times_goal(f"{name}forward+backward, dense / ours", value, ">=", 6)


def _times_goal(what: str, value: float | None, sign: str, wanted: float) -> Goal:
    goal = f"{sign} {wanted:g}x"
    if value is None:
        return Goal(what, goal, UNMEASURED, None)
    return Goal(what, goal, f"{value:.2f}x", value <= wanted if sign == "<=" else value >= wanted)


def _longest(results: Results) -> Iterator[Goal]:
    what = "peak memory of N=131072, D=64, float32, forward+backward"
    rows = [r for r in results["op_memory"] if r.get("peak_bytes")]
    if not rows:
        yield Goal(what, "<= 1 GiB", UNMEASURED, None)
        return
    peak = rows[0]["peak_bytes"]
    yield Goal(what, "<= 1 GiB", f"{peak / 2**30:.2f} GiB", peak <= 2**30)


def goals(results: Results) -> list[Goal]:
    """Each goal on speed and memory, with what the run measured."""
    parts = (_against_gather, _against_sdpa, _rate, _overhead, _network, _longest)
    return [goal for part in parts for goal in part(results)]


def break_even(keeps: Sequence[float], times_ours: Sequence[float]) -> float | None:
    """The keep ratio at which dense SDPA takes as long as masked attention.

    Args:
        keeps: measured keep ratios.
        times_ours: time of dense SDPA / time of masked attention, at each of them.

    Returns:
        the largest keep ratio where the two are equal, interpolated in the logarithm of the ratio;
        None if masked attention is faster at every keep ratio measured, 0.0 if at none.

    Example:
        >>> break_even([1.0, 0.5], [0.5, 2.0])
        0.75
    """
    points = sorted(zip(keeps, times_ours, strict=True), reverse=True)
    if points[0][1] >= 1:
        return None
    for (above, slow), (below, fast) in pairwise(points):
        if fast >= 1:
            fraction = math.log(slow) / (math.log(slow) - math.log(fast))
            return above + fraction * (below - above)
    return 0.0


def break_even_words(results: Results) -> list[str]:
    """One sentence for each sweep over keep ratios."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in select(results["keeps"]):
        case = row["case"]
        key = (case["dtype"], case["tokens"], case["head_dim"], case["mode"])
        groups.setdefault(key, []).append(row)
    sentences = []
    for (dtype, tokens, head_dim, mode), rows in groups.items():
        found = [(r["case"]["keep"], v) for v, r in ratios(rows, "dense")]
        if len(found) < 2:
            continue
        keep = break_even(*zip(*found, strict=True))
        if keep is None:
            upto = f"at every keep ratio up to {max(k for k, _ in found):g}"
        else:
            upto = f"up to keep {keep:.2f}" if keep else "at no keep ratio"
        where = f"N={tokens}, D={head_dim}, {mode}, {dtype}, forward"
        sentences.append(f"{where}: masked attention is faster than dense SDPA {upto}")
    return sentences
