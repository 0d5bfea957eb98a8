# SPDX-License-Identifier: BSD-3-Clause
"""Selectors that explore: with which probabilities they choose, and that they settle."""

import torch

from maskattn_kernels.nn import (
    GumbelSelector,
    GumbelTopKSelector,
    ThresholdSelector,
    TopKSelector,
)


def test_gumbel_explores_in_training_only():
    values = torch.randn(2, 1, 32, 32)
    selector = GumbelSelector(temperature=(1.0, 1e-3))
    settled = ThresholdSelector()(values).mask
    assert torch.equal(selector.eval()(values).mask, settled)
    selector.train()
    assert 0.2 < (selector(values).mask != settled).float().mean() < 0.45
    selector.anneal(1.0)
    assert (selector(values).mask != settled).float().mean() < 0.01
    loaded = GumbelSelector()
    loaded.load_state_dict(selector.state_dict())
    assert loaded.temperature == selector.temperature


def test_gumbel_selects_with_the_probability_of_its_score():
    share = GumbelSelector().train()(torch.full((1, 1, 100, 100), -1.0)).keep_ratio
    assert abs(share - torch.tensor(-1.0).sigmoid()) < 0.02  # 10^4 draws: one sigma is 0.0044


def test_gumbel_topk_draws_k_without_replacement():
    """Weights 1 : 1 : 2: the last is drawn first (1/2), or after one of the others (1/4 * 2/3)."""
    torch.manual_seed(0)
    values = torch.tensor([1.0, 1.0, 2.0]).log().view(1, 1, 1, 3).expand(20_000, 1, 1, 3)
    masks = GumbelTopKSelector(2 / 3).train()(values).mask.flatten(1).float()
    assert (masks.sum(1) == 2).all()
    # 20,000 draws: one sigma is at most 0.0035.
    torch.testing.assert_close(masks.mean(0), torch.tensor([7, 7, 10]) / 12, atol=0.015, rtol=0)


def test_gumbel_topk_settles_on_topk():
    values = torch.randn(2, 1, 32, 32)
    selector = GumbelTopKSelector(0.25, temperature=(1.0, 1e-3))
    settled = TopKSelector(0.25)(values).mask
    assert torch.equal(selector.eval()(values).mask, settled)
    selector.train()
    assert (selector(values).mask != settled).float().mean() > 0.1
    selector.anneal(1.0)
    selection = selector(values)
    assert (selection.mask != settled).float().mean() < 0.01
    assert torch.equal(selection.logits, values[:, 0])  # what the next scale joins has no noise
