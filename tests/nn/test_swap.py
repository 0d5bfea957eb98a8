# SPDX-License-Identifier: BSD-3-Clause
"""swap_attention: what it exchanges, what it leaves and why, and that it can be undone."""

import copy

import pytest
import torch
from harness import ran_on
from torch import nn

from maskattn_kernels import swap_attention, unswap_attention
from maskattn_kernels.models import MaskAttnUNet
from maskattn_kernels.nn import (
    DenseAttentionCore,
    MaskAttention2d,
    MaskedMultiheadAttention,
    SDPAAttentionCore,
    SparseAttentionCore,
)


class Model(nn.Module):
    """One of everything."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.cross = nn.MultiheadAttention(16, 4, kdim=6, vdim=10)
        self.pixels = MaskAttention2d(16, core="dense")
        self.linear = nn.Linear(16, 16)


def unet(core="dense", **arguments):
    torch.manual_seed(0)
    return MaskAttnUNet(classes=3, width=8, depth=2, core=core, **arguments).eval()


def names(entries):
    return [entry[0] for entry in entries]


def test_unet_gives_the_same_answer_swapped():
    network = unet()
    image = torch.randn(2, 3, 24, 20)
    state = copy.deepcopy(network.state_dict())
    with torch.no_grad():
        want = network(image)
        report = swap_attention(network)
        got = network(image)
    assert names(report.swapped) == [
        "down_attention.0",
        "down_attention.1",
        "up_attention.0",
        "up_attention.1",
    ]
    assert not report.skipped
    cores = [m.core for m in network.modules() if isinstance(m, MaskAttention2d)]
    assert all(isinstance(core, SparseAttentionCore) for core in cores)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    assert list(network.state_dict()) == list(state)
    assert all(torch.equal(network.state_dict()[name], state[name]) for name in state)


def test_backend_is_handed_down():
    model = Model()
    swap_attention(model, backend="reference")
    assert model.pixels.core.backend == "reference"
    assert model.cross.core.backend == "reference"
    network = unet()
    swap_attention(network, backend="reference")
    with ran_on("reference"):
        network(torch.randn(1, 3, 8, 8))


def test_one_of_everything():
    model = Model()
    report = swap_attention(model)
    assert report.swapped == [
        ("cross", "MultiheadAttention", "SwappedMultiheadAttention"),
        ("encoder.self_attn", "MultiheadAttention", "SwappedMultiheadAttention"),
        ("pixels", "DenseAttentionCore", "SparseAttentionCore"),
    ]
    assert isinstance(model.encoder.self_attn, MaskedMultiheadAttention)
    assert isinstance(model.pixels.core, SparseAttentionCore)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_encoder_with_padding_swapped(mode):
    """key_padding_mask is True where a key is ignored; masks of the op are True where it is not."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train(mode == "train")
    x = torch.randn(2, 6, 16)
    padding = torch.tensor([[False] * 6, [False, True, False, True, True, True]])
    want = encoder(x, src_key_padding_mask=padding)
    report = swap_attention(encoder)
    assert len(report.swapped) == 2
    got = encoder(x, src_key_padding_mask=padding)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_undo_restores_the_very_objects():
    model = Model().eval()
    model.cross.train()
    before = dict(model.named_modules())
    parameters = dict(model.named_parameters())
    swap_attention(model)
    assert model.cross.training
    assert not model.encoder.self_attn.training
    assert all(p is parameters[name] for name, p in model.named_parameters())
    put_back = unswap_attention(model)
    assert sorted(put_back) == ["cross", "encoder.self_attn", "pixels"]
    after = dict(model.named_modules())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert unswap_attention(model) == []


def test_undo_after_training_keeps_what_was_learnt():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(16, 4)})
    original = model["attention"]
    optimizer = torch.optim.SGD(model.parameters(), 1.0)  # made before the swap
    swap_attention(model)
    x = torch.randn(5, 2, 16)
    model["attention"](x, x, x)[0].square().sum().backward()
    before = original.in_proj_weight.detach().clone()
    optimizer.step()
    trained = model["attention"].in_proj_weight
    assert not torch.equal(trained, before)
    model["attention"].in_proj_weight = nn.Parameter(trained * 2)  # even a replaced parameter
    model.eval()
    unswap_attention(model)
    assert model["attention"] is original
    assert torch.equal(original.in_proj_weight, trained * 2)
    assert not original.training


