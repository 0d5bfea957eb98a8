# SPDX-License-Identifier: BSD-3-Clause
"""The networks of other libraries in bench/real/front compute what the libraries compute."""

from typing import Any

import pytest
import torch

from bench.real.front.peers import ARCH, PEERS, TIMM_ENCODER, register
from maskattn_kernels.models import EfficientNetLite0
from maskattn_kernels.segmentation import Checkpoint, export, train
from maskattn_kernels.segmentation.model.architectures import ARCHITECTURES
from maskattn_kernels.segmentation.model.network import SegmentationNetwork

smp = pytest.importorskip("segmentation_models_pytorch", reason="needs the package smp")
hf = pytest.importorskip("transformers", reason="needs the package transformers")


@pytest.fixture(autouse=True)
def peers(monkeypatch) -> None:
    """The networks of other libraries, for these tests alone."""
    monkeypatch.setitem(ARCHITECTURES, ARCH, None)  # what is there now comes back afterwards
    register()


IMAGE = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def logits(peer: Any) -> torch.Tensor:
    return peer.head(peer.last_map(IMAGE))


@pytest.mark.parametrize(
    ("name", "kind", "options"), [("smp-unet", "Unet", {}), ("smp-fpn", "FPN", {"upsampling": 1})]
)
@torch.no_grad()
def test_networks_of_smp(name, kind, options):
    torch.manual_seed(0)
    theirs = getattr(smp, kind)(TIMM_ENCODER, encoder_weights=None, classes=5, **options).eval()
    ours: Any = PEERS[name](5, EfficientNetLite0()).eval()
    ours.encoder.load_state_dict(theirs.encoder.model.state_dict())
    ours.decoder.load_state_dict(theirs.decoder.state_dict())
    ours.head.load_state_dict(theirs.segmentation_head[0].state_dict())
    expected = theirs(IMAGE)
    torch.testing.assert_close(logits(ours), expected, rtol=1e-4, atol=1e-4)
    assert expected.shape[-1] * ours.finest == IMAGE.shape[-1]


@torch.no_grad()
def test_segformer():
    torch.manual_seed(0)
    theirs = hf.SegformerForSemanticSegmentation(hf.SegformerConfig(num_labels=5)).eval()
    ours: Any = PEERS["segformer-b0"](5, None).eval()
    ours.segformer.load_state_dict(theirs.segformer.state_dict())
    weights = theirs.decode_head.state_dict()
    head = {name: weights.pop(f"classifier.{name}") for name in ("weight", "bias")}
    ours.decoder.load_state_dict(weights)
    ours.head.load_state_dict(head)
    torch.testing.assert_close(logits(ours), theirs(IMAGE).logits)
    assert 3.7e6 < sum(p.numel() for p in ours.parameters()) < 3.8e6


@pytest.mark.parametrize("name", PEERS)
def test_they_are_trained_saved_and_exported(name, tmp_path):
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the extra onnx is not installed")
    trained = train(
        data={"name": "digit-scenes", "size": 64, "batch_size": 2, "options": {"count": 2}},
        network={
            "arch": "peer",
            "preset": name,
            "selector": "none",
            "task": "semantic",
            "encoder_weights": "none",
        },
        trainer={"accelerator": "cpu"},
        steps=1,
        out=str(tmp_path / "run"),
    )
    again = Checkpoint.from_pretrained(tmp_path / "run" / "best").network
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        expected = trained.network(image).semantic
        torch.testing.assert_close(again(image).semantic, expected)
    checks = export(trained, tmp_path / "out", 64)["checks"]
    assert checks and all(check["labels_equal"] > 0.999 for check in checks)


def test_a_library_that_is_missing_is_one_line(monkeypatch, tmp_path):
    from bench import libraries

    monkeypatch.setattr(libraries, "FOLDER", tmp_path / "nothing")
    monkeypatch.setattr(libraries.importlib.util, "find_spec", lambda name: None)
    line = r"^segmentation_models_pytorch is not installed; `make integrations` installs it$"
    with pytest.raises(ValueError, match=line):
        SegmentationNetwork(3, task="semantic", arch="peer")
