# SPDX-License-Identifier: BSD-3-Clause
"""`DepthwiseConv2d` is a depthwise `nn.Conv2d` that autocast on CPUs does not make bfloat16."""

import pytest
import torch
from torch import nn

from maskattn_kernels.models import DepthwiseConv2d, EfficientNetLite0, prepare_for_inference


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [None, 0])
def test_it_is_a_depthwise_convolution(stride: int, padding: int | None) -> None:
    ours = DepthwiseConv2d(6, 5, stride, padding)
    theirs = nn.Conv2d(6, 6, 5, stride, 2 if padding is None else 0, groups=6, bias=False)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, 11, 8)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_under_autocast_are_those_of_float32(stride: int) -> None:
    torch.manual_seed(0)
    convolution = DepthwiseConv2d(16, 5, stride).to(memory_format=torch.channels_last)
    x = torch.randn(2, 16, 12, 12).to(torch.bfloat16).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = convolution(x)
    assert y.dtype == torch.bfloat16
    g = torch.randn(y.shape).to(torch.bfloat16)
    found = torch.autograd.grad(y, (x, convolution.weight), g)
    exact = x.detach().double().requires_grad_(), convolution.weight.detach().double()
    exact[1].requires_grad_()
    wanted = torch.autograd.grad(
        nn.functional.conv2d(*exact, stride=stride, padding=2, groups=16), exact, g.double()
    )
    assert found[0].dtype == torch.bfloat16  # rounded once, at the end
    torch.testing.assert_close(found[0].double(), wanted[0], rtol=2**-8, atol=1e-6)
    torch.testing.assert_close(found[1].double(), wanted[1], rtol=1e-5, atol=1e-5)


def test_the_type_of_autocast_elsewhere_stays() -> None:
    convolution = DepthwiseConv2d(4, 3)
    with torch.autocast("cpu", torch.float16):
        assert convolution(torch.randn(1, 4, 5, 5)).dtype == torch.float16
        assert torch.is_autocast_enabled("cpu")
    assert convolution(torch.randn(1, 4, 5, 5)).dtype == torch.float32


def test_norms_are_folded_into_it_for_inference() -> None:
    encoder = EfficientNetLite0().eval()
    ready = prepare_for_inference(encoder)
    kinds = {type(module) for module in ready.modules()}
    assert not kinds & {DepthwiseConv2d, nn.BatchNorm2d}
    assert any(type(module) is DepthwiseConv2d for module in encoder.modules())
    image = torch.randn(1, 3, 40, 56)
    with torch.inference_mode():
        for ours, plain in zip(ready(image), encoder(image), strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
