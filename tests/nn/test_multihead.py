# SPDX-License-Identifier: BSD-3-Clause
"""MaskedMultiheadAttention against nn.MultiheadAttention."""

import copy

import pytest
import torch
from torch import nn

from maskattn_kernels.nn import MaskedMultiheadAttention

E, H, B, L, S = 16, 4, 2, 5, 7


def make_pair(**arguments):
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(E, H, **arguments)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    mine = MaskedMultiheadAttention(E, H, **arguments)
    mine.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, mine


def make_inputs(batch_first=False, kdim=E, vdim=E, same=False):
    def tensor(tokens, channels):
        x = torch.randn(B, tokens, channels)
        return x if batch_first else x.transpose(0, 1)

    if same:
        x = tensor(S, E)
        return x, x, x
    return tensor(L, E), tensor(S, kdim), tensor(S, vdim)


PADDING = torch.tensor([[False] * 7, [False, True, False, False, True, True, True]])


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("same", [False, True], ids=["cross", "self"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("padding", [None, "bool", "float", "-inf"])
def test_same_results_and_gradients(batch_first, same, bias, padding):
    theirs, mine = make_pair(batch_first=batch_first, bias=bias)
    inputs = make_inputs(batch_first, same=same)
    given = {
        None: None,
        "bool": PADDING,
        "float": torch.randn(B, S).masked_fill(PADDING, float("-inf")),
        "-inf": torch.zeros(B, S).masked_fill(PADDING, float("-inf")),
    }[padding]

    def results(module):
        query, key, value = (t.detach().clone().requires_grad_() for t in inputs)
        if same:
            key = value = query
        out, _ = module(query, key, value, key_padding_mask=given, need_weights=False)
        leaves = [query, *module.parameters()] + ([] if same else [key, value])
        weight = torch.linspace(-1, 1, out.numel()).view(out.shape)
        return [out, *torch.autograd.grad((out * weight).sum(), leaves)]

    for got, want in zip(results(mine), results(theirs), strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_own_widths_of_key_and_value():
    theirs, mine = make_pair(kdim=6, vdim=10)
    query, key, value = make_inputs(kdim=6, vdim=10)
    want, _ = theirs(query, key, value, key_padding_mask=PADDING)
    got, weights = mine(query, key, value, key_padding_mask=PADDING)
    assert weights is None
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("batch_first", [False, True])
def test_without_a_batch(batch_first):
    theirs, mine = make_pair(batch_first=batch_first)
    query, key = torch.randn(L, E), torch.randn(S, E)
    for inputs in ((query, key, key), (key, key, key)):
        want, _ = theirs(*inputs, key_padding_mask=PADDING[1])
        got, _ = mine(*inputs, key_padding_mask=PADDING[1])
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_gradient_of_a_float_padding_mask():
    theirs, mine = make_pair(batch_first=True)
    inputs = make_inputs(True)
    grads = []
    for module in (theirs, mine):
        mask = torch.randn(B, S, generator=torch.Generator().manual_seed(1)).requires_grad_()
        out, _ = module(*inputs, key_padding_mask=mask, need_weights=False)
        grads += torch.autograd.grad((out * torch.arange(E)).sum(), mask)
    torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-4)


def test_padded_keys_are_never_read():
    _, mine = make_pair(batch_first=True)
    query, key, value = make_inputs(True)
    want, _ = mine(query, key, value, key_padding_mask=PADDING)
    key, value = (t.masked_fill(PADDING[..., None], float("nan")) for t in (key, value))
    got, _ = mine(query, key, value, key_padding_mask=PADDING)
    assert torch.equal(got, want)


def test_all_keys_padded_gives_the_bias():
    _, mine = make_pair(batch_first=True)
    out, _ = mine(*make_inputs(True), key_padding_mask=torch.ones(B, S).bool())
    torch.testing.assert_close(out, mine.out_proj.bias.expand_as(out))


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("fast_path", [False, True], ids=["grad", "no_grad"])
@pytest.mark.parametrize("padded", [False, True])
def test_in_an_encoder_layer(norm_first, fast_path, padded):
    """Eval mode without grad is where nn.TransformerEncoderLayer passes its attention by."""
    torch.manual_seed(0)
    theirs = nn.TransformerEncoderLayer(E, H, 32, batch_first=True, norm_first=norm_first).eval()
    mine = copy.deepcopy(theirs)
    mine.self_attn = MaskedMultiheadAttention.from_mha(mine.self_attn)
    calls = count_calls(mine.self_attn)
    x = torch.randn(B, S, E)
    given = {"src_key_padding_mask": PADDING} if padded else {}
    with torch.set_grad_enabled(not fast_path):
        got, want = mine(x, **given), theirs(x, **given)
    assert len(calls) == 1
    real = ~PADDING if padded else torch.ones_like(PADDING)
    torch.testing.assert_close(got[real], want[real], atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("right_padded", [False, True])
def test_in_an_encoder_that_nests(right_padded):
    """nn.TransformerEncoder turns right-padded batches into nested tensors in eval mode."""
    torch.manual_seed(0)
    theirs = nn.TransformerEncoder(nn.TransformerEncoderLayer(E, H, 32, batch_first=True), 2).eval()
    mine = copy.deepcopy(theirs)
    for layer in mine.layers:
        layer.self_attn = MaskedMultiheadAttention.from_mha(layer.self_attn)
    calls = [count_calls(layer.self_attn) for layer in mine.layers]
    x = torch.randn(B, S, E)
    padding = torch.arange(S) >= torch.tensor([[S], [3]]) if right_padded else PADDING
    with torch.no_grad():
        got = mine(x, src_key_padding_mask=padding)
        want = theirs(x, src_key_padding_mask=padding)
    assert [len(c) for c in calls] == [1, 1]
    assert calls[0] == [right_padded]  # was the input nested?
    torch.testing.assert_close(got[~padding], want[~padding], atol=1e-5, rtol=1e-4)
    assert got.shape == want.shape


def count_calls(module: nn.Module) -> list[bool]:
    """Grows by one with every call of the module, without a hook: hooks switch shortcuts off."""
    calls: list[bool] = []
    forward = module.forward

    def counted(query, *args, **kwargs):
        calls.append(query.is_nested)
        return forward(query, *args, **kwargs)

    module.forward = counted
    return calls


def test_from_mha_shares_the_parameters():
    theirs, _ = make_pair(batch_first=True)
    theirs.eval()
    mine = MaskedMultiheadAttention.from_mha(theirs, backend="reference")
    assert mine.training is False
    assert mine.core.backend == "reference"
    ours, want = dict(mine.named_parameters()), dict(theirs.named_parameters())
    assert list(ours) == list(want)
    assert all(ours[name] is want[name] for name in want)


def test_compiles_in_one_graph():
    _, mine = make_pair(batch_first=True)
    x = torch.randn(B, S, E)
    compiled = torch.compile(mine, fullgraph=True, backend="aot_eager")
    got, _ = compiled(x, x, x, key_padding_mask=PADDING)
    torch.testing.assert_close(got, mine(x, x, x, key_padding_mask=PADDING)[0])


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"embed_dim": 16.0}, TypeError, "embed_dim: .* got float"),
        ({"num_heads": 3}, ValueError, "num_heads: expected a divisor of embed_dim=16, got 3"),
        ({"embed_dim": 1028}, ValueError, "num_heads: expected at least 5"),
        ({"dropout": 2.0}, ValueError, "dropout: .* got 2.0"),
    ],
)
def test_bad_constructor_arguments(arguments, kind, words):
    with pytest.raises(kind, match=words):
        MaskedMultiheadAttention(**{"embed_dim": E, "num_heads": H, **arguments})


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"query": None}, TypeError, "query: expected a Tensor, got NoneType"),
        ({"key": torch.randn(S, E)}, ValueError, "key: expected 3 dimensions .* got 2"),
        ({"value": torch.randn(B, S, 3)}, ValueError, "value: expected 16 channels, got 3"),
        ({"need_weights": True}, NotImplementedError, "need_weights: expected False"),
        ({"attn_mask": torch.ones(L, S)}, NotImplementedError, "attn_mask: expected none"),
        ({"is_causal": True}, NotImplementedError, "is_causal: expected none"),
        ({"key_padding_mask": [True]}, TypeError, "key_padding_mask: .* got list"),
        ({"key_padding_mask": PADDING.int()}, TypeError, "key_padding_mask: .* got torch.int32"),
        ({"key_padding_mask": PADDING.T}, ValueError, r"key_padding_mask: .* got \(7, 2\)"),
    ],
)
def test_bad_inputs(arguments, kind, words):
    _, mine = make_pair(batch_first=True)
    query, key, value = make_inputs(True)
    with pytest.raises(kind, match=words) as caught:
        mine(**{"query": query, "key": key, "value": value, **arguments})
    assert "\n" not in str(caught.value)


def test_dropout_in_training_is_refused():
    _, mine = make_pair(dropout=0.1)
    inputs = make_inputs()
    with pytest.raises(NotImplementedError, match=r"dropout: expected 0 .* got 0.1 in training"):
        mine(*inputs)
    mine.eval()(*inputs)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"add_bias_kv": True}, "add_bias_kv"), ({"add_zero_attn": True}, "add_zero_attn")],
)
def test_from_mha_refuses(arguments, words):
    with pytest.raises(NotImplementedError, match=words):
        MaskedMultiheadAttention.from_mha(nn.MultiheadAttention(E, H, **arguments))
    with pytest.raises(NotImplementedError, match="head_dim 512"):
        MaskedMultiheadAttention.from_mha(nn.MultiheadAttention(512, 1))