def test_copies_can_be_undone_too():
    model = Model()
    swap_attention(model)
    twin = copy.deepcopy(model)
    unswap_attention(twin)
    assert isinstance(twin.cross, nn.MultiheadAttention)
    assert isinstance(model.cross, MaskedMultiheadAttention)
    assert twin.cross.q_proj_weight is not model.cross.q_proj_weight
    assert torch.equal(twin.cross.q_proj_weight, model.cross.q_proj_weight)


def test_a_module_used_twice_stays_one():
    attention = nn.MultiheadAttention(16, 4)
    model = nn.ModuleDict({"a": attention, "b": attention})
    report = swap_attention(model)
    assert names(report.swapped) == ["a", "b"]
    assert model["a"] is model["b"]
    assert isinstance(model["a"], MaskedMultiheadAttention)
    assert unswap_attention(model) == ["a", "b"]
    assert model["a"] is model["b"] is attention


def test_include_and_exclude():
    network = unet()
    report = swap_attention(network, include=["up_*", "down_attention.0"], exclude="up_attention.1")
    assert names(report.swapped) == ["down_attention.0", "up_attention.0"]
    assert [(name, reason) for name, _, reason in report.skipped] == [
        ("down_attention.1", "not included"),
        ("up_attention.1", "excluded"),
    ]
    assert isinstance(network.up_attention[1].core, DenseAttentionCore)


def test_dry_run_changes_nothing():
    model = Model()
    before = dict(model.named_modules())
    dry = swap_attention(model, dry_run=True)
    after = dict(model.named_modules())
    assert all(after[name] is before[name] for name in before)
    assert str(dry).startswith("would swap 3, skipped 0")
    assert dry.swapped == swap_attention(model).swapped


class OwnAttention(nn.MultiheadAttention):
    pass


def with_hook(register):
    attention = nn.MultiheadAttention(16, 4)
    getattr(attention, register)(lambda *_: None)
    return attention


@pytest.mark.parametrize(
    ("attention", "reason"),
    [
        (OwnAttention(16, 4), "a class of its own"),
        (nn.MultiheadAttention(16, 4, add_bias_kv=True), "add_bias_kv"),
        (nn.MultiheadAttention(16, 4, add_zero_attn=True), "add_zero_attn"),
        (nn.MultiheadAttention(512, 1), "head_dim 512 is over 256"),
        (with_hook("register_forward_hook"), "1 hook"),
        (with_hook("register_forward_pre_hook"), "1 hook"),
        (with_hook("register_full_backward_hook"), "1 hook"),
        (MaskAttention2d(16), "sparse already"),
        (MaskAttention2d(16, core="identity"), "a class of its own"),
    ],
)
def test_skips_with_a_reason(attention, reason):
    model = nn.ModuleDict({"attention": attention})
    core = getattr(attention, "core", None)
    report = swap_attention(model)
    assert not report.swapped
    assert reason in report.skipped[0][2]
    assert model["attention"] is attention
    assert getattr(attention, "core", None) is core


