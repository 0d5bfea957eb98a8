# SPDX-License-Identifier: BSD-3-Clause
"""Labelled images drawn in code: discs (things) on a ground of two halves (stuff)."""

import torch
from torch import Tensor

from maskattn_kernels.segmentation.data.sample import VOID
from maskattn_kernels.segmentation.model.network import Outputs
from maskattn_kernels.segmentation.model.targets import instance_targets

CLASSES, THINGS = 4, (2, 3)


def scenes(count: int, size: int = 48, discs: int = 4) -> dict[str, Tensor]:
    """A batch: "image" uint8 (B,3,S,S), "semantic" int64 with a void frame, "instance" int64."""
    g = torch.Generator().manual_seed(0)
    semantic = torch.zeros(count, size, size, dtype=torch.int64)
    semantic[:, :, size // 2 :] = 1
    instance = torch.zeros_like(semantic)
    ys, xs = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    for image in range(count):
        for number in range(1, discs + 1):
            y, x = torch.randint(8, size - 8, (2,), generator=g)
            disc = (ys - y) ** 2 + (xs - x) ** 2 <= 25
            semantic[image][disc] = 2 + number % 2
            instance[image][disc] = 100 * number
    colors = torch.tensor([[40, 90, 40], [90, 90, 160], [220, 60, 60], [230, 220, 80]])
    noise = torch.randint(-20, 21, (count, size, size, 3), generator=g)
    image = (colors[semantic] + noise).permute(0, 3, 1, 2).clamp(0, 255).byte()
    semantic[:, 0] = VOID
    return {"image": image, "semantic": semantic, "instance": instance}


def perfect_outputs(batch: dict[str, Tensor]) -> Outputs:
    """What a network without fault says; anything where the truth is void."""
    semantic = batch["semantic"]
    known = torch.where(semantic == VOID, 0, semantic)
    logits = torch.nn.functional.one_hot(known, CLASSES).permute(0, 3, 1, 2) * 20.0
    targets = instance_targets(semantic, batch["instance"], THINGS)
    return Outputs(logits, targets.center, targets.offset, None, {})
