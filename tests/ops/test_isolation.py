# SPDX-License-Identifier: BSD-3-Clause
"""A token that is not selected changes no bit of any result, and its own gradients are 0."""

from dataclasses import replace

import pytest
import torch
from cases import BY_NAME, make
from harness import TARGETS, Target, run, trimmed
from poison import FIELDS, poisoned, unselected

POISONS = {"nan": torch.nan, "inf": torch.inf, "minus_inf": -torch.inf, "1e30": 1e30}
CASES = (
    "everything",
    "index_per_head",
    "first_tile_empty",
    "keys_none_queries_0.5",
    "heads_8_4_per_head",
)
CASES += ("n65", "d46", "d3")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("target", TARGETS, ids=str, indirect=True)
def test_unselected_tokens_are_invisible(target: Target, case: str) -> None:
    """NaN in masked K, V, Q or gradients leaks in peers through 0 * NaN and unfilled tile tails."""
    x = make(trimmed(BY_NAME[case], target), target.dtype)
    clean = run(target, x)
    for poison in POISONS.values():
        for name, result in run(target, poisoned(x, FIELDS, poison)).items():
            assert torch.equal(result, clean[name]), f"{name} changed by {poison}"


@pytest.mark.parametrize("field", FIELDS)
def test_each_tensor_alone(target: Target, field: str) -> None:
    """NaN in K alone and in V alone take different ways through a kernel."""
    x = make(trimmed(BY_NAME["everything"], target), target.dtype)
    clean = run(target, x)
    for name, result in run(target, poisoned(x, (field,), torch.nan)).items():
        assert torch.equal(result, clean[name]), f"{name} changed by NaN in {field}"


@pytest.mark.parametrize("case", CASES)
def test_own_results_are_exactly_zero(target: Target, case: str) -> None:
    x = make(trimmed(BY_NAME[case], target), target.dtype)
    results = run(target, poisoned(x, FIELDS, torch.nan))
    for name in ("out", "dq", "dk", "dv"):
        rows = unselected(x, name).expand(results[name].shape[:3])
        assert not results[name][rows].any(), name
    rows = unselected(x, "out").expand(results["lse"].shape)
    assert (results["lse"][rows] == -torch.inf).all()
    if x.key_bias is not None and x.key_bias.dim() == 3:
        assert not results["dbias"][unselected(x, "dbias").expand(results["dbias"].shape)].any()


def test_query_without_keys_ignores_its_gradient(target: Target) -> None:
    """A selected query that sees no key has no gradient, not even 0 * NaN."""
    x = make(BY_NAME["keys_none_queries_0.5"], target.dtype)
    x = replace(x, dout=torch.full_like(x.dout, torch.nan), query=x.query * torch.nan)
    results = run(target, x)
    for name in ("out", "dq", "dk", "dv"):
        assert torch.equal(results[name], torch.zeros_like(results[name])), name


def test_selected_nan_is_seen(target: Target) -> None:
    """The control: NaN in one selected key reaches every selected query of its head, no other."""
    x = make(BY_NAME["n65"], target.dtype)
    selected = x.key_mask[0].nonzero()[0].item()
    key = x.key.clone()
    key[0, 0, selected] = torch.nan
    out = run(target, replace(x, key=key))["out"]
    assert out[0, 0, x.query_mask[0]].isnan().all()
    assert not out[0, 0, ~x.query_mask[0]].any()
    assert not out[0, 1:].isnan().any()
