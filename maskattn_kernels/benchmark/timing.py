# SPDX-License-Identifier: BSD-3-Clause
"""Interleaved timing: all peers in one process, one after the other, round after round.

Machines drift (clock, neighbours, caches). Two numbers taken minutes apart do not compare; two
numbers taken in one round do. So ratios are computed within each round, and the median over rounds
is reported. A slow peer leaves after its share of the time, so that those in focus get the many
rounds.
"""

import statistics
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch

Call = Callable[[], object]

#: Samples that everyone has at least, those in focus have at least, and anyone has at most. A call
#: of more than SLOW_SECONDS has one less.
MIN_ROUNDS, FOCUS_ROUNDS, MAX_ROUNDS = 3, 5, 300
SLOW_SECONDS = 3.0
#: A sample repeats a call until it lasts about this long, so that the clock does not matter.
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
    """Seconds per call over some calls in a row, by the GPU's clock: gaps between kernels count."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


SAMPLERS: dict[str, Callable[[Call, int], float]] = {"cpu": sample, "cuda": gpu_sample}


def captured(call: Call) -> Call:
    """A CUDA graph of a call: replayed, it costs the GPU's time and next to none of the host's.

    Raises:
        RuntimeError: the call waits for the GPU, which no graph can hold.
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
        calls: contestants by name. Each has been called before, so that nothing is done for the
            first time in round 0.
        seconds: time to spend, about. Each contestant leaves after an equal share of it; those in
            ``focus`` use up what is left. The least numbers of rounds come before the time.
        focus: names of the contestants whose ratio is the point of the race.
        device: whose clock is used, see `SAMPLERS`.

    Returns:
        the samples. The contestants change places from round to round, so that none always runs
        after the same neighbour.
    """
    start, sample = time.perf_counter(), SAMPLERS[device]
    once = {name: sample(call, 1) for name, call in calls.items()}
    repeats = {n: max(1, min(100, round(MIN_SAMPLE_SECONDS / t))) for n, t in once.items()}
    least = {
        n: (FOCUS_ROUNDS if n in focus else MIN_ROUNDS) - (once[n] > SLOW_SECONDS) for n in calls
    }
    samples = {name: [t] for name, t in once.items()}  # round 0
    spent = dict(once)

    def goes_on(name: str) -> bool:
        if len(samples[name]) < least[name]:
            return True
        if name in focus:
            return time.perf_counter() - start < seconds
        return spent[name] < seconds / len(calls)

    running = [name for name in calls if goes_on(name)]
    for index in range(1, MAX_ROUNDS):
        if not running:
            break
        shift = index % len(running)
        for name in running[shift:] + running[:shift]:
            samples[name].append(sample(calls[name], repeats[name]))
            spent[name] += samples[name][-1] * repeats[name]
        running = [name for name in running if goes_on(name)]
    return Race(samples)
