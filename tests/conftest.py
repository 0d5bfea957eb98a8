# SPDX-License-Identifier: BSD-3-Clause
"""Fixtures of every test: poisoned memory, and the targets that a test runs on."""

import os
from collections.abc import Iterator

# Threads that spin while they wait make small products ten times slower on a busy machine. This is
# read when torch loads.
os.environ["OMP_WAIT_POLICY"] = "passive"
# Nor has numpy, which Triton's interpreter computes with, any use for threads on small tiles.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import logging

import pytest
import torch
import torch.utils.deterministic
from harness import ONE_DTYPE_TARGETS, Target, activate, untested_tiers

from bench.libraries import mend_torchvision

mend_torchvision()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says which CPU tiers no test has run: a green run says nothing about them."""
    for tier, reason in untested_tiers().items():
        terminalreporter.write_line(f"CPU tier not tested here: {tier}. {reason}", yellow=True)


# "Building the font cache" on stderr, once on a new machine, is no line of ours.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that run on a GPU: `-m gpu` selects them and nothing else."""
    for item in items:
        target = getattr(item, "callspec", None) and item.callspec.params.get("target")
        if isinstance(target, Target) and target.device == "cuda":
            item.add_marker("gpu")


@pytest.fixture(autouse=True)
def nan_filled_allocations() -> Iterator[None]:
    """torch.empty and friends return NaN, so that an entry that was never written is seen."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=ONE_DTYPE_TARGETS, ids=str)
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Target:
    """Every backend and tier; the test is skipped, with the reason, where one is missing."""
    activate(request.param, monkeypatch)
    return request.param
