# SPDX-License-Identifier: BSD-3-Clause
"""Random calls against the oracle. A failure is repeated by its own name:
pytest "tests/test_sweep.py::test_random_call[123]"; MASKATTN_SWEEP=3000 runs more of them.
"""

import os
import random

import pytest
from cases import Case
from harness import TARGETS, activate, check_against_oracle

SEEDS = range(int(os.environ.get("MASKATTN_SWEEP", "300")))


def random_case(seed: int) -> Case:
    rng = random.Random(seed)
    kv_heads = rng.choice((1, 1, 2, 3))
    query_len = rng.choice((0, 1, rng.randrange(2, 40), rng.randrange(2, 300)))
    selections = (None, "none", "one", "all", 0.01, 0.1, 0.5, 0.9)
    as_index = rng.random() < 0.2
    return Case(
        name=f"seed{seed}",
        batch=rng.choice((1, 1, 2, 3)),
        heads=kv_heads * rng.choice((1, 1, 2, 3)),
        kv_heads=kv_heads,
        query_len=query_len,
        key_len=rng.choice((query_len, 1, rng.randrange(0, 300))),
        head_dim=rng.choice((1, 8, 16, 32, 64, rng.randrange(1, 257))),
        keys=rng.choice(selections[as_index:]),
        queries=rng.choice(selections[as_index:]),
        per_head=rng.random() < 0.3,
        shared=rng.random() < 0.2,
        bias=rng.choice((None, None, "normal", "per_head", "some_inf")),
        scale=rng.choice((None, None, 0.0, 0.3, -1.0)),
        as_index=as_index,
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_random_call(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    target = TARGETS[seed % len(TARGETS)]
    activate(target, monkeypatch)
    check_against_oracle(target, random_case(seed))
