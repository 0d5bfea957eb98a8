# SPDX-License-Identifier: BSD-3-Clause
"""The entropy selector: which tokens a first guess selects, and how networks hand the guess on."""

import pytest
import torch

from maskattn_kernels.models import MaskAttnUNet, prepare_for_inference
from maskattn_kernels.nn import EntropySelector, MaskAttention2d, Selection, Selector
from maskattn_kernels.segmentation.model.network import SegmentationNetwork

NAN, INF = float("nan"), float("inf")
#: Logits of two classes at four tokens: sure of 0, sure of 0, unsure but 0, sure of 1.
SURE = torch.tensor([[9.0, 8.0, 1.0, -5.0], [0.0, 0.0, 0.0, 5.0]]).view(1, 2, 1, 4)


def places(mask: torch.Tensor) -> list[int]:
    return mask.flatten().nonzero().flatten().tolist()


def test_queries_are_unsure_and_keys_are_not_of_the_most_frequent_class():
    selection = EntropySelector(0.25)(torch.empty(1, 7, 1, 4), SURE)
    assert places(selection.queries.mask) == [2]
    assert places(selection.mask) == [3]
    chances = SURE.softmax(1)
    torch.testing.assert_close(selection.score, chances[:, 1])  # class 0 is the most frequent
    entropy = -(chances * chances.log2()).sum(1)  # of two classes, so in bits it is at most 1
    torch.testing.assert_close(selection.queries.score, entropy)


@pytest.mark.parametrize("classes", [1, 2, 9])
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (16, 16)])
@pytest.mark.parametrize("of_guess", [(1, 1), (3, 2), (16, 16)])
def test_exactly_so_many_tokens(classes, keep, size, of_guess):
    guess = torch.randint(3, (4, classes, *of_guess)).float()  # full of ties
    selection = EntropySelector(keep, min_keep=2)(torch.empty(4, 1, *size), guess)
    tokens = size[0] * size[1]
    count = min(max(2, round(keep * tokens)), tokens)
    for chosen in (selection, selection.queries):
        assert chosen.mask.shape == chosen.score.shape == (4, *size)
        assert chosen.mask.sum((1, 2)).tolist() == [count] * 4
        assert ((chosen.score >= 0) & (chosen.score <= 1)).all()
        lowest_in = torch.where(chosen.mask, chosen.score, INF).amin((1, 2))
        highest_out = torch.where(chosen.mask, -INF, chosen.score).amax((1, 2))
        assert (lowest_in >= highest_out).all()


def test_an_image_selects_by_its_own_guess_alone():
    guess = torch.randn(2, 5, 8, 8)
    features = torch.empty(2, 1, 8, 8)
    before = EntropySelector()(features, guess)
    guess[1] = NAN
    after = EntropySelector()(features, guess)
    for one, other in ((before, after), (before.queries, after.queries)):
        assert torch.equal(one.mask[0], other.mask[0])
        assert torch.equal(one.score[0], other.score[0])
        assert other.score.isfinite().all()
        assert other.mask[1].sum() == 16


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_token_whose_guess_is_not_finite_is_the_last_to_ask(value):
    guess = torch.randn(1, 5, 4, 4)
    guess[0, 2, 1, 1] = value
    selection = EntropySelector(15 / 16)(torch.empty(1, 1, 4, 4), guess)
    assert selection.queries.score.isfinite().all()
    if value != -INF:  # a class that cannot be leaves the others as they are
        assert places(~selection.queries.mask) == [5]


def test_no_gradient_flows_through_the_choice():
    guess = torch.randn(2, 3, 4, 4, requires_grad=True)
    attention = MaskAttention2d(8, selector=EntropySelector(), sparsity="q+k")
    x = torch.randn(2, 8, 4, 4, requires_grad=True)
    selection = attention.select(x, guess=guess)
    assert selection.key_bias is None
    assert not any(s.score.requires_grad for s in (selection, selection.queries))
    attention(x, selection).square().sum().backward()
    assert guess.grad is None
    assert all(p.grad is not None for p in attention.parameters())


def test_bfloat16_guesses_are_compared_in_float32():
    guess = torch.randn(1, 3, 8, 8).bfloat16()
    selection = EntropySelector()(torch.empty(1, 1, 8, 8), guess)
    assert selection.score.dtype == torch.float32
    wide = EntropySelector()(torch.empty(1, 1, 8, 8), guess.float())
    assert torch.equal(selection.queries.mask, wide.queries.mask)


