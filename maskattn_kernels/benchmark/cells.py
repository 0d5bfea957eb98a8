# SPDX-License-Identifier: BSD-3-Clause
"""Measures one case: checks every peer, races them, compares with the machine's limits."""

from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch

from maskattn_kernels.benchmark.cases import Attention, Case, Inputs, make_inputs
from maskattn_kernels.benchmark.check import WrongResult, check, oracle
from maskattn_kernels.benchmark.memory import in_fresh_process
from maskattn_kernels.benchmark.peers import (
    BY_NAME,
    GATHER,
    OURS,
    PEERS,
    Peer,
    Unsupported,
    make_call,
)
from maskattn_kernels.benchmark.rows import Row
from maskattn_kernels.benchmark.timing import captured, fastest, race
from maskattn_kernels.common.peak_memory import gpu_peak_growth, peak_growth
from maskattn_kernels.common.text import first_line

__all__ = ["measure", "peer_memory", "pick"]

#: Side of the square matmul whose rate is the limit of a device: large enough to fill it.
MATMUL_SIDE = {"cpu": 2048, "cuda": 8192}


def yardsticks(case: Case) -> dict[str, Callable[[], object]]:
    """What the machine can do: a large matmul in the dtype, a copy and a read of the bytes."""
    side, device = (MATMUL_SIDE[case.device],) * 2, case.device
    a, b = (torch.randn(side, device=device).to(case.torch_dtype) for _ in range(2))
    product = torch.empty_like(a)
    source = torch.ones(case.bytes // 2, dtype=torch.uint8, device=device)  # read and written
    target = torch.empty_like(source)
    calls: dict[str, Callable[[], object]] = {
        "matmul": lambda: torch.mm(a, b, out=product),
        "copy": lambda: target.copy_(source),
    }
    if case.queries:  # then the time is that of reading the keys
        calls["read"] = torch.ones(case.bytes // 4, device=device).sum
    return calls


def pick(
    peer: Peer, case: Case, inputs: Inputs, right: Sequence[torch.Tensor]
) -> tuple[Attention, float | None]:
    """The fastest variant of a peer, and its error.

    Raises:
        Unsupported: the peer cannot run the case.
        WrongResult: one of its variants gives a wrong answer.
    """
    errors, calls, variants = {}, {}, {}
    for variant in peer.candidates(case, inputs):
        call = make_call(variant, case, inputs)
        answer = call()
        errors[variant.__name__] = check(case, answer, right) if peer.masked else None
        calls[variant.__name__], variants[variant.__name__] = call, variant
    name = fastest(calls, device=case.device)
    return variants[name], errors[name]


def measure(
    case: Case, seconds: float, peers: Sequence[Peer] = PEERS, with_memory: bool = False
) -> Row:
    """Time one case for every peer that can run it.

    Args:
        case: what to measure.
        seconds: approximate duration of the race.
        peers: the peers to measure.
        with_memory: also measure peak memory, each peer in its own process.

    Returns:
        a row fit for JSON: the case; for each peer its seconds (median, low, high), rounds, error,
        and ``times_ours`` (how many times longer than this package, median of the ratios of each
        round), or the reason why it was ``skipped``; the floor and the rates; with few queries
        ``read_share``, the time of a plain read of the bytes / ours. On a GPU also its seconds in a
        CUDA graph, ``graph``, or why it has none.

    Raises:
        WrongResult: this package's own result is wrong. A wrong peer is skipped.
    """
    torch.compiler.reset()  # after some recompilations torch silently runs uncompiled code
    inputs = make_inputs(case)
    right = oracle(case, inputs)
    rows: dict[str, Row] = {}
    calls: dict[str, Callable[[], object]] = {}
    for peer in peers:
        try:
            variant, error = pick(peer, case, inputs, right)
        except Unsupported as reason:
            rows[peer.name] = {"skipped": str(reason)}
            continue
        except WrongResult as reason:
            if peer is OURS:
                raise
            rows[peer.name] = {"skipped": f"wrong result: {reason}"}
            continue
        calls[peer.name] = make_call(variant, case, inputs)
        rows[peer.name] = {"variant": variant.__name__, "error": error}
    del right
    calls_of_machine = yardsticks(case)
    for call in calls_of_machine.values():
        call()
    contestants = {**calls, **calls_of_machine}
    times = race(contestants, seconds, focus=(OURS.name, GATHER.name), device=case.device)
    for name in calls:
        rows[name] |= asdict(times.timing(name))
        rows[name]["times_ours"] = times.ratio(name, OURS.name)
        if case.device == "cuda":
            rows[name]["peak_bytes"] = gpu_peak_growth(calls[name])
        elif with_memory and BY_NAME[name].variants:  # otherwise its process would compile again
            rows[name]["peak_bytes"] = in_fresh_process(
                peer_memory, case, name, rows[name]["variant"]
            )
    if case.device == "cuda":
        add_graphs(rows, calls, seconds)
    matmul_flops = 2 * MATMUL_SIDE[case.device] ** 3
    matmul_rate = matmul_flops / times.timing("matmul").median
    copy_seconds = times.timing("copy").median
    ours_rate = case.flops / times.timing(OURS.name).median
    read = {"read_share": times.ratio("read", OURS.name)} if case.queries else {}
    return read | {
        "name": case.name,
        "case": asdict(case),
        "peers": rows,
        "flops": case.flops,
        "bytes": case.bytes,
        "floor_seconds": max(case.flops / matmul_rate, copy_seconds),
        "matmul_gflops": matmul_rate / 1e9,
        "copy_gbytes": case.bytes / copy_seconds / 1e9,
        "ours_gflops": ours_rate / 1e9,
        # Of medians: in the few rounds that both have, the matmul leaves a short call a cold cache.
        "matmul_share": ours_rate / matmul_rate,
    }


def add_graphs(
    rows: dict[str, Row], calls: dict[str, Callable[[], object]], seconds: float
) -> None:
    """Race the calls as CUDA graphs; adds ``graph`` and ``graph_times_ours`` to the rows."""
    graphs = {}
    for name, call in calls.items():
        if BY_NAME[name].waits:
            rows[name]["graph"] = "waits for the GPU"
            continue
        try:
            graphs[name] = captured(call)
        except RuntimeError as error:
            rows[name]["graph"] = first_line(error)[:120]
    times = race(graphs, seconds, focus=(OURS.name,), device="cuda")
    for name in graphs:
        rows[name]["graph"] = asdict(times.timing(name))
        rows[name]["graph_times_ours"] = times.ratio(name, OURS.name)


def peer_memory(case: Case, peer_name: str, variant: str) -> int:
    """Peak growth in bytes of one call of a peer; to be called in its own process."""
    peer = BY_NAME[peer_name]

    def call_for(size: Case) -> Callable[[], object]:
        inputs = make_inputs(size)
        chosen = next(v for v in peer.candidates(size, inputs) if v.__name__ == variant)
        return make_call(chosen, size, inputs)

    small = Case(**{**asdict(case), "tokens": min(64, case.tokens)})
    call_for(small)()
    return peak_growth(call_for(case))
