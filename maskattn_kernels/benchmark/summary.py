# SPDX-License-Identifier: BSD-3-Clause
"""What the rows say: geometric means, worst cells, break-even keep ratios, goals and measured.

Pure functions over the results of a run (or a JSON file of one); nothing is measured here.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from maskattn_kernels.benchmark.cases import FORWARD, TRAIN
from maskattn_kernels.benchmark.rows import Results, Row

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
        what: what was measured.
        goal: in words.
        measured: in words, or why there is no number.
        met: None where it was not measured.
    """

    what: str
    goal: str
    measured: str
    met: bool | None


def select(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """The right rows whose case has the wanted values."""
    return [
        r for r in rows if "wrong" not in r and all(r["case"][k] == v for k, v in wanted.items())
    ]


def ratio(row: Row, peer: str) -> float | None:
    """How many times longer a peer took than this package, or None where it took no part."""
    return row["peers"].get(peer, {}).get("times_ours")


def ratios(rows: Iterable[Row], peer: str) -> list[tuple[float, Row]]:
    return [(value, row) for row in rows if (value := ratio(row, peer)) is not None]


def geometric_mean(values: Sequence[float]) -> float:
    return statistics.geometric_mean(values)


def _against_gather(results: Results) -> list[Goal]:
    goals = []
    for phase, (means, least) in GATHER_GOALS.items():
        for dtype, goal in means.items():
            found = ratios(select(results["cells"], phase=phase, dtype=dtype), "gather")
            what = f"{phase}, gather + SDPA + scatter / ours, {dtype}"
            for title, wanted, pick in (("geometric mean", goal, None), ("worst", least, min)):
                line, text = f"{what}: {title}", f">= {wanted:g}x"
                if not found:
                    goals.append(Goal(line, text, UNMEASURED, None))
                elif pick is None:
                    mean = geometric_mean([v for v, _ in found])
                    goals.append(
                        Goal(line, text, f"{mean:.2f}x ({len(found)} cells)", mean >= wanted)
                    )
                else:
                    worst, row = pick(found, key=lambda f: f[0])
                    goals.append(
                        Goal(line, text, f"{worst:.2f}x at {row['name']}", worst >= wanted)
                    )
    return goals


def _against_sdpa(results: Results) -> list[Goal]:
    goals = []
    for mode, wanted in (("k", 4.0), ("qk", 12.0)):
        for phase in (FORWARD, TRAIN):
            rows = [
                r
                for r in select(results["cells"], mode=mode, phase=phase, keep=0.25)
                if r["case"]["tokens"] >= 4096
            ]
            found = ratios(rows, "sdpa")
            what = f"{phase}, masked SDPA / ours, keep 0.25, N >= 4096, {mode}: worst"
            if not found:
                goals.append(Goal(what, f">= {wanted:g}x", UNMEASURED, None))
                continue
            worst, row = min(found, key=lambda f: f[0])
            mean = geometric_mean([v for v, _ in found])
            text = f"{worst:.1f}x at {row['name']} (mean {mean:.1f}x)"
            goals.append(Goal(what, f">= {wanted:g}x", text, worst >= wanted))
    return goals


def _rate(results: Results) -> list[Goal]:
    goals = []
    for dtype, tokens, head_dim, wanted in (
        ("float32", 16384, 64, 0.7),
        ("bfloat16", 16384, 64, 0.5),
        ("bfloat16", 4096, 128, 0.6),
    ):
        rows = select(
            results["cells"],
            dtype=dtype,
            tokens=tokens,
            head_dim=head_dim,
            batch=1,
            mode="k",
            keep=0.5,
            phase=FORWARD,
        )
        what = f"rate / torch's matmul rate, ({tokens}, {head_dim}) k 0.5 forward, {dtype}"
        if not rows:
            goals.append(Goal(what, f">= {wanted:.0%}", UNMEASURED, None))
            continue
        share, rate = rows[0]["matmul_share"], rows[0]["ours_gflops"]
        matmul = rows[0]["matmul_gflops"]
        text = f"{share:.0%} ({rate:.0f} of {matmul:.0f} GFLOP/s)"
        goals.append(Goal(what, f">= {wanted:.0%}", text, share >= wanted))
    return goals


def _overhead(results: Results) -> list[Goal]:
    what = "a call on 64 tokens, no grad / an SDPA call"
    if not results["overhead"] or "wrong" in results["overhead"][0]:
        return [Goal(what, "<= 2x", UNMEASURED, None)]
    peers = results["overhead"][0]["peers"]
    times = peers["ours"]["times_sdpa"]
    ours, sdpa = (peers[name]["median"] * 1e6 for name in ("ours", "dense"))
    text = f"{times:.2f}x ({ours:.0f} us, SDPA {sdpa:.0f} us)"
    return [Goal(what, "<= 2x", text, times <= 2)]


def _memory_share(cores: Row) -> float | None:
    sparse, dense = (cores[core].get("peak_bytes") for core in ("sparse", "dense"))
    return sparse / dense if sparse and dense else None


def _network(results: Results) -> list[Goal]:
    cores = {r["phase"]: r["cores"] for r in results["network"] if "wrong" not in r}
    forward, train = cores.get(FORWARD), cores.get(TRAIN)
    name = "U-Net 128 x 128, keep 0.25 qk"
    lines: list[tuple[str, str, float | None, Callable[[float], bool]]] = [
        (
            "forward / without attention products",
            "<= 1.15x",
            1 / forward["identity"]["times_ours"] if forward else None,
            lambda v: v <= 1.15,
        ),
        (
            "forward, dense / ours",
            ">= 7x",
            forward["dense"]["times_ours"] if forward else None,
            lambda v: v >= 7,
        ),
        (
            "forward, peak memory / dense",
            "<= 0.33x",
            _memory_share(forward) if forward else None,
            lambda v: v <= 1 / 3,
        ),
        (
            "forward+backward, dense / ours",
            ">= 6x",
            train["dense"]["times_ours"] if train else None,
            lambda v: v >= 6,
        ),
    ]
    return [
        Goal(f"{name}: {what}", goal, UNMEASURED, None)
        if value is None
        else Goal(f"{name}: {what}", goal, f"{value:.2f}x", good(value))
        for what, goal, value, good in lines
    ]


def _longest(results: Results) -> list[Goal]:
    what = "peak memory of N=131072, D=64, float32, forward+backward"
    rows = [r for r in results["op_memory"] if r.get("peak_bytes")]
    if not rows:
        return [Goal(what, "<= 1 GiB", UNMEASURED, None)]
    peak = rows[0]["peak_bytes"]
    return [Goal(what, "<= 1 GiB", f"{peak / 2**30:.2f} GiB", peak <= 2**30)]


def goals(results: Results) -> list[Goal]:
    """Each goal on speed and memory, and what this run measured of it."""
    parts = (_against_gather, _against_sdpa, _rate, _overhead, _network, _longest)
    return [goal for part in parts for goal in part(results)]


def break_even(keeps: Sequence[float], times_ours: Sequence[float]) -> float | None:
    """The keep ratio at which dense SDPA takes as long as masked attention.

    Args:
        keeps: measured keep ratios.
        times_ours: at each, how many times longer dense SDPA took.

    Returns:
        the largest crossing, interpolated in the logarithm of the ratio; None when masked attention
        is faster at every keep ratio measured; 0.0 when it is slower at every one.

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
        where = f"at N={tokens}, D={head_dim}, {mode}, {dtype}, forward"
        if keep is None:
            text = (
                f"masked attention beats dense SDPA up to keep {max(k for k, _ in found):g} {where}"
            )
        elif keep == 0.0:
            text = f"masked attention does not beat dense SDPA {where}"
        else:
            text = f"above keep {keep:.2f} masked attention stops paying against dense SDPA {where}"
        sentences.append(text)
    return sentences
