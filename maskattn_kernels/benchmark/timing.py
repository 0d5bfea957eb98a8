# SPDX-License-Identifier: BSD-3-Clause
"""Interleaved timing: all peers in one process, one after the other, round after round.

Machines drift (clock, other load, caches). Times taken minutes apart do not compare; times taken
in one round do. Ratios are therefore computed within each round, and the median over rounds is
reported. A slow peer stops after its share of the time, so that the peers in focus get more rounds.
"""

import statistics
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch

__all__ = [
    "FOCUS_ROUNDS",
    "MIN_ROUNDS",
    "Race",
    "Timing",
    "captured",
    "fastest",
    "percentile",
    "race",
]

Call = Callable[[], object]

#: Least number of samples of every contestant, and of those in focus; largest number of samples.
#: A call of more than SLOW_SECONDS needs one less.
MIN_ROUNDS, FOCUS_ROUNDS, MAX_ROUNDS = 3, 5, 300
SLOW_SECONDS = 3.0
#: A sample repeats a call until it lasts about this long, well above the clock's resolution.
MIN_SAMPLE_SECONDS = 2e-4


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one contestant.

    Attributes:
        median: 50th percentile of the samples.
        low: 20th percentile.
        high: 80th percentile.
        rounds: number of samples.
    """

    median: float
    low: float
    high: float
    rounds: int


@dataclass(frozen=True)
class Race:
    """All samples, by contestant; sample i of every contestant belongs to round i."""

    samples: dict[str, list[float]]

    def timing(self, name: str) -> Timing:
        ordered = sorted(self.samples[name])
        return Timing(
            statistics.median(ordered),
            percentile(ordered, 0.2),
            percentile(ordered, 0.8),
            len(ordered),
        )

    def ratio(self, slower: str, faster: str) -> float:
        """Median over common rounds of time(slower) / time(faster)."""
        pairs = zip(self.samples[slower], self.samples[faster], strict=False)
        return statistics.median(a / b for a, b in pairs)


def percentile(ordered: list[float], fraction: float) -> float:
    """Linear interpolation in a sorted list."""
    position = fraction * (len(ordered) - 1)
    left = int(position)
    right = min(left + 1, len(ordered) - 1)
    return ordered[left] + (position - left) * (ordered[right] - ordered[left])


def sample(call: Call, repeats: int = 1) -> float:
    """Seconds per call over some calls in a row, by the host's clock."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def gpu_sample(call: Call, repeats: int = 1) -> float:
    """Seconds per call over some calls in a row, by the GPU's clock, gaps between kernels too."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


SAMPLERS: dict[str, Callable[[Call, int], float]] = {"cpu": sample, "cuda": gpu_sample}


def captured(call: Call) -> Call:
    """A CUDA graph of a call: a replay takes the GPU's time and almost none of the host's.

    Raises:
        RuntimeError: the call waits for the GPU, which a graph cannot.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # first calls allocate and compile, which a capture must not
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    graph.replay()
    return graph.replay


def fastest(calls: Mapping[str, Call], rounds: int = 3, device: str = "cpu") -> str:
    """Name of the contestant with the smallest best time over a few interleaved rounds."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds if len(calls) > 1 else 0):
        for name, call in calls.items():
            best[name] = min(best[name], SAMPLERS[device](call, 1))
    return min(best, key=best.__getitem__)


def race(
    calls: Mapping[str, Call], seconds: float, focus: Collection[str] = (), device: str = "cpu"
) -> Race:
    """Time contestants in interleaved rounds.

    Args:
        calls: contestants by name. Each must have been called once, so that round 0 does not
            include first-call work.
        seconds: approximate duration. Each contestant stops after an equal share of it; those in
            ``focus`` use the rest. The least numbers of rounds have precedence over the time.
        focus: names of the contestants that are compared.
        device: selects the clock, see `SAMPLERS`.

    Returns:
        the samples. The order of the contestants changes from round to round.
    """
    start, sample = time.perf_counter(), SAMPLERS[device]
    once = {name: sample(call, 1) for name, call in calls.items()}
    repeats = {n: max(1, min(100, round(MIN_SAMPLE_SECONDS / t))) for n, t in once.items()}
    least = {
        n: (FOCUS_ROUNDS if n in focus else MIN_ROUNDS) - (once[n] > SLOW_SECONDS) for n in calls
    }
    samples = {name: [t] for name, t in once.items()}  # round 0
    spent = dict(once)

    def continues(name: str) -> bool:
        if len(samples[name]) < least[name]:
            return True
        if name in focus:
            return time.perf_counter() - start < seconds
        return spent[name] < seconds / len(calls)

    running = [name for name in calls if continues(name)]
    for index in range(1, MAX_ROUNDS):
        if not running:
            break
        shift = index % len(running)
        for name in running[shift:] + running[:shift]:
            samples[name].append(sample(calls[name], repeats[name]))
            spent[name] += samples[name][-1] * repeats[name]
        running = [name for name in running if continues(name)]
    return Race(samples)
