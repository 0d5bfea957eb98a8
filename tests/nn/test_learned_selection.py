# SPDX-License-Identifier: BSD-3-Clause
"""Selectors over a mask head: what they choose, and that gradients teach them to choose."""

import copy

import pytest
import torch

from maskattn_kernels import masked_attention
from maskattn_kernels.models import MaskAttnUNet
from maskattn_kernels.nn import (
    GumbelSelector,
    LocalTopKSelector,
    MaskAttention2d,
    MaskHead,
    RandomSelector,
    ThresholdSelector,
    TopKSelector,
    keep_ratio_loss,
    make_selector,
)
from maskattn_kernels.nn.straight_through import straight_through

LEARNED = ("topk", "gumbel-topk", "local", "threshold", "gumbel")
NAN, INF = float("nan"), float("inf")


def logits(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(1, 1, 1, -1)


def chosen(selector, *values: float) -> list[int]:
    return selector(logits(*values)).mask.flatten().nonzero().flatten().tolist()


# --- what is chosen -----------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (16, 16)])
def test_topk_selects_exactly_k(keep, size):
    features = torch.randint(3, (4, 1, *size)).float()  # full of ties
    selection = TopKSelector(keep)(features)
    count = max(1, round(keep * size[0] * size[1]))
    assert selection.mask.sum((1, 2)).tolist() == [count] * 4
    lowest_in = torch.where(selection.mask, features[:, 0], INF).amin((1, 2))
    highest_out = torch.where(selection.mask, -INF, features[:, 0]).amax((1, 2))
    assert (lowest_in >= highest_out).all()


@pytest.mark.parametrize("window", [1, 2, 4, 99])
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (16, 16), (9, 14)])
def test_local_topk_takes_the_best_of_every_window(keep, size, window):
    features = torch.randint(5, (3, 1, *size)).float()  # full of ties
    selection = LocalTopKSelector(keep, window=window)(features)
    height, width = size
    assert selection.mask.sum((1, 2)).tolist() == [max(1, round(keep * height * width))] * 3
    share = max(keep, 1 / (height * width))
    for top in range(0, height, window):
        for left in range(0, width, window):
            place = (slice(top, top + window), slice(left, left + window))
            values, mask = features[(slice(None), 0, *place)], selection.mask[(slice(None), *place)]
            counts = mask.flatten(1).sum(1)
            assert (counts == counts[0]).all()
            assert abs(counts[0] - share * mask[0].numel()) <= 1
            in_order = values.flatten(1).sort(dim=1, descending=True, stable=True).indices
            expected = torch.zeros_like(mask.flatten(1))
            expected.scatter_(1, in_order[:, : counts[0]], True)
            assert torch.equal(mask.flatten(1), expected)


def test_one_window_over_all_is_topk():
    features = torch.randn(2, 1, 6, 7)
    one, all_of_it = LocalTopKSelector(0.3, window=7)(features), TopKSelector(0.3)(features)
    assert torch.equal(one.mask, all_of_it.mask)
    torch.testing.assert_close(one.score, all_of_it.score)
    torch.testing.assert_close(one.key_bias, all_of_it.key_bias)


def test_ties_go_to_the_first():
    assert chosen(TopKSelector(0.5), 1, 2, 1, 1, 2, 1) == [0, 1, 4]
    assert chosen(TopKSelector(0.5), 0, 0, 0, 0) == [0, 1]


def test_threshold_selects_positive_logits_and_at_least_the_floor():
    assert chosen(ThresholdSelector(), -1, 2, 0, 0.1) == [1, 3]
    assert chosen(ThresholdSelector(min_keep=2), -3, -1, -2, -1) == [1, 3]
    assert chosen(ThresholdSelector(min_keep=9), -3, -1) == [0, 1]
    assert chosen(TopKSelector(0.0, min_keep=2), -3, -1, -2) == [1, 2]


@pytest.mark.parametrize("name", LEARNED)
def test_logits_that_are_not_finite(name):
    selector = make_selector(name, 0.5).eval()
    everywhere = torch.full((1, 1, 4, 4), NAN)
    assert selector(everywhere).mask.sum() >= 1
    assert chosen(selector, NAN, 1, -1, INF) == [1, 3]
    values = logits(NAN, 1, -INF, INF).requires_grad_()
    selection = selector(values)
    (selection.key_bias + selection.score).sum().backward()
    for t in (selection.key_bias, selection.score, selection.logits, values.grad):
        assert t.isfinite().all()


