# SPDX-License-Identifier: BSD-3-Clause
"""Networks, checkpoints and weight files around encoders, for tests."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from segmentation_runs import CLASSES
from torch import nn

from maskattn_kernels.models import EfficientNetLite0
from maskattn_kernels.segmentation import encoder_weights
from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.model.network import SegmentationNetwork

LITE0 = "efficientnet_lite0"


def network(encoder: str | None = LITE0, **options) -> SegmentationNetwork:
    torch.manual_seed(0)
    arguments = {"width": 8, "task": "panoptic", **options}
    return SegmentationNetwork(len(CLASSES), CLASSES.things, encoder=encoder, **arguments)


def checkpoint(folder: Path, encoder: str = LITE0, **options) -> Checkpoint:
    made = Checkpoint(network(encoder, **options).eval(), CLASSES, size=32)
    made.save_pretrained(folder)
    return made


def weights_of(file: Path, encoder: nn.Module | None = None, **changed: torch.Tensor) -> Path:
    """A file with weights that are not those of a new encoder."""
    torch.manual_seed(7)
    tensors = {**(encoder or EfficientNetLite0()).state_dict(), **changed}
    tensors = {name: t for name, t in tensors.items() if t is not None}
    if file.suffix == ".safetensors":
        save_file(tensors, file)
    else:
        torch.save(tensors, file)
    return file


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(encoder_weights, "find_spec", lambda name: None)
