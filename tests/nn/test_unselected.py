# SPDX-License-Identifier: BSD-3-Clause
"""What pixels that are not selected queries get: nothing, or the mean of what the queries got."""

import pytest
import torch

from maskattn_kernels import select_tokens
from maskattn_kernels.nn import (
    EntropySelector,
    MaskAttention2d,
    RandomSelector,
    Selection,
    make_selector,
)
from maskattn_kernels.nn.straight_through import straight_through

NAN = float("nan")


def pair(sparsity: str = "q+k", heads: int = 2, **arguments) -> list[MaskAttention2d]:
    """The same weights with both rules."""
    zero, mean = (
        MaskAttention2d(8, heads, sparsity=sparsity, unselected=rule, **arguments)
        for rule in ("zero", "mean")
    )
    mean.load_state_dict(zero.state_dict())
    return [zero, mean]


def added(attention: MaskAttention2d, x, selection) -> torch.Tensor:
    """What is added to the pixels (B,C,H,W), before the norm."""
    seen = []
    hook = attention.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    attention(x, selection)
    hook.remove()
    return seen[0].transpose(1, 2).view_as(x) - x


def masks(batch: int = 2, side: int = 5) -> Selection:
    generator = torch.Generator().manual_seed(1)
    keys, queries = (torch.rand(2, batch, side, side, generator=generator) < 0.4).unbind()
    return Selection(keys, queries=Selection(queries))


