# SPDX-License-Identifier: BSD-3-Clause
"""The keep ratio and the selector of a network, changed after its training."""

import copy

import pytest
import torch

from maskattn_kernels.models import MaskAttnUNet
from maskattn_kernels.nn import (
    SELECTORS,
    MaskAttention2d,
    RandomSelector,
    Selection,
    Selector,
    ThresholdSelector,
    TopKSelector,
)
from maskattn_kernels.segmentation.model.network import SegmentationNetwork

WITH_RATIO = ("random", "topk", "gumbel-topk", "local", "entropy")
IMAGE = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def made(selector: str, **arguments) -> SegmentationNetwork:
    torch.manual_seed(0)
    return SegmentationNetwork(4, [2], width=4, depth=2, selector=selector, **arguments).eval()


def kept(network: SegmentationNetwork) -> dict[str, list[int]]:
    return {n: s.mask.sum((1, 2)).tolist() for n, s in network(IMAGE).selections.items()}


def same(one: SegmentationNetwork, other: SegmentationNetwork) -> bool:
    return torch.equal(one(IMAGE).semantic, other(IMAGE).semantic)


@pytest.mark.parametrize("selector", WITH_RATIO)
@pytest.mark.parametrize("keep", [0.0, 0.05, 0.3, 1.0])
def test_every_scale_selects_exactly_the_new_share(selector, keep):
    network = made(selector)
    network.set_keep(keep)
    for name, counts in kept(network).items():
        tokens = 64 if name.startswith("down2") else 1024 if name.startswith("up2") else 256
        is_random = selector == "random" or (selector == "entropy" and name.startswith("down"))
        least = 0 if is_random else 1
        assert counts == [max(least, round(keep * tokens))] * 2, name


@pytest.mark.parametrize("selector", WITH_RATIO)
def test_it_is_then_the_network_that_was_made_so(selector):
    network = made(selector, keep=0.5)
    before = copy.deepcopy(network.state_dict())
    network.set_keep(0.1)
    expected = made(selector, keep=0.1)
    expected.load_state_dict(before)
    assert same(network, expected)
    assert network.config == expected.config
    assert network.state_dict().keys() == before.keys()
    for name, tensor in before.items():
        assert torch.equal(network.state_dict()[name], tensor), name


def test_keep_of_single_scales():
    network = made("topk", keep=0.5)
    network.set_keep({"up2": 0.25})
    counts = {"down1": 128, "down2": 32, "up1": 128, "up2": 256}
    assert kept(network) == {
        f"{scale} {role}": [count] * 2
        for scale, count in counts.items()
        for role in ("queries", "keys")
    }
    assert network.config["keep"] == {"down1": 0.5, "down2": 0.5, "up1": 0.5, "up2": 0.25}
    network.set_keep({"down1": 0.0})
    again = SegmentationNetwork(**network.config).eval()
    again.load_state_dict(network.state_dict())
    assert kept(again) == kept(network)
    assert kept(network)["down1 keys"] == [1, 1]
    assert kept(made("topk", keep={"up1": 1.0}))["down1 keys"] == [64, 64]  # 0.25 of the others


@pytest.mark.parametrize(
    ("selector", "keep", "words"),
    [
        ("topk", 1.5, "keep: expected a number from 0 to 1, got 1.5"),
        ("topk", {"up2": 0.1, "up9": 0.1}, r"keep: expected scales among .*, got 'up9'"),
        ("topk", {"up2": 0.1, "up1": -1.0}, "keep: expected a number from 0 to 1, got -1"),
        ("threshold", 0.1, 'keep: ThresholdSelector selects every .* the selector "topk"'),
        ("gumbel", 0.1, 'keep: GumbelSelector selects every .* the selector "topk"'),
        ("none", 0.1, 'keep: expected a network that selects, .* such as "entropy"'),
    ],
)
def test_what_cannot_be_kept_is_one_line_and_changes_nothing(selector, keep, words):
    network = made(selector)
    config, before = copy.deepcopy(network.config), kept(network)
    with pytest.raises(ValueError, match=words) as caught:
        network.set_keep(keep)
    assert "\n" not in str(caught.value)
    assert network.config == config
    assert kept(network) == before


