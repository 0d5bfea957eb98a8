# SPDX-License-Identifier: BSD-3-Clause
"""Overhead of a call: 64 tokens, no grad, compared with an SDPA call."""

from dataclasses import asdict, replace

from maskattn_kernels.benchmark.cases import Case, make_inputs
from maskattn_kernels.benchmark.check import check, oracle
from maskattn_kernels.benchmark.peers import DENSE, OURS, SDPA, make_call
from maskattn_kernels.benchmark.rows import Row
from maskattn_kernels.benchmark.timing import race

__all__ = ["measure_overhead"]

TINY = Case(64, 64, mode="qk", keep=0.5)


def measure_overhead(seconds: float, device: str = "cpu") -> Row:
    """Race whole calls on 64 tokens, the selection included; on a GPU by the host's clock too.

    Returns:
        a row fit for JSON: for each peer its seconds and its ratio to SDPA without a mask.
    """
    case = replace(TINY, device=device)
    inputs = make_inputs(case)
    calls = {peer.name: make_call(peer.variants[0], case, inputs) for peer in (OURS, DENSE, SDPA)}
    check(case, calls[OURS.name](), oracle(case, inputs))
    for call in calls.values():
        call()
    times = race(calls, seconds, focus=tuple(calls))
    peers = {n: asdict(times.timing(n)) | {"times_sdpa": times.ratio(n, DENSE.name)} for n in calls}
    return {"name": case.name, "case": asdict(case), "peers": peers}
