# SPDX-License-Identifier: BSD-3-Clause
"""bench/inference.py: every step is checked before it is timed, and has its row."""

import importlib.util

import pytest
import torch
from repository import ROOT


@pytest.fixture(scope="module")
def script():
    path = ROOT / "bench" / "inference.py"
    spec = importlib.util.spec_from_file_location("bench_inference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("batch", [1, 3])
def test_a_row_for_each_step(script, batch: int) -> None:
    network = script.make_network(width=4, depth=1, selector="none", core="sdpa")
    rows = script.measure(network, script.make_images(batch, 32), rounds=1)
    steps = [row["step"] for row in rows]
    assert steps[0] == script.AS_IT_IS and steps[-1] == "bfloat16" and len(set(steps)) == len(rows)
    assert ("in parts" in steps) == (batch > 1)
    assert rows[0]["of_as_it_is"] == 1 and rows[0]["difference"]["largest"] == 0
    for row in rows:
        assert row["cpu_ms"] > 0 and row["batch"] == batch


def test_a_step_that_is_wrong_is_not_timed(script) -> None:
    expected = torch.randn(2, 3, 8, 8)
    assert script.difference("norms folded", expected[:1], expected) == {"largest": 0, "mean": 0}
    for name in ("norms folded", "bfloat16"):
        with pytest.raises(ValueError, match=f"^{name}: the "):
            script.difference(name, expected + 0.5, expected)
        with pytest.raises(ValueError, match=f"^{name}: the "):
            script.difference(name, expected * torch.nan, expected)
