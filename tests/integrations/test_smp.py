# SPDX-License-Identifier: BSD-3-Clause
"""Mask attention in models of segmentation_models_pytorch, and a stand-in where it is missing."""

import sys
from typing import Any

import pytest
import torch
from torch import nn

from maskattn_kernels.integrations.smp import add_mask_attention, from_pretrained, mask_attn_unet
from maskattn_kernels.nn import MaskAttention2d


class Attention(nn.Module):
    """As smp's, whose class holds the attention that was asked for, or none."""

    def __init__(self, attention=None):
        super().__init__()
        self.attention = nn.Identity() if attention is None else attention

    def forward(self, x):
        return self.attention(x)


class Block(nn.Module):
    """As a decoder block of smp."""

    def __init__(self, channels, attention=None):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())
        self.attention1 = Attention()
        self.conv2 = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())
        self.attention2 = Attention(attention)

    def forward(self, x):
        return self.attention2(self.conv2(self.conv1(self.attention1(x))))


class StandIn(nn.Module):
    """As smp's U-Net, but that it keeps one size."""

    def __init__(self, attention=None):
        super().__init__()
        self.config: dict[str, Any] = {"classes": 8}
        self.decoder = nn.Module()
        self.decoder.blocks = nn.ModuleList(Block(8, attention) for _ in range(3))

    def forward(self, x):
        for block in self.decoder.blocks:
            x = block(x)
        return x


def attentions(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, MaskAttention2d)}


def test_every_block_gets_attention_of_its_channels_that_learns():
    model = StandIn().double().eval()
    names = [f"decoder.blocks.{n}" for n in range(3)]
    assert add_mask_attention(model, keep=0.5) == names
    added = attentions(model)
    assert list(added) == [f"{name}.attention2" for name in names]
    assert not any(attention.training for attention in added.values())
    model.train()(torch.randn(2, 8, 6, 6, dtype=torch.float64)).square().mean().backward()
    for attention in added.values():
        heads = (attention.mask_head, attention.query_head)
        assert all(p.grad.abs().sum() > 0 for head in heads for p in head.parameters())


def test_chosen_blocks_selectors_and_other_attention():
    gate = nn.Sigmoid()
    model = StandIn(gate).eval()
    options = {"selector": "random", "keep": 0.1, "num_heads": 2, "sparsity": "k", "seed": 5}
    assert add_mask_attention(model, blocks=["decoder.blocks.1"], **options)
    (attention,) = attentions(model).values()
    assert repr(attention.selector) == "RandomSelector(keep=0.1, seed=5)"
    assert (attention.num_heads, attention.sparsity) == (2, "k")
    assert model.config["_mask_attention"] == {"blocks": ["decoder.blocks.1"], **options}
    assert model.decoder.blocks[1].attention2[0].attention is gate, "it stays, and runs before"
    assert isinstance(model.decoder.blocks[0].attention2, Attention)


def test_weights_go_through_a_state_dict():
    first, second = StandIn(), StandIn()
    for model in (first, second):
        add_mask_attention(model, blocks=["decoder.blocks.0"], keep=0.5)
    second.load_state_dict(first.state_dict())
    x = torch.randn(1, 8, 6, 6)
    assert torch.equal(first.eval()(x), second.eval()(x))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"blocks": ["decoder.blocks.7"]}, r"^blocks: expected names among \"decoder.*, got 'deco"),
        ({"blocks": []}, "^blocks: .*, got none"),
        ({"selector": "entropy"}, "^selector: expected one of .*, got 'entropy'"),
        ({"keep": 2.0}, "^keep: "),
        ({"num_heads": 3}, "^num_heads: |^channels: "),
        ({"sparsity": "x"}, "^sparsity: "),
    ],
)
def test_bad_arguments_change_nothing(arguments, line):
    model = StandIn()
    with pytest.raises(ValueError, match=line):
        add_mask_attention(model, **arguments)
    assert not attentions(model) and "_mask_attention" not in model.config