class Adapter(nn.Module):
    """As low-rank adapters wrap a layer, with the attributes that torch's attention reads."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.weight, self.bias = inner.weight, inner.bias

    def forward(self, x):
        return self.inner(x) + 1


def wrap_projection(attention):
    attention.out_proj = Adapter(attention.out_proj)


def replace_forward(attention):
    old = attention.forward
    attention.forward = lambda *args, **kwargs: (2 * old(*args, **kwargs)[0], None)


CHANGES = {
    "wrapped projection": (wrap_projection, "a Adapter in place of its NonDynam"),
    "hook on the projection": (
        lambda a: a.out_proj.register_forward_hook(lambda *_: None),
        "1 hook(s) are registered on its NonDynam",
    ),
    "forward of the projection": (lambda a: replace_forward(a.out_proj), "forward set on its Non"),
    "forward": (replace_forward, "forward set on its MultiheadAttention"),
    "buffer": (lambda a: a.register_buffer("relpos", torch.zeros(3)), "relpos set on its Multi"),
    "parameter": (lambda a: a.register_parameter("gate", nn.Parameter(torch.ones(1))), "gate set"),
    "submodule": (lambda a: a.add_module("rope", nn.Identity()), "rope set on its Multihead"),
    "attribute": (lambda a: setattr(a, "layer", 3), "layer set on its MultiheadAttention"),
    "compiled": (lambda a: a.compile(), "_compiled_call_impl set on its MultiheadAttention"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_attention_is_skipped(name):
    """What was done to a module is not lost, and its state_dict keeps its names."""
    change, reason = CHANGES[name]
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(16, 4)}).eval()
    change(model["attention"])
    attention, state = model["attention"], list(model.state_dict())
    report = swap_attention(model)
    assert not report.swapped and reason in report.skipped[0][2]
    assert model["attention"] is attention and list(model.state_dict()) == state


@pytest.mark.parametrize("core", [DenseAttentionCore, SDPAAttentionCore])
def test_changed_core_is_skipped(core):
    attention = MaskAttention2d(16, core=core())
    attention.core.forward = lambda *args, **kwargs: args[2]
    report = swap_attention(attention)
    assert not report.swapped and f"forward set on its {core.__name__}" in report.skipped[0][2]


def test_swapped_block_is_still_traced_by_fx():
    """The module is a leaf of the graph, as torch's attention is."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x):
            return x + self.attention(x, x, x, need_weights=False)[0]

    block, x = Block(), torch.randn(2, 5, 16)
    right = block(x)
    swap_attention(block)
    traced = torch.fx.symbolic_trace(copy.deepcopy(block))
    assert "attention" in [node.target for node in traced.graph.nodes]
    torch.testing.assert_close(traced(x), right)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), right)


@pytest.mark.parametrize("was_training", [True, False])
def test_dropout_in_training_runs_on_the_original(was_training):
    model = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
    plain = copy.deepcopy(model)
    x = torch.randn(2, 5, 16)
    report = swap_attention(model.train(was_training))
    note = "dropout 0.1: in training mode it runs on the original; set it to 0"
    assert report.notes == [("self_attn", note)]
    assert f"  note     self_attn  {note}" in str(report)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=r"^self_attn: a call with dropout was handed to"):
        got = model.train()(x)
    torch.manual_seed(0)
    torch.testing.assert_close(got, plain.train()(x), atol=0, rtol=0)
    got.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    torch.testing.assert_close(model.eval()(x), plain.eval()(x), atol=1e-5, rtol=1e-4)
    assert report.handed_on == {("self_attn", "dropout"): 1}


def test_parametrized_attention_is_skipped():
    attention = nn.MultiheadAttention(16, 4)
    nn.utils.parametrizations.weight_norm(attention, "in_proj_weight")
    report = swap_attention(nn.ModuleDict({"attention": attention}))
    assert "a class of its own" in report.skipped[0][2]


def test_the_model_itself_cannot_be_exchanged():
    report = swap_attention(nn.MultiheadAttention(16, 4))
    assert "MaskedMultiheadAttention.from_mha" in report.skipped[0][2]
    attention = MaskAttention2d(16, core="dense")
    assert names(swap_attention(attention).swapped) == [""]
    assert isinstance(attention.core, SparseAttentionCore)


def test_report_reads_as_a_table():
    report = swap_attention(Model(), exclude=["cross"])
    assert str(report).splitlines() == [
        "swapped 2, skipped 1",
        "  swapped  encoder.self_attn  MultiheadAttention -> SwappedMultiheadAttention",
        "  swapped  pixels             DenseAttentionCore -> SparseAttentionCore",
        "  skipped  cross              MultiheadAttention: excluded",
    ]
    assert "no attention module of this package" in str(swap_attention(nn.Linear(2, 2)))


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"model": "model"}, TypeError, "model: expected an nn.Module, got str"),
        ({"include": ["decoder.*"]}, ValueError, r"include: .* got 'decoder\.\*'"),
        ({"exclude": ["linear"]}, ValueError, "exclude: .* got 'linear'"),
        ({"include": [1]}, TypeError, "include: .* got int"),
    ],
)
def test_bad_arguments(arguments, kind, words):
    model = Model()
    with pytest.raises(kind, match=words):
        swap_attention(**{"model": model, **arguments})
    assert isinstance(model.pixels.core, DenseAttentionCore)
    with pytest.raises(TypeError, match=r"model: expected .* got int"):
        unswap_attention(1)