@pytest.mark.parametrize("name", LEARNED)
def test_empty_batch_and_no_pixels(name):
    selector = make_selector(name, 0.5)
    assert selector(torch.empty(0, 1, 4, 4)).mask.shape == (0, 4, 4)
    assert selector(torch.empty(2, 1, 0, 4)).mask.shape == (2, 0, 4)


@pytest.mark.parametrize("name", LEARNED)
def test_selected_means_score_from_a_half(name):
    selection = make_selector(name, 0.3)(torch.randn(2, 1, 9, 9))
    assert torch.equal(selection.mask, selection.score >= 0.5)
    torch.testing.assert_close(selection.key_bias, selection.score.log())


@pytest.mark.parametrize("name", ["topk", "local", "threshold"])
def test_the_same_choice_in_training_and_inference(name):
    attention = MaskAttention2d(8, selector=make_selector(name))
    x = torch.randn(2, 8, 6, 6)
    assert torch.equal(attention.train().select(x).mask, attention.eval().select(x).mask)


# --- mask head ----------------------------------------------------------------------------------


def test_head_is_a_convolution_joined_with_the_previous_scale():
    head = MaskHead(4, joins_previous=True)
    x, previous = torch.randn(2, 4, 6, 6), torch.randn(2, 1, 3, 3)
    resized = torch.nn.functional.interpolate(previous, size=(6, 6), mode="bilinear")
    torch.testing.assert_close(head(x, previous), head.conv(x) + head.carry * resized)
    torch.testing.assert_close(head(x), head.conv(x))


@pytest.mark.parametrize("start", [0.1, 0.25, 0.5])
def test_head_starts_near_the_fraction_asked_for(start):
    torch.manual_seed(0)
    heads = [MaskHead(64, start=start) for _ in range(20)]
    x = torch.randn(1, 64, 32, 32)
    mean = sum((head(x) > 0).float().mean() for head in heads) / len(heads)
    assert abs(mean - start) < 0.03


def test_logits_are_float32_in_low_precision():
    attention = MaskAttention2d(8, selector=TopKSelector())
    x = torch.randn(1, 8, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attention.select(x).score, attention.select(x).score.float())
    assert attention.bfloat16().select(x.bfloat16()).key_bias.dtype == torch.float32


