# SPDX-License-Identifier: BSD-3-Clause
"""`lowered` and `FixedCountCore`: the same results in standard operators."""

import pytest
import torch
from torch import Tensor, nn

from maskattn_kernels.models import FRMNet, MaskAttnUNet
from maskattn_kernels.models.lowering import lowered
from maskattn_kernels.nn import DenseAttentionCore
from maskattn_kernels.nn.fixed_count import FixedCountCore

FIXED = ("topk", "gumbel-topk", "local", "entropy", "random", "none")


def exactly(count: int, batch: int, tokens: int) -> Tensor:
    """bool (B,N) with ``count`` set in each row."""
    return torch.rand(batch, tokens).argsort(1) < count


class Guessing(nn.Module):
    """A network with a guess at the classes for its selectors, as SegmentationNetwork has one."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network.features(image, None, lambda map: map[:, :4])[0][-1]


@pytest.mark.parametrize("count", [0, 1, 5, 12])
@pytest.mark.parametrize("form", ["qk", "q+k", "k", "shared by the batch"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_fixed_count_attention_is_dense_attention(count: int, form: str, with_bias: bool) -> None:
    torch.manual_seed(count)
    q, k, v = torch.randn(3, 2, 3, 12, 4)
    keys = exactly(count, 1 if form == "shared by the batch" else 2, 12)
    queries = {"k": None, "q+k": exactly(count, 2, 12)}.get(form, keys)
    bias = torch.randn(2, 12) if with_bias else None
    masks = {"key_mask": keys, "query_mask": queries, "key_bias": bias}
    expected = DenseAttentionCore()(q, k, v, **masks)
    assert torch.allclose(FixedCountCore(count)(q, k, v, **masks), expected, atol=1e-5)


@pytest.mark.parametrize("sparsity", ["qk", "q+k", "k"])
@pytest.mark.parametrize("selector", FIXED)
@pytest.mark.parametrize("unselected", ["zero", "mean"])
def test_a_lowered_unet_gives_the_same(selector: str, sparsity: str, unselected: str) -> None:
    torch.manual_seed(0)
    network: nn.Module = MaskAttnUNet(
        classes=4, width=8, depth=2, selector=selector, sparsity=sparsity, unselected=unselected
    ).eval()
    if selector == "entropy":
        network = Guessing(network)
    images = torch.randn(3, 3, 30, 44)  # sides that are no multiples of strides or windows
    small = lowered(network, images[:1])
    assert any(isinstance(m, FixedCountCore) for m in small.modules())
    with torch.inference_mode():
        for image in images.split(1):
            assert torch.allclose(small(image), network(image), atol=1e-4)
        together = small(images)
        apart = torch.cat([small(image) for image in images.split(1)])
    assert torch.allclose(together, apart, atol=1e-4)


@pytest.mark.parametrize("relation", ["disentangled", "disentangled-all", "pairwise", "unary"])
@pytest.mark.parametrize("selector", ["topk", "random", "none"])
def test_a_lowered_frm_gives_the_same(selector: str, relation: str) -> None:
    torch.manual_seed(0)
    network = FRMNet(4, dim=32, num_heads=2, width=16, selector=selector, relation=relation).eval()
    images = torch.randn(2, 3, 96, 80)
    with torch.inference_mode():
        expected = torch.cat([network(image) for image in images.split(1)])
        assert torch.allclose(lowered(network, images[:1])(images), expected, atol=1e-4)


def test_the_original_stays_as_it_was() -> None:
    network = MaskAttnUNet(classes=4, width=8, depth=1, selector="random")
    before = [repr(network), network.training, *network.state_dict()]
    lowered(network, torch.randn(1, 3, 16, 16))
    assert [repr(network), network.training, *network.state_dict()] == before


@pytest.mark.parametrize("selector", ["threshold", "gumbel"])
def test_a_selector_of_any_number_of_tokens_is_refused(selector: str) -> None:
    network = MaskAttnUNet(classes=4, width=8, depth=1, selector=selector)
    with pytest.raises(ValueError, match=r"^selector: expected .* such as \"topk\".*, got \w+$"):
        lowered(network, torch.randn(1, 3, 16, 16))