def test_a_selector_of_a_user_without_a_ratio_says_so():
    class Mine(Selector):
        def forward(self, features):
            return Selection(features[:, 0] > 0)

    network = MaskAttnUNet(width=4, depth=1)
    network.up_attention[0].set_selector(Mine())
    with pytest.raises(ValueError, match="keep: Mine has no fraction"):
        network.set_keep(0.5)


# --- other selectors ----------------------------------------------------------------------------


@pytest.mark.parametrize("trained", SELECTORS)
@pytest.mark.parametrize("selector", ["random", "entropy", "none"])
def test_selectors_without_training_fit_every_network(trained, selector):
    network = made(trained, keep=0.5)
    network.set_selector(selector)
    assert network.config["selector"] == selector
    expected = made(selector, keep=0.5)
    expected.load_state_dict(network.state_dict())
    assert same(network, expected)


@pytest.mark.parametrize("trained", ["topk", "gumbel-topk", "local", "threshold", "gumbel"])
@pytest.mark.parametrize("selector", ["topk", "gumbel-topk", "local"])
@pytest.mark.parametrize("sparsity", ["q+k", "qk"])
def test_learned_logits_serve_every_selector_with_a_ratio(trained, selector, sparsity):
    network = made(trained, sparsity=sparsity)
    network.set_selector(selector, keep=0.1)
    assert {round(n / 25.6, 1) for n in kept(network)[next(iter(kept(network)))]} == {1.0}
    expected = made(selector, sparsity=sparsity, keep=0.1)
    state = network.state_dict()
    assert expected.state_dict().keys() == state.keys()
    expected.load_state_dict(state)
    assert same(network, expected)


def test_topk_selects_the_highest_logits_of_a_threshold():
    torch.manual_seed(0)
    attention = MaskAttention2d(8, selector=ThresholdSelector())
    x = torch.randn(2, 8, 8, 8)
    logits = attention.select(x).logits
    attention.set_selector(TopKSelector(0.25))
    chosen = attention.select(x)
    assert torch.equal(chosen.mask, TopKSelector(0.25)(logits.unsqueeze(1)).mask)


@pytest.mark.parametrize(
    ("trained", "selector", "words"),
    [
        ("none", "topk", "selector: TopKSelector selects by the logits of mask heads"),
        ("random", "local", "selector: LocalTopKSelector selects by the logits of mask heads"),
        ("topk", "threshold", 'selector: ThresholdSelector compares logits with 0.*"topk"'),
        ("topk", "best", "selector: expected one of \"random\", .* got 'best'"),
    ],
)
def test_selectors_that_do_not_fit_are_one_line(trained, selector, words):
    network = made(trained)
    config, state = copy.deepcopy(network.config), network.state_dict().keys()
    with pytest.raises(ValueError, match=words) as caught:
        network.set_selector(selector)
    assert "\n" not in str(caught.value)
    assert network.config == config
    assert network.state_dict().keys() == state


def test_a_wrong_keep_leaves_the_selector():
    network = made("topk")
    with pytest.raises(ValueError, match="got 7"):
        network.set_selector("random", keep=7)
    assert all(isinstance(a.selector, TopKSelector) for a in network.unet.attentions().values())
    with pytest.raises(ValueError, match="all tokens take part"):
        network.set_selector("none", keep=0.5)


def test_the_keep_of_before_stays_and_seeds_are_those_of_the_constructor():
    network = made("topk", seed=5)
    network.set_keep(0.1)
    network.set_selector("random")
    selectors = [a.selector for a in network.unet.attentions().values()]
    assert all(isinstance(s, RandomSelector) and s.keep == 0.1 for s in selectors)
    assert [s.seed for s in selectors] == [5, 6, 7, 8]
    assert not any(s.training for s in selectors)


def test_all_tokens_of_entropy_are_dense_attention():
    dense = made("none")
    network = made("entropy")
    network.load_state_dict(dense.state_dict(), strict=False)
    network.set_keep(1)
    torch.testing.assert_close(network(IMAGE).semantic, dense(IMAGE).semantic)