@pytest.mark.parametrize("core", ["sparse", "dense", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_others_get_the_mean_of_what_the_queries_got(core, dtype):
    backend = "reference" if core == "sparse" and dtype is torch.float64 else None
    zero, mean = (a.to(dtype) for a in pair(core=core, backend=backend))
    x, selection = torch.randn(2, 8, 5, 5, dtype=dtype), masks()
    own, filled = added(zero, x, selection), added(mean, x, selection)
    for image, asking in enumerate(selection.queries.mask):
        torch.testing.assert_close(filled[image][:, asking], own[image][:, asking])
        expected = own[image][:, asking].mean(1, keepdim=True)
        others = filled[image][:, ~asking]
        torch.testing.assert_close(others, expected.expand_as(others))


@pytest.mark.parametrize("form", ["mask", "shared", "flat", "index", "index of each head"])
def test_every_form_of_mask(form):
    zero, mean = pair(sparsity="qk")
    x, mask = torch.randn(2, 8, 4, 4), torch.rand(2, 4, 4) < 0.5
    mask[:, 0, 0] = True
    if form == "shared":
        mask = mask[:1]
    given = {
        "mask": mask,
        "shared": mask,
        "flat": mask.flatten(1),
        "index": select_tokens(mask.flatten(1)),
        "index of each head": select_tokens(torch.rand(2, 2, 16) < 0.5),
    }[form]
    asking = given.to_mask() if form.startswith("index") else mask.flatten(1).unsqueeze(1)
    asking = asking.expand(2, 2, 16).repeat_interleave(4, 1).view(2, 8, 4, 4)
    own = added(zero, x, given)
    expected = (own * asking).sum((2, 3), keepdim=True) / asking.sum((2, 3), keepdim=True)
    torch.testing.assert_close(added(mean, x, given), torch.where(asking, own, expected))


@pytest.mark.parametrize("sparsity", ["k", "qk", "q+k"])
def test_where_all_ask_nothing_changes(sparsity):
    zero, mean = pair(sparsity=sparsity)
    x = torch.randn(2, 8, 5, 5)
    everywhere = torch.ones(2, 5, 5, dtype=torch.bool)
    keys = everywhere if sparsity == "qk" else masks().mask
    queries = None if sparsity == "qk" else Selection(everywhere)
    assert torch.equal(
        zero(x, Selection(keys, queries=queries)), mean(x, Selection(keys, queries=queries))
    )
    assert torch.equal(zero(x), mean(x))


@pytest.mark.parametrize("nothing", ["queries", "keys", "both"])
def test_where_none_asks_or_answers_nothing_is_added(nothing):
    _, mean = pair()
    x, selection = torch.randn(2, 8, 5, 5, requires_grad=True), masks()
    none = torch.zeros(2, 5, 5, dtype=torch.bool)
    selection = Selection(
        selection.mask if nothing == "queries" else none,
        queries=Selection(selection.queries.mask if nothing == "keys" else none),
    )
    assert added(mean, x, selection).abs().max() == 0
    mean(x, selection).square().sum().backward()
    assert x.grad.isfinite().all()


def test_a_pixel_that_is_not_selected_changes_no_other():
    _, mean = pair()
    x, selection = torch.randn(2, 8, 5, 5), masks()
    before = mean(x, selection)
    out = ~(selection.mask | selection.queries.mask)
    assert out.any()
    damaged = torch.where(out.unsqueeze(1), NAN, x)
    after = mean(damaged, selection)
    kept = ~out.unsqueeze(1).expand_as(after)
    assert torch.equal(after[kept], before[kept])
    assert after.isnan().any()


def test_gradients_are_those_of_the_formula():
    torch.manual_seed(0)
    attention = MaskAttention2d(
        4, 2, sparsity="q+k", unselected="mean", backend="reference"
    ).double()
    x, selection = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True), masks(2, 3)
    assert torch.autograd.gradcheck(lambda x: attention(x, selection), (x,))


def test_a_query_is_worth_what_it_gets_beyond_the_mean():
    torch.manual_seed(0)
    mask = torch.rand(2, 7) < 0.5
    base, weight = torch.randn(2, 2, 1, 3), torch.randn(2, 2, 7, 3)
    out = torch.where(mask[:, None, :, None], torch.randn(2, 2, 7, 3), base)
    score = torch.rand(2, 7, requires_grad=True)
    through = straight_through(out, score, base)
    assert torch.equal(through, out)
    (ours,) = torch.autograd.grad((through * weight).sum(), score)
    torch.testing.assert_close(ours, ((out - base) * weight).sum((1, 3)))
    assert (ours[~mask] == 0).all()


@pytest.mark.parametrize("name", ["topk", "gumbel-topk", "local", "threshold"])
def test_what_all_queries_get_alike_teaches_no_query_mask(name):
    """With one key, every query gets its value."""
    torch.manual_seed(0)
    attention = MaskAttention2d(
        8, selector=make_selector(name, 0.25), sparsity="q+k", unselected="mean"
    )
    x = torch.randn(2, 8, 6, 6)
    selection = attention.select(x)
    one = torch.zeros_like(selection.mask)
    one[:, 2, 3] = True
    attention(x, selection._replace(mask=one)).pow(3).sum().backward()
    learned = attention.query_head.conv.weight.grad
    attention.unselected = "zero"
    attention.query_head.zero_grad()
    attention(x, attention.select(x)._replace(mask=one)).pow(3).sum().backward()
    assert learned.abs().max() < 1e-5 * attention.query_head.conv.weight.grad.abs().max()


@pytest.mark.parametrize("selector", [RandomSelector(0.25), EntropySelector(0.25)])
def test_bfloat16_and_autocast(selector):
    attention = MaskAttention2d(8, selector=selector, sparsity="q+k", unselected="mean")
    x, guess = torch.randn(2, 8, 6, 6), torch.randn(2, 3, 6, 6)
    expected = attention(x, attention.select(x, guess=guess))
    with torch.autocast("cpu", torch.bfloat16):
        near = attention(x, attention.select(x, guess=guess))
    torch.testing.assert_close(near.float(), expected, atol=0.05, rtol=0.05)


def test_a_wrong_rule_is_one_line():
    with pytest.raises(ValueError, match=r'^unselected: expected "zero" or "mean", got .max.$'):
        MaskAttention2d(8, unselected="max")
