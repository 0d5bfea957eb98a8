# SPDX-License-Identifier: BSD-3-Clause
"""Random calls against the oracle. A failure is repeated by its own name:
pytest "tests/ops/test_sweep.py::test_random_call[123]"; MASKATTN_SWEEP=3000 runs more of them.

On the CPU the calls are shared among the targets; on a GPU each backend gets all of them.
"""

import os
import random
from dataclasses import replace

import pytest
from cases import Case
from harness import (
    CUDA_TARGETS,
    TARGETS,
    TRITON_TARGETS,
    Target,
    activate,
    check_against_oracle,
    is_slow,
)

SEEDS = range(int(os.environ.get("MASKATTN_SWEEP", "300")))
FAST_TARGETS = [t for t in TARGETS if t.device == "cpu" and not is_slow(t)]
GPU_TARGETS = [
    [t for t in targets if t.device == "cuda"] for targets in (TRITON_TARGETS, CUDA_TARGETS)
]
GPU_CALLS = [
    (targets[seed % len(targets)], seed) for targets in GPU_TARGETS if targets for seed in SEEDS
]
# Triton compiles a kernel for each head_dim: these stand for all others of the same padded width.
HEAD_DIMS = (1, 8, 16, 32, 46, 64, 80, 128, 200, 256)
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


def gpu_case(seed: int) -> Case:
    return replace(random_case(seed), head_dim=HEAD_DIMS[seed % len(HEAD_DIMS)])


@pytest.mark.parametrize(("target", "seed"), GPU_CALLS, ids=str, indirect=["target"])
def test_random_call_on_a_gpu(target: Target, seed: int) -> None:
    check_against_oracle(target, gpu_case(seed))


@pytest.mark.parametrize("seed", INTERPRETED_SEEDS)
@pytest.mark.parametrize("target", INTERPRETED_TARGETS, ids=str, indirect=True)
def test_random_call_interpreted(target: Target, seed: int) -> None:
    """Smaller and fewer, since Triton's interpreter is slow."""
    check_against_oracle(target, random_case(seed, longest=120))
