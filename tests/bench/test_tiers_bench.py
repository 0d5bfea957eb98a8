# SPDX-License-Identifier: BSD-3-Clause
"""The race of the CPU library's tiers: every tier that runs here is checked and timed."""

import os

import pytest
from test_report_page import load

from maskattn_kernels import backends
from maskattn_kernels.benchmark.cases import TRAIN, Case
from maskattn_kernels.benchmark.check import WrongResult

needs_library = pytest.mark.skipif(
    not backends()[0].available, reason="; ".join(backends()[0].reasons)
)


@needs_library
def test_every_tier_is_timed_against_the_default():
    script, before = load("tiers"), dict(os.environ)
    names = script.tiers()
    default = backends()[0].build["tier"]
    assert names[0] == "generic" and default in names
    row = script.measure(Case(64, 16, mode="qk", dtype="bfloat16", phase=TRAIN), names, 0.01)
    assert list(row["tiers"]) == names and row["tiers"][default]["times_default"] == 1
    assert all(found["median"] > 0 for found in row["tiers"].values())
    assert dict(os.environ) == before


@needs_library
def test_a_wrong_tier_is_not_timed(monkeypatch):
    script, before = load("tiers"), dict(os.environ)
    monkeypatch.setattr(script, "ours", lambda query, *rest: 2 * query)
    with pytest.raises(WrongResult):
        script.measure(Case(64, 16, mode="qk"), ["generic"], 0.01)
    assert dict(os.environ) == before
