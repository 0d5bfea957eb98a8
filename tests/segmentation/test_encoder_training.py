# SPDX-License-Identifier: BSD-3-Clause
"""Training around an encoder: where it starts from, at which rates it learns, what is frozen."""

import json
from pathlib import Path

import pytest
import torch
from encoder_networks import LITE0, checkpoint, network, weights_of, without
from segmentation_runs import CLASSES, tiny_arguments
from torch import nn

from maskattn_kernels.models import EfficientNetLite0
from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.encoder_weights import EncoderWeightsError
from maskattn_kernels.segmentation.training import command as training
from maskattn_kernels.segmentation.training.module import SegmentationModule
from maskattn_kernels.segmentation.training.optimizer import OptimizerOptions, make_optimizer


def arguments(out: Path, *more: str, steps: int = 2) -> list[str]:
    """Of a run around EfficientNet-Lite0; the tiny config's depth is for the own encoder."""
    options = tiny_arguments(out, steps=steps)
    config = out.parent / "tiny.yaml"
    config.write_text(config.read_text().replace("depth: 2", f"encoder: {LITE0}"))
    return [*options, "--val_every", "2", *more]


def test_a_run_starts_from_trained_weights_and_resumes_without_them(tmp_path, monkeypatch, capsys):
    file = weights_of(tmp_path / "trained.safetensors")
    out = tmp_path / "run"
    given = ("--network.encoder_weights", str(file), "--freeze_encoder", "true")
    training.main(arguments(out, *given))
    assert f"encoder: {LITE0} with the weights of {file}" in capsys.readouterr().err
    tuned = Checkpoint.from_pretrained(out / "final").network.unet.encoder.state_dict()
    torch.manual_seed(7)
    for name, tensor in EfficientNetLite0().state_dict().items():
        assert torch.equal(tuned[name], tensor), name  # frozen, statistics as well
    file.unlink()
    state = torch.load(out / "last.ckpt", weights_only=True)
    assert json.loads(state["run"]["network.encoder_weights"]) == str(file)
    again = tmp_path / "again"
    training.main([*arguments(again, *given), "--ckpt_path", str(out / "last.ckpt")])
    with pytest.raises(EncoderWeightsError, match="which is not there"):
        training.main(arguments(tmp_path / "new", *given))


def test_frozen_norms_keep_their_statistics_and_learn_their_scale(tmp_path):
    file = weights_of(tmp_path / "trained.safetensors")
    given = ("--network.encoder_weights", str(file), "--freeze_encoder_norms", "true")
    given = (*given, "--optimizer.ema", "0")
    training.main(arguments(tmp_path / "run", *given, steps=3))
    tuned = Checkpoint.from_pretrained(tmp_path / "run" / "final").network.unet
    torch.manual_seed(7)
    before = EfficientNetLite0()
    for new, old in zip(tuned.encoder.modules(), before.modules(), strict=True):
        if isinstance(new, nn.BatchNorm2d):
            assert torch.equal(new.running_mean, old.running_mean)
            assert torch.equal(new.running_var, old.running_var)
    assert not torch.equal(tuned.encoder.bn1.weight, before.bn1.weight)
    assert tuned.ups[0].block.norm1.num_batches_tracked > 0


def module(**options) -> SegmentationModule:
    return SegmentationModule(network(), None, CLASSES, steps=4, **options)


def test_frozen_norms_survive_train_and_eval():
    made = module(freeze_encoder_norms=True)
    for mode in (True, False, True):
        made.train(mode)
        norms = [m for m in made.network.modules() if isinstance(m, nn.BatchNorm2d)]
        frozen = set(made.network.unet.encoder.modules())
        assert all(norm.training == (mode and norm not in frozen) for norm in norms)
    assert module().network.unet.encoder.bn1.training


@pytest.mark.parametrize("name", ["muon", "adamw"])
@pytest.mark.parametrize("pretrained", [True, False])
def test_rates_of_an_encoder(name, pretrained):
    net = network()
    options = OptimizerOptions(name=name, lr=1e-3, encoder_rate=0.25, warmup=0.0)
    trained = net.encoder_parts() if pretrained else []
    optimizer, _ = make_optimizer(net, options, 4, trained)
    named = {id(p): name for name, p in net.named_parameters()}
    assert sorted(named) == sorted(id(p) for g in optimizer.param_groups for p in g["params"])
    for group in optimizer.param_groups:
        names = [named[id(p)] for p in group["params"]]
        inside = [name.startswith("unet.encoder.") for name in names]
        if pretrained and any(inside):
            assert all(inside) and group["lr"] == 0.25e-3 and not group["orthogonal"]
        depthwise = [n for n, p in zip(names, group["params"], strict=True) if p.shape[1:2] == (1,)]
        assert not depthwise or group["orthogonal"] == (name == "muon" and not pretrained)
    with_decay = [g["weight_decay"] > 0 for g in optimizer.param_groups if g["lr"] == 0.25e-3]
    assert with_decay == ([True, False] if pretrained else [])


def test_a_run_from_a_checkpoint_takes_its_encoder(tmp_path, monkeypatch, capsys):
    """The weights of the encoder are those of the checkpoint, so no package is asked for."""
    checkpoint(tmp_path / "trained", selector="gumbel")
    without(monkeypatch)
    options = tiny_arguments(tmp_path / "run", "--init_from", str(tmp_path / "trained"), steps=1)
    config = tmp_path / "tiny.yaml"
    config.write_text(config.read_text().replace("width: 4, depth: 2, ", ""))
    training.main(options)
    assert "weights of" in capsys.readouterr().err
    assert Checkpoint.from_pretrained(tmp_path / "run" / "final").network.config["encoder"] == LITE0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            ("--network.encoder", "unet", "--network.encoder_weights", "a.pth"),
            "with the network's own encoder",
        ),
        (("--network.encoder", "unet", "--network.finest", "2"), "finest: expected None"),
        (("--network.depth", "2"), "depth: expected None with another encoder, got 2"),
        (("--network.encoder_weights", "a.pth"), "'a.pth', which is not there"),
    ],
)
def test_options_that_do_not_fit_are_one_line(more, words, tmp_path):
    with pytest.raises(ValueError, match=words) as caught:
        training.main(arguments(tmp_path / "run", *more))
    assert "\n" not in str(caught.value)
