# SPDX-License-Identifier: BSD-3-Clause
"""pytest-benchmark over the cases and peers of ``maskattn bench``: ``pytest bench``.

Good for one case (``-k N4096-D64-B1-qk-keep0.25-fp32-fwd``) and for comparing two commits.
For ratios between peers prefer ``maskattn bench``, which lets them take turns.
"""

from functools import lru_cache

import pytest

from maskattn_kernels.benchmark.cases import Case, grid, make_inputs
from maskattn_kernels.benchmark.cells import pick
from maskattn_kernels.benchmark.check import oracle
from maskattn_kernels.benchmark.peers import PEERS, Unsupported, make_call


@lru_cache(maxsize=1)
def prepared(case: Case):
    inputs = make_inputs(case)
    return inputs, oracle(case, inputs)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
@pytest.mark.parametrize("case", grid("small"), ids=lambda case: case.name)
@pytest.mark.benchmark(min_rounds=3, max_time=0.5)
def test_attention(benchmark, case, peer):
    inputs, right = prepared(case)
    try:
        variant, error = pick(peer, case, inputs, right)
    except Unsupported as reason:
        pytest.skip(str(reason))
    benchmark.group = case.name
    benchmark.extra_info.update(flops=case.flops, variant=variant.__name__, error=error)
    benchmark(make_call(variant, case, inputs))
