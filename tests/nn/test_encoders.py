# SPDX-License-Identifier: BSD-3-Clause
"""Encoders of the U-Net: what they give, and the network around them."""

import pytest
import torch

from maskattn_kernels.models import EfficientNetLite0, MaskAttnUNet

SIZES = [(1, 1), (7, 64), (90, 121), (96, 128)]


@pytest.mark.parametrize("size", SIZES)
def test_maps_have_the_sizes_that_an_encoder_says(size):
    encoder = EfficientNetLite0().eval()
    maps = encoder(torch.randn(2, 3, *size))
    for features, channels, stride in zip(maps, encoder.channels, encoder.strides, strict=True):
        assert features.shape == (2, channels, *(-(-side // stride) for side in size))


@pytest.mark.parametrize("size", SIZES)
def test_a_network_around_an_encoder_takes_any_size(size):
    network = MaskAttnUNet(classes=5, encoder=EfficientNetLite0(), width=8).eval()
    mask = torch.rand(2, *size) > 0.5
    logits, masks = network(torch.randn(2, 3, *size), mask, return_masks=True)
    assert logits.shape == (2, 5, *size)
    assert list(masks) == list(network.scales) == ["down3", "down4", "down5", "up1", "up2"]


def test_every_parameter_gets_a_gradient():
    network = MaskAttnUNet(
        classes=5, encoder=EfficientNetLite0(), width=8, finest=2, selector="topk", sparsity="q+k"
    )
    network(torch.randn(2, 3, 64, 96)).square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