def test_models_without_a_place_or_with_mask_attention_are_refused():
    with pytest.raises(ValueError, match=r"^model: expected decoder blocks with attention2, .*Lin"):
        add_mask_attention(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"^model: expected an nn\.Module, got str"):
        add_mask_attention("model")
    model = StandIn()
    add_mask_attention(model)
    with pytest.raises(ValueError, match=r"^model: expected one without mask attention"):
        add_mask_attention(model)


@pytest.fixture
def smp():
    name = "segmentation_models_pytorch"
    return pytest.importorskip(name, reason="needs the package segmentation-models-pytorch")


@pytest.mark.parametrize("kind", ["Unet", "UnetPlusPlus"])
@pytest.mark.parametrize("attention", [None, "scse"])
def test_real_models_go_through_a_folder(smp, kind, attention, tmp_path):
    torch.manual_seed(0)
    model = getattr(smp, kind)(
        "resnet18",
        encoder_weights=None,
        encoder_depth=3,
        decoder_channels=(32, 16, 16),
        decoder_attention_type=attention,
        classes=4,
    )
    assert len(add_mask_attention(model, selector="gumbel-topk", keep=0.5)) >= 3
    model.train()(torch.randn(2, 3, 32, 32)).square().mean().backward()
    assert all(a.qkv.weight.grad is not None for a in attentions(model).values())
    model.eval().save_pretrained(tmp_path / "model")
    again = from_pretrained(tmp_path / "model")
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    assert again.config["_mask_attention"] == model.config["_mask_attention"]
    again.save_pretrained(tmp_path / "again")
    assert from_pretrained(tmp_path / "again").state_dict().keys() == model.state_dict().keys()
    with pytest.raises(RuntimeError, match=r"Unexpected key"):
        smp.from_pretrained(tmp_path / "model")


def test_folders_of_other_models_are_refused(smp, tmp_path):
    smp.Unet("resnet18", encoder_weights=None, classes=4).save_pretrained(tmp_path)
    line = r"expected what save_pretrained of an smp model with mask attention wrote \(KeyError"
    with pytest.raises(ValueError, match=line):
        from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"_mask_attention": {}, "_model_class": "os"}')
    with pytest.raises(ValueError, match=r"\(KeyError: 'os'\)"):
        from_pretrained(tmp_path)


def test_smp_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'maskattn_kernels\[smp\]'$"):
        from_pretrained(tmp_path)


def test_network_by_the_names_of_smp():
    network = mask_attn_unet("unet", None, in_channels=1, classes=4, width=4, depth=2)
    assert network.eval()(torch.randn(1, 1, 16, 16)).shape == (1, 4, 16, 16)
    pretrained = mask_attn_unet(in_channels=3, classes=4, width=8)
    again = mask_attn_unet(in_channels=3, classes=4, width=8)
    random = mask_attn_unet(encoder_weights=None, classes=4, width=8)
    stems = [n.encoder.state_dict()["conv_stem.weight"] for n in (pretrained, again, random)]
    assert torch.equal(stems[0], stems[1]) and not torch.equal(stems[0], stems[2])


@pytest.mark.parametrize(
    ("arguments", "kind", "line"),
    [
        ({"encoder_name": "resnet34"}, ValueError, r"^encoder_name: expected one of .*'resnet34'"),
        ({"encoder_weights": "no.pth"}, ValueError, r"^encoder_weights: .* got 'no\.pth'"),
        ({"encoder_name": "light"}, ValueError, "^encoder_weights: there are no trained weights"),
        (
            {"encoder_name": "unet"},
            ValueError,
            '^encoder_weights: expected None with .*"unet", got',
        ),
        ({"in_channels": 1}, ValueError, "^in_channels: expected 3 with encoder_name='efficient"),
        ({"encoder_weights": None, "classes": 0}, ValueError, "^classes: "),
        ({"encoder_weights": None, "activation": "sigmoid"}, TypeError, "'activation'"),
    ],
)
def test_bad_names(arguments, kind, line):
    with pytest.raises(kind, match=line):
        mask_attn_unet(**arguments)


def test_backbones_of_timm_by_smps_prefix():
    pytest.importorskip("timm", reason="needs the packages timm and torchvision")
    network = mask_attn_unet("tu-resnet18", None, classes=4, width=8)
    assert network.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 4, 64, 64)