# --- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_straight_through_is_the_gradient_of_a_gate_on_queries(dtype):
    torch.manual_seed(0)
    mask = torch.rand(2, 7) < 0.5
    out, weight = torch.randn(2, 2, 2, 7, 3, dtype=torch.float64)
    out = (out * mask[:, None, :, None]).to(dtype).requires_grad_()
    score = torch.rand(2, 7, dtype=torch.float64).to(torch.promote_types(dtype, torch.float32))
    gate = torch.ones(2, 7, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad((out.double() * gate[:, None, :, None] * weight).sum(), gate)

    score.requires_grad_()
    through = straight_through(out, score)
    assert torch.equal(through, out)
    ours, to_out = torch.autograd.grad((through * weight.to(dtype)).sum(), (score, out))
    accuracy = {"rtol": 1e-2, "atol": 1e-2} if dtype is torch.bfloat16 else {}
    torch.testing.assert_close(ours.double(), expected, **accuracy)
    assert torch.equal(to_out, weight.to(dtype))
    assert (ours[~mask] == 0).all()


@pytest.mark.parametrize("sparsity", ["qk", "k"])
@pytest.mark.parametrize("name", LEARNED)
def test_selected_tokens_get_the_gradient_of_their_value(name, sparsity):
    attention = MaskAttention2d(8, selector=make_selector(name, 0.25), sparsity=sparsity)
    x = torch.randn(2, 8, 6, 6)
    selection = attention.select(x)
    for hearing in (selection.score, selection.key_bias):
        hearing.retain_grad()
    attention(x, selection).pow(3).sum().backward()
    assert (selection.key_bias.grad[selection.mask] != 0).all()
    assert (selection.key_bias.grad[~selection.mask] == 0).all()
    through_queries = selection.score.grad  # of key_bias, a function of the logits, none is in it
    if sparsity == "qk":
        assert (through_queries[selection.mask] != 0).all()
        assert (through_queries[~selection.mask] == 0).all()
    else:
        assert through_queries is None


@pytest.mark.parametrize("name", LEARNED)
def test_queries_and_keys_get_separate_gradients(name):
    attention = MaskAttention2d(8, selector=make_selector(name, 0.25), sparsity="q+k")
    x = torch.randn(2, 8, 6, 6)
    keys = attention.select(x)
    queries = keys.queries
    assert not torch.equal(queries.mask, keys.mask)
    for choice in (queries, keys):
        choice.score.retain_grad()
        choice.key_bias.retain_grad()
    attention(x, keys).pow(3).sum().backward()
    assert torch.equal(queries.score.grad != 0, queries.mask)
    assert torch.equal(keys.key_bias.grad != 0, keys.mask)
    assert queries.key_bias.grad is None
    assert keys.score.grad is None  # key_bias, a function of the logits, is not in it


def test_queries_and_keys_apart_are_two_masks_of_the_op():
    attention = MaskAttention2d(8, num_heads=2, selector=TopKSelector(0.3), sparsity="q+k")
    x = torch.randn(2, 8, 5, 4)
    keys = attention.select(x)
    tokens = x.flatten(2).transpose(1, 2)
    qkv = attention.qkv(tokens).view(2, 20, 3, 2, 4).permute(2, 0, 3, 1, 4)
    out = masked_attention(
        *qkv,
        key_mask=keys.mask.flatten(1),
        query_mask=keys.queries.mask.flatten(1),
        key_bias=keys.key_bias.flatten(1),
        backend="reference",
    )
    expected = attention.norm(tokens + out.transpose(1, 2).reshape(2, 20, 8))
    expected = expected.transpose(1, 2).view_as(x)
    torch.testing.assert_close(attention(x), expected)


@pytest.mark.parametrize("selector", [None, RandomSelector(0.5)])
def test_what_does_not_learn_chooses_once(selector):
    apart, once = (MaskAttention2d(8, selector=selector, sparsity=s) for s in ("q+k", "qk"))
    apart.load_state_dict(once.state_dict())
    x = torch.randn(2, 8, 6, 6)
    assert torch.equal(apart(x), once(x))


@pytest.mark.parametrize("sparsity", ["qk", "q+k", "k"])
@pytest.mark.parametrize("name", LEARNED)
def test_every_parameter_of_a_network_gets_a_gradient(name, sparsity):
    torch.manual_seed(0)
    # Many keys: the bias of a single one says nothing.
    masks = {"selector": name, "sparsity": sparsity, "keep": 0.5}
    network = MaskAttnUNet(classes=3, width=4, depth=2, **masks)
    network.eval()(torch.randn(2, 3, 18, 15)).square().sum().backward()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("sparsity", ["qk", "q+k", "k"])
@pytest.mark.parametrize("name", ["topk", "local", "threshold"])
def test_cores_agree_in_outputs_and_gradients(name, sparsity):
    def result(core, dtype):
        torch.manual_seed(0)
        arguments = {"selector": name, "sparsity": sparsity, "keep": 0.4}
        network = MaskAttnUNet(classes=3, width=4, depth=2, core=core, **arguments)
        network = network.to(dtype).eval()
        out = network(torch.randn(2, 3, 18, 15).to(dtype))
        out.square().mean().backward()
        # All gradients as one: that of a mask head nearly cancels where few keys are selected.
        gradients = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
        return [out, gradients], network

    exact, _ = result("dense", torch.float64)
    dense, network = result("dense", torch.float32)
    for core in ("sparse", "sdpa"):
        ours, other = result(core, torch.float32)
        assert list(other.state_dict()) == list(network.state_dict())
        for got, baseline, truth in zip(ours, dense, exact, strict=True):
            error, allowed = (got - truth).norm(), (baseline - truth).norm()
            assert error <= 4 * allowed + 1e-6 * truth.norm(), core


# --- no synchronisation, checkpoints ------------------------------------------------------------


@pytest.mark.parametrize("name", LEARNED)
def test_nothing_reads_a_value_on_the_host(name):
    """Meta tensors have no values: .item(), nonzero and data-dependent shapes raise."""
    with torch.device("meta"):
        network = MaskAttnUNet(classes=3, width=4, depth=1, selector=name, core="dense")
        maps, selections = network.features(torch.randn(2, 3, 16, 16))
        keep_ratio_loss(selections.values(), 0.25).add(maps[-1].sum()).backward()
        ratios = torch.stack([selection.keep_ratio for selection in selections.values()])
    assert ratios.shape == (2, 2)


def test_compiles_in_one_graph():
    torch.manual_seed(0)
    attention = MaskAttention2d(8, selector=TopKSelector())
    copied = copy.deepcopy(attention)
    compiled = torch.compile(copied, fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 8, 6, 6)
    attention(x).square().sum().backward()
    compiled(x).square().sum().backward()
    for ours, eager in zip(copied.parameters(), attention.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, eager.grad)


@pytest.mark.parametrize("name", LEARNED)
def test_checkpoint_brings_the_selection_back(name):
    saved, loaded = (
        MaskAttnUNet(classes=3, width=4, depth=1, selector=name).eval() for _ in range(2)
    )
    loaded.load_state_dict(saved.state_dict())
    image = torch.randn(1, 3, 16, 16)
    masks = [network(image, return_masks=True)[1] for network in (saved, loaded)]
    assert all(torch.equal(masks[0][scale], masks[1][scale]) for scale in saved.scales)


def test_a_scale_joins_the_logits_of_the_one_before():
    network = MaskAttnUNet(classes=3, width=4, depth=2, selector="topk").eval()
    heads = [module.mask_head for module in (*network.down_attention, *network.up_attention)]
    assert [head.carry is not None for head in heads] == [False, True, True, True]
    image = torch.randn(1, 3, 16, 16)
    _, before = network.features(image)
    with torch.no_grad():
        heads[1].carry.fill_(-3.0)
    _, after = network.features(image)
    assert torch.equal(before["down1"].logits, after["down1"].logits)
    assert not torch.equal(before["down2"].logits, after["down2"].logits)


def test_queries_join_the_logits_of_queries():
    network = MaskAttnUNet(classes=3, width=4, depth=2, selector="topk", sparsity="q+k").eval()
    image = torch.randn(1, 3, 16, 16)
    _, before = network.features(image)
    with torch.no_grad():
        network.down_attention[1].query_head.carry.fill_(-3.0)
    _, after = network.features(image)
    assert torch.equal(before["down2"].logits, after["down2"].logits)
    assert not torch.equal(before["down2"].queries.logits, after["down2"].queries.logits)


def test_no_selector_takes_all_pixels():
    network = MaskAttnUNet(classes=3, width=4, depth=1, selector="none").eval()
    image = torch.randn(1, 3, 8, 8)
    logits, masks = network(image, return_masks=True)
    assert set(masks.values()) == {None}
    everything = torch.ones(1, 8, 8, dtype=torch.bool)
    torch.testing.assert_close(network(image, everything), logits)


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: make_selector("best"), ValueError, 'selector: expected one of "random", .* got'),
        (lambda: TopKSelector(2.0), ValueError, "keep: expected a number from 0 to 1, got 2.0"),
        (lambda: LocalTopKSelector(window=0), ValueError, "window: .* got 0"),
        (lambda: TopKSelector(min_keep=0), ValueError, "min_keep: .* got 0"),
        (lambda: GumbelSelector(temperature=(0.1, 1.0)), ValueError, "temperature: .* got"),
        (lambda: GumbelSelector().anneal(1.5), ValueError, "progress: .* got 1.5"),
        (lambda: MaskHead(0), ValueError, "channels: .* got 0"),
        (lambda: keep_ratio_loss([], -1), ValueError, "target: .* got -1"),
    ],
)
def test_bad_arguments(make, kind, words):
    with pytest.raises(kind, match=words):
        make()


def test_a_selection_brings_its_own_bias():
    attention = MaskAttention2d(8, selector=TopKSelector())
    x = torch.randn(1, 8, 4, 4)
    with pytest.raises(ValueError, match="key_bias: expected None"):
        attention(x, attention.select(x), torch.zeros(1, 4, 4))
