# SPDX-License-Identifier: BSD-3-Clause
"""`keep_ratio_loss` brings the selected fraction to its target, and counts what learns."""

import pytest
import torch

from maskattn_kernels.nn import (
    MaskHead,
    Selection,
    ThresholdSelector,
    keep_ratio_loss,
    make_selector,
)


@pytest.mark.parametrize("name", ["threshold", "gumbel"])
def test_keep_ratio_loss_brings_the_ratio_to_its_target(name):
    torch.manual_seed(0)
    head, selector = MaskHead(8, start=0.9), make_selector(name)
    optimiser = torch.optim.Adam(head.parameters(), lr=0.05)
    x = torch.randn(2, 8, 16, 16)
    for _ in range(60):
        selection = selector(head(x))
        optimiser.zero_grad()
        keep_ratio_loss([selection], 0.25).backward()
        optimiser.step()
    assert (selection.keep_ratio - 0.25).abs().max() < 0.08


def test_keep_ratio_loss_of_what_does_not_learn():
    mask = torch.ones(1, 2, 2, dtype=torch.bool)
    assert keep_ratio_loss([Selection(mask)], 0.5) == 0
    assert keep_ratio_loss([], 0.5) == 0


def test_keep_ratio_loss_counts_queries_and_keys():
    selector = ThresholdSelector()
    queries, keys = selector(torch.randn(2, 1, 6, 6)), selector(torch.randn(2, 1, 6, 6))
    both = keep_ratio_loss([keys._replace(queries=queries)], 0.25)
    assert torch.equal(both, keep_ratio_loss([keys, queries], 0.25))
