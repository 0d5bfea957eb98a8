# SPDX-License-Identifier: BSD-3-Clause
"""swap_attention: calls that the op cannot run go to the original, and are told and counted."""

import copy
import warnings

import pytest
import torch
from torch import nn

from maskattn_kernels import swap_attention, unswap_attention


def encoder():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


class Attention(nn.Module):
    """One attention module, called in any way."""

    def __init__(self, **arguments):
        super().__init__()
        self.inner = nn.MultiheadAttention(16, 4, **{"batch_first": True, **arguments})

    def forward(self, x, **arguments):
        return self.inner(x, x, x, **arguments)


CALLS = {
    "attn_mask": {"attn_mask": torch.ones(5, 5, dtype=torch.bool).triu(1), "need_weights": False},
    "need_weights": {"need_weights": True},
    "each head's weights": {"need_weights": True, "average_attn_weights": False},
    "is_causal": {
        "attn_mask": torch.ones(5, 5, dtype=torch.bool).triu(1),
        "is_causal": True,
        "need_weights": False,
    },
    "attn_mask and padding": {
        "attn_mask": torch.randn(5, 5),
        "key_padding_mask": torch.tensor([[0.0, 0, 0, 0, -torch.inf]]).repeat(2, 1),
        "need_weights": False,
    },
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_that_the_op_cannot_run_give_what_torch_gives(name):
    model, x = Attention(), torch.randn(2, 5, 16)
    plain = copy.deepcopy(model)
    report = swap_attention(model)
    with pytest.warns(UserWarning, match=r"^inner: a call with .* was handed to the nn.Multihead"):
        out, weights = model(x, **CALLS[name])
    right, right_weights = plain(x, **CALLS[name])
    assert torch.equal(out, right)
    assert (weights is None) == (right_weights is None)
    assert weights is None or torch.equal(weights, right_weights)
    assert sum(report.handed_on.values()) == 1


def test_causal_encoder_gives_what_torch_gives_with_gradients():
    model, x = encoder(), torch.randn(2, 6, 16)
    plain = copy.deepcopy(model)
    mask = nn.Transformer.generate_square_subsequent_mask(6)
    report = swap_attention(model)
    with pytest.warns(UserWarning, match="attn_mask") as told:
        got = model(x, mask=mask)
    assert len(told) == 1, "once for all layers"
    right = plain(x, mask=mask)
    torch.testing.assert_close(got, right, atol=0, rtol=0)
    got.sum().backward()
    right.sum().backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x, mask=mask)
        model(x)  # on the op, and not counted
    assert report.handed_on == {(f"layers.{n}.self_attn", "attn_mask"): 2 for n in (0, 1)}
    line = "handed on  layers.0.self_attn  calls with attn_mask to the original: 2"
    assert line in str(report)


def test_original_computes_with_the_parameters_of_today():
    model, x = Attention(), torch.randn(2, 5, 16)
    report = swap_attention(model)
    model.inner.in_proj_weight = nn.Parameter(torch.randn(48, 16))
    with pytest.warns(UserWarning, match="need_weights"):
        got, weights = model(x, need_weights=True)
    torch.testing.assert_close(got, model(x)[0], atol=1e-5, rtol=1e-4)
    assert weights is not None and report.handed_on.total() == 1
    copied = copy.deepcopy(model)
    copied.inner.out_proj.weight.data.zero_()
    got, _ = copied(x, need_weights=True)
    assert torch.equal(got, copied.inner.out_proj.bias.expand_as(got)), "the copy's own original"
    assert unswap_attention(model) == ["inner"]


def test_compiled_in_one_graph():
    model, x = Attention(), torch.randn(2, 5, 16)
    mask = torch.ones(5, 5, dtype=torch.bool).triu(1)
    right = model(x, attn_mask=mask, need_weights=False)[0]
    report = swap_attention(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    got = compiled(x, attn_mask=mask, need_weights=False)[0]
    torch.testing.assert_close(got, right)
    assert not report.handed_on, "not counted in compiled code"


class LibraryAttention(nn.Linear):
    """Attention of a library that this package does not know."""


class AttnBlock(nn.Linear):
    """The same by another name."""


def test_report_names_the_attention_of_other_libraries_where_nothing_is_swapped():
    model = nn.Sequential(LibraryAttention(2, 2), LibraryAttention(2, 2), AttnBlock(2, 2))
    report = swap_attention(model)
    here = __name__
    assert report.seen == {f"{here}.LibraryAttention": 2, f"{here}.AttnBlock": 1}
    lines = str(report).splitlines()
    assert lines[:2] == [
        "swapped 0, skipped 0",
        "  no attention module of this package or of torch.nn in this model",
    ]
    assert lines[2].startswith(f"  seen  2 x {here}.LibraryAttention")
    assert lines[2].endswith("see maskattn_kernels.integrations.sdpa.replace_sdpa")
    LibraryAttention.__module__ = "transformers.models.some"
    try:
        assert "integrations.transformers.register" in str(swap_attention(model))
    finally:
        LibraryAttention.__module__ = here


def test_report_of_a_swap_is_not_about_other_classes():
    model = nn.Sequential(LibraryAttention(2, 2), Attention())
    assert str(swap_attention(model)).splitlines() == [
        "swapped 1, skipped 0",
        "  swapped  1.inner  MultiheadAttention -> SwappedMultiheadAttention",
    ]
