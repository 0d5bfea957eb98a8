# SPDX-License-Identifier: BSD-3-Clause
"""Random calls against the oracle. A failure is repeated by its own name:
pytest "tests/ops/test_sweep.py::test_random_call[123]"; MASKATTN_SWEEP=3000 runs more of them.
"""

import os
import random

import pytest
from cases import Case
from harness import TARGETS, TRITON_TARGETS, Target, activate, check_against_oracle, is_slow

SEEDS = range(int(os.environ.get("MASKATTN_SWEEP", "300")))
FAST_TARGETS = [t for t in TARGETS if not is_slow(t)]
INTERPRETED_TARGETS = [t for t in TRITON_TARGETS if is_slow(t)]
INTERPRETED_SEEDS = range(int(os.environ.get("MASKATTN_SWEEP", "8")))


def random_case(seed: int, longest: int = 300) -> Case:
    rng = random.Random(seed)
    kv_heads = rng.choice((1, 1, 2, 3))
    query_len = rng.choice((0, 1, rng.randrange(2, 40), rng.randrange(2, longest)))
    selections = (None, "none", "one", "all", 0.01, 0.1, 0.5, 0.9)
    as_index = rng.random() < 0.2
    return Case(
        name=f"seed{seed}",
        batch=rng.choice((1, 1, 2, 3)),
        heads=kv_heads * rng.choice((1, 1, 2, 3)),
        kv_heads=kv_heads,
        query_len=query_len,
        key_len=rng.choice((query_len, 1, rng.randrange(0, longest))),
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
    target = FAST_TARGETS[seed % len(FAST_TARGETS)]
    activate(target, monkeypatch)
    check_against_oracle(target, random_case(seed))


@pytest.mark.parametrize("seed", INTERPRETED_SEEDS)
@pytest.mark.parametrize("target", INTERPRETED_TARGETS, ids=str, indirect=True)
def test_random_call_interpreted(target: Target, seed: int) -> None:
    """Smaller and fewer, since Triton's interpreter is slow."""
    check_against_oracle(target, random_case(seed, longest=120))
