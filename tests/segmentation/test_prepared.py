# SPDX-License-Identifier: BSD-3-Clause
"""Checkpoints segment with prepared copies of their networks: precision, compile, what is kept."""

import gc
import json
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from segmentation_runs import CLASSES, measure_quickly, tiny_checkpoint, write_images
from torch import nn

from maskattn_kernels.models import fast_bfloat16
from maskattn_kernels.segmentation import open_dataset
from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.data.frame import whole_frame
from maskattn_kernels.segmentation.model.network import SegmentationNetwork
from maskattn_kernels.segmentation.model.prepared import (
    images_together,
    inference_dtype,
    prepared,
)
from maskattn_kernels.segmentation.prediction import command as prediction
from maskattn_kernels.segmentation.scoring import command as scoring

CPU = torch.device("cpu")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return tiny_checkpoint(tmp_path / "checkpoint")


def fitted() -> tuple[Checkpoint, list[np.ndarray]]:
    """A network after some steps on generated scenes, and scenes that it has not seen."""
    seen = open_dataset("digit-scenes", split="train", count=8)
    classes = seen.classes
    torch.manual_seed(0)
    network = SegmentationNetwork(len(classes), task="semantic", width=8, depth=2)
    samples = [whole_frame(seen[i], (64, 64), "fit") for i in range(8)]
    pixels = torch.from_numpy(np.stack([s.image.transpose(2, 0, 1) for s in samples]))
    labels = torch.from_numpy(np.stack([s.semantic for s in samples]).astype(np.int64))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(30):
        loss = nn.functional.cross_entropy(network(pixels).semantic, labels, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    unseen = open_dataset("digit-scenes", split="val", count=4)
    return Checkpoint(network.eval(), classes, 64), [
        whole_frame(unseen[i], (64, 64), "fit").image for i in range(4)
    ]


def test_labels_of_generated_scenes_agree_as_stated() -> None:
    checkpoint, images = fitted()
    with torch.inference_mode():
        pixels = torch.from_numpy(np.stack([i.transpose(2, 0, 1) for i in images]))
        expected = checkpoint.network(pixels).semantic.argmax(1).numpy()
    assert len(np.unique(expected)) > 3  # it has learnt to tell some classes apart
    for precision, share in (("float32", 0.9999), ("bfloat16", 0.97)):
        found = checkpoint.segment(images, precision=precision)
        same = np.mean([f.semantic == e for f, e in zip(found, expected, strict=True)])
        assert same >= share, (precision, same)


def test_precisions() -> None:
    assert inference_dtype("float32", CPU) == torch.float32
    assert inference_dtype("bfloat16", CPU) == torch.bfloat16
    assert inference_dtype("auto", CPU) == (torch.bfloat16 if fast_bfloat16(CPU) else torch.float32)
    assert inference_dtype("auto", torch.device("cuda")) == torch.float32  # none was measured


def test_a_wrong_precision_is_named_in_one_line(checkpoint: Checkpoint, capsys) -> None:
    says = r'^precision: expected one of "float32", "bfloat16", "auto", got \'fp8\'$'
    with pytest.raises(ValueError, match=says):
        checkpoint.segment(np.zeros((8, 8, 3), np.uint8), precision="fp8")
    for main in (prediction.main, scoring.main):
        with pytest.raises(SystemExit, match="2"):
            main(["--precision", "fp8"])
        assert "argument --precision: invalid choice: 'fp8'" in capsys.readouterr().err


def test_a_copy_is_kept_until_the_network_changes(checkpoint: Checkpoint) -> None:
    network = checkpoint.network.eval()
    first = prepared(network, torch.float32)
    assert prepared(network, torch.float32) is first
    assert prepared(network, torch.bfloat16) is not first
    assert prepared(network, torch.float32) is first

    def load() -> None:
        network.load_state_dict({k: v + 0 for k, v in network.state_dict().items()})

    def exchange() -> None:
        weight = network.unet.head.weight
        network.unet.head.weight = nn.Parameter(weight.detach().clone())

    def exchange_data() -> None:
        network.unet.head.weight.data = network.unet.head.weight.data.clone()

    changes = [
        load,
        exchange,
        exchange_data,
        lambda: network.to(torch.float64),
        lambda: network.to(torch.float32),
        lambda: network.unet.stem.norm1.running_mean.add_(1.0),
        lambda: setattr(network.unet.down_attention[0].selector, "keep", 0.75),
        lambda: setattr(network.unet.ups[0], "norm", nn.Identity()),
        lambda: network.unet.head.register_forward_hook(lambda *_: None),
    ]
    for change in changes:
        with torch.no_grad():
            change()
        latest = prepared(network, torch.float32)
        assert latest is not first
        assert prepared(network, torch.float32) is latest
        first = latest


def test_segment_follows_the_network(checkpoint: Checkpoint) -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    checkpoint.segment(image)
    with torch.no_grad():
        checkpoint.network.unet.head.bias.copy_(torch.tensor([0.0, 1e4, 0.0]))
    assert (checkpoint.segment(image).semantic == 1).all()


def test_a_kept_copy_does_not_keep_its_network(checkpoint: Checkpoint) -> None:
    network = SegmentationNetwork(2, task="semantic", width=4, depth=1)
    prepared(network, torch.float32)
    gone = weakref.ref(network)
    del network
    gc.collect()
    assert gone() is None


def test_a_cpu_gets_as_many_images_as_suit_it() -> None:
    edge = SegmentationNetwork(2, task="semantic", preset="edge")
    assert images_together(16, edge, (128, 128), torch.float32) == 4
    assert images_together(16, edge, (128, 128), torch.bfloat16) == 8
    assert images_together(3, edge, (128, 128), torch.float32) == 3
    assert images_together(16, edge, (2048, 2048), torch.float32) == 1
    assert images_together(16, edge.to("meta"), (128, 128), torch.float32) == 16


def test_a_batch_of_any_size_gives_the_same(checkpoint: Checkpoint, monkeypatch) -> None:
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(5)]
    expected = [checkpoint.segment(image, attended=True) for image in images]
    monkeypatch.setattr("maskattn_kernels.segmentation.model.prepared._LARGEST_MAP", 2 * 8 * 4096)
    for found, right in zip(checkpoint.segment(images, attended=True), expected, strict=True):
        np.testing.assert_array_equal(found.semantic, right.semantic)
        assert found.attended.keys() == right.attended.keys()
        for name, attended in right.attended.items():
            np.testing.assert_array_equal(found.attended[name].mask, attended.mask)


def test_commands_take_a_precision_and_tell_it(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch, capsys
) -> None:

    measure_quickly(monkeypatch)
    images = write_images(tmp_path / "images", 2)
    out = tmp_path / "out"
    arguments = [str(images), "--checkpoint", str(tmp_path / "checkpoint"), "--out", str(out)]
    assert prediction.main([*arguments, "--panels", "0", "--precision", "bfloat16"]) == 0
    assert " in bfloat16 by torch " in capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["precision"], summary["compiled"]) == ("bfloat16", False)
    assert CLASSES.names == checkpoint.classes.names