def test_one_set_of_tokens_where_queries_and_keys_are_the_same():
    x, guess = torch.randn(1, 8, 4, 4), torch.randn(1, 3, 4, 4)
    chosen = {
        sparsity: MaskAttention2d(8, selector=EntropySelector(), sparsity=sparsity).select(
            x, guess=guess
        )
        for sparsity in ("qk", "q+k", "k")
    }
    assert chosen["qk"].queries is None
    assert torch.equal(chosen["qk"].mask, chosen["q+k"].queries.mask)
    assert torch.equal(chosen["k"].mask, chosen["q+k"].mask)


def test_selectors_that_take_no_guess_are_called_as_before():
    class Left(Selector):
        def forward(self, features):
            mask = torch.zeros(features.shape[0], *features.shape[2:], dtype=torch.bool)
            mask[..., 0] = True
            return Selection(mask)

    attention = MaskAttention2d(8, selector=Left())
    selection = attention.select(torch.randn(1, 8, 2, 2), guess=torch.randn(1, 3, 2, 2))
    assert selection.mask.tolist() == [[[True, False], [True, False]]]


@pytest.mark.parametrize("guess", [None, torch.zeros(1, 3, 4), torch.zeros(2, 3, 4, 4)])
def test_without_a_guess_one_line_says_so(guess):
    attention = MaskAttention2d(8, selector=EntropySelector())
    with pytest.raises(ValueError, match=r"^guess: expected logits \(1, K, h, w\).*$") as caught:
        attention.select(torch.randn(1, 8, 4, 4), guess=guess)
    assert "\n" not in str(caught.value)


# --- in networks --------------------------------------------------------------------------------


def test_each_scale_of_the_decoder_gets_the_guess_of_the_map_before():
    network = MaskAttnUNet(classes=3, width=8, depth=2, selector="entropy", sparsity="q+k").eval()
    seen = []

    def guess(features):
        seen.append(features)
        torch.manual_seed(len(seen))
        return torch.randn(len(features), 3, *features.shape[2:])

    maps, selections = network.features(torch.randn(2, 3, 20, 28), guess=guess)
    assert all(one is other for one, other in zip(seen, maps[:-1], strict=True))
    for place, name in enumerate(("up1", "up2"), start=1):
        torch.manual_seed(place)
        logits = torch.randn(2, 3, *seen[place - 1].shape[2:])
        expected = EntropySelector()(maps[place], logits)
        assert torch.equal(selections[name].mask, expected.mask)
        assert torch.equal(selections[name].queries.mask, expected.queries.mask)


def test_a_network_without_a_guess_says_so():
    with pytest.raises(ValueError, match="guess: expected logits"):
        MaskAttnUNet(width=4, depth=1, selector="entropy")(torch.randn(1, 3, 8, 8))


def test_the_guess_of_a_segmentation_network_is_the_sum_of_its_coarser_logits():
    torch.manual_seed(0)
    network = SegmentationNetwork(4, [2], width=4, depth=3, selector="entropy").eval()
    image = torch.rand(2, 3, 32, 32)
    outputs = network(image)
    maps, _ = network.unet.features((image - network.mean) / network.std, guess=_guesses(network))
    logits = _guesses(network)
    for place, features in enumerate(maps[:-1], start=1):
        expected = EntropySelector()(maps[place], logits(features))
        assert torch.equal(outputs.selections[f"up{place} queries"].mask, expected.queries.mask)
        assert torch.equal(outputs.selections[f"up{place} keys"].mask, expected.mask)


def _guesses(network):
    """Logits of one map after the other, those of the coarser ones added."""
    heads, total = iter([*network.coarse_heads, network.unet.head]), None

    def guess(features):
        nonlocal total
        own = next(heads)(features)
        if total is not None:
            own = own + torch.nn.functional.interpolate(
                total, own.shape[2:], mode="bilinear", align_corners=False
            )
        total = own
        return total

    return guess


def test_an_entropy_network_trains_prepares_and_compiles():
    torch.manual_seed(0)
    network = SegmentationNetwork(4, [2], width=4, depth=2, selector="entropy")
    assert not any("mask_head" in name for name in network.state_dict())
    image = torch.rand(2, 3, 24, 40)
    outputs = network(image)
    sum(t.square().mean() for t in outputs[:4]).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
    network.eval()
    with torch.inference_mode():
        expected = network(image)
        ready = prepare_for_inference(network)(image)
    torch.testing.assert_close(ready.semantic, expected.semantic, atol=1e-4, rtol=1e-4)
    compiled = torch.compile(network, fullgraph=True, backend="eager")(image)
    assert torch.equal(compiled.semantic, expected.semantic)
    again = SegmentationNetwork(**network.config).eval()
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(image).semantic, expected.semantic)
