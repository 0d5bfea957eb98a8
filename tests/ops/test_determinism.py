# SPDX-License-Identifier: BSD-3-Clause
"""Forward and backward are bitwise repeatable, for any number of threads."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cases import Case, make
from harness import TARGETS, Target, is_slow, run
from torch import Tensor

CASE = Case(
    "deterministic",
    heads=4,
    kv_heads=2,
    query_len=300,
    key_len=350,
    bias="normal",
    keys=0.7,
    queries=0.6,
)
FEW_QUERIES = Case("few", heads=8, kv_heads=2, query_len=2, key_len=3000, keys=0.7, queries=None)
SMALL = Case("repeated", query_len=70, key_len=90, bias="normal")


@pytest.fixture(autouse=True)
def threads_restored() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for name, t in a.items():
        assert torch.equal(t, b[name]), name


@pytest.mark.parametrize(
    "target", [t for t in TARGETS if t.backend != "reference"], ids=str, indirect=True
)
@pytest.mark.parametrize("case", [CASE, FEW_QUERIES], ids=str)
def test_number_of_threads_changes_nothing(target: Target, case: Case) -> None:
    """1, 2 and 8 threads, 8 being more than most machines that run this have."""
    x = make(SMALL if is_slow(target) else case, target.dtype)
    torch.set_num_threads(1)
    one = run(target, x)
    for threads in (2, 8):
        torch.set_num_threads(threads)
        assert_equal(run(target, x), one)


def test_hundred_repeats(target: Target) -> None:
    x = make(SMALL, target.dtype)
    torch.set_num_threads(8)
    first = run(target, x)
    for _ in range(9 if is_slow(target) else 99):
        assert_equal(run(target, x), first)


def test_calls_from_many_threads(target: Target) -> None:
    """Concurrent callers do not share scratch memory."""
    if is_slow(target):
        pytest.skip("Triton's interpreter knows one launch at a time")
    x = make(SMALL, target.dtype)
    torch.set_num_threads(1)
    alone = run(target, x)

    def call(_: int) -> None:
        assert_equal(run(target, x), alone)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(call, range(64)))


def test_sizes_in_sequence(target: Target) -> None:
    """A small call after a large one sees nothing of it: scratch tails are not trusted."""
    lengths = (257, 1, 130, 16, 0, 65, 33)
    inputs = [
        make(Case(f"sequence{n}", query_len=n, key_len=n, head_dim=d), target.dtype)
        for n, d in zip(lengths, (64, 3, 128, 16, 8, 200, 46), strict=True)
    ]
    forwards = [run(target, x) for x in inputs]
    backwards = [run(target, x) for x in reversed(inputs)]
    for a, b in zip(forwards, reversed(backwards), strict=True):
        assert_equal(a, b)
