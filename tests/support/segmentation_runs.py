# SPDX-License-Identifier: BSD-3-Clause
"""Tiny training runs, checkpoints and images for tests."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.data.sample import Classes
from maskattn_kernels.segmentation.model import cost
from maskattn_kernels.segmentation.model.network import SegmentationNetwork

TINY = """
data: {name: digit-scenes, size: 32, batch_size: 4, options: {count: 10}, val_options: {count: 4}}
network: {width: 4, depth: 2, selector: gumbel}
val_every: 3
save_every: 0
log_every: 1
"""


#: An FRMNet of the smallest size: 32 x 32 images have 16 places of its grid.
FRM = """--network.arch frm --network.preset tiny --network.dim 24 --network.num_heads 3
--network.width 12 --network.depth 1 --network.grid 8 --loss.pixel_weight 0.1""".split()


def tiny_arguments(out: Path, *more: str, steps: int = 4) -> list[str]:
    """Arguments of ``maskattn train`` for a run of a second."""
    config = out.parent / "tiny.yaml"
    config.write_text(TINY)
    return ["--config", str(config), "--out", str(out), "--steps", str(steps), *more]


CLASSES = Classes(
    names=("sky", "road", "car"),
    is_thing=(False, False, True),
    colors=((90, 160, 255), (128, 64, 128), (0, 0, 142)),
    ids=(1, 2, 7),
)


def tiny_checkpoint(folder: Path, **network) -> Checkpoint:
    """An untrained network for 32 x 32 images, saved in a folder."""
    torch.manual_seed(0)
    made = SegmentationNetwork(len(CLASSES), CLASSES.things, width=4, depth=2, **network)
    checkpoint = Checkpoint(made, CLASSES, size=32, metrics={"PQ": 12.5})
    checkpoint.save_pretrained(folder)
    return checkpoint


def write_images(folder: Path, count: int, height: int = 24, width: int = 40) -> Path:
    """A folder of images of noise."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(count):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return folder


def measure_quickly(monkeypatch) -> None:
    """Costs are measured by as few runs as possible."""
    monkeypatch.setattr(cost, "measure_cost", partial(cost.measure_cost, seconds=0))
