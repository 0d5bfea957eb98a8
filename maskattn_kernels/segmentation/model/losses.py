# SPDX-License-Identifier: BSD-3-Clause
"""The weighted sum of all losses of segmentation, and those of objects: of centres, distances, ..

As those of the class of each pixel (`pixel_losses`), every loss is a mean over the pixels of an
image that count, then a mean over images.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from maskattn_kernels.common.text import quoted
from maskattn_kernels.nn import keep_ratio_loss
from maskattn_kernels.segmentation.model.distances import distance_targets
from maskattn_kernels.segmentation.model.network import TASKS, Outputs
from maskattn_kernels.segmentation.model.pixel_contrast import (
    PixelContrastiveLoss,
    PixelEmbedding,
)
from maskattn_kernels.segmentation.model.pixel_losses import (
    CoarseLoss,
    DiceLoss,
    LovaszLoss,
    SemanticLoss,
    mean_over_images,
)
from maskattn_kernels.segmentation.model.sampling import areas, even_draws
from maskattn_kernels.segmentation.model.targets import instance_targets

__all__ = [
    "CenterLoss",
    "DistanceLoss",
    "InstanceContrastiveLoss",
    "OffsetLoss",
    "SegmentationLoss",
]


class CenterLoss(nn.Module):
    """Squared error of centre heatmaps, ``center`` and ``target`` (B,1,H,W), where ``counts``.

    Example:
        >>> import torch
        >>> from maskattn_kernels.segmentation.model.losses import CenterLoss
        >>> ones = torch.ones(1, 1, 2, 2)
        >>> CenterLoss()(ones, 3 * ones, ones.bool())
        tensor(4.)
    """

    def forward(self, center: Tensor, target: Tensor, counts: Tensor) -> Tensor:
        return mean_over_images((center.float() - target).square(), counts)


class OffsetLoss(nn.Module):
    """Absolute error in pixels, |dy| + |dx|, of ``offset`` and ``target`` (B,2,H,W).

    Only where ``counts``, bool (B,1,H,W), is True.

    Example:
        >>> import torch
        >>> from maskattn_kernels.segmentation.model.losses import OffsetLoss
        >>> ones = torch.ones(1, 2, 2, 2)
        >>> OffsetLoss()(ones, 3 * ones, torch.ones(1, 1, 2, 2, dtype=torch.bool))
        tensor(4.)
    """

    def forward(self, offset: Tensor, target: Tensor, counts: Tensor) -> Tensor:
        return mean_over_images((offset.float() - target).abs().sum(1, keepdim=True), counts)


class DistanceLoss(nn.Module):
    """Absolute error of ``distance`` and ``target`` (B,1,H,W), where ``counts``.

    The mean over the pixels of objects, plus that over all others: the few objects of a nearly
    empty image weigh as much as its ground.

    Example:
        >>> import torch
        >>> from maskattn_kernels.segmentation.model.losses import DistanceLoss
        >>> target = torch.tensor([[[[1.0, 0.5, 0.0, 0.0, 0.0]]]])
        >>> distance = torch.tensor([[[[0.5, 0.5, 0.5, 0.5, 0.5]]]])
        >>> DistanceLoss()(distance, target, torch.ones(1, 1, 1, 5, dtype=torch.bool))
        tensor(0.7500)
    """

    def forward(self, distance: Tensor, target: Tensor, counts: Tensor) -> Tensor:
        error, inside = (distance.float() - target).abs(), target > 0
        within = mean_over_images(error, counts & inside)
        return within + mean_over_images(error, counts & ~inside)


class InstanceContrastiveLoss(nn.Module):
    """L_IC of MaskAttn-UNet: a triplet margin loss on the embeddings of pixels within an image.

        mean of relu(|a - p| - |a - n| + margin)    a, p in one object, n in another

    over all such triplets among the sampled pixels of an image. Small objects are sampled as
    often as large ones; where there are more than a quarter as many objects as samples, so many
    of them are sampled, so that most have pixels to compare. The sample is a fixed function of
    ``numbers``: no generator and no reading of device values on the host. Distances are Euclidean.

    Args:
        margin: by how much pixels of other objects should be farther away.
        samples: pixels of an image.

    Shapes:
        embedding (B,E,H,W); numbers int64 (B,H,W), objects from 1, 0 = none (see `Targets`).

    Example:
        >>> import torch
        >>> from maskattn_kernels.segmentation.model.losses import InstanceContrastiveLoss
        >>> numbers = torch.tensor([[[1, 1, 2, 2]]])
        >>> InstanceContrastiveLoss(margin=1.0)(torch.zeros(1, 8, 1, 4), numbers)
        tensor(1.)
        >>> InstanceContrastiveLoss(margin=1.0)(numbers.float().unsqueeze(1) * 5, numbers)
        tensor(0.)
    """

    def __init__(self, margin: float = 1.0, samples: int = 48) -> None:
        super().__init__()
        self.margin = margin
        self.samples = samples

    def forward(self, embedding: Tensor, numbers: Tensor) -> Tensor:
        numbers = numbers.flatten(1)
        places = self._sample(numbers)
        sampled = numbers.gather(1, places)
        flat = embedding.float().flatten(2)
        points = flat.gather(2, places.unsqueeze(1).expand(-1, flat.shape[1], -1))
        difference = points.unsqueeze(3) - points.unsqueeze(2)
        # The square root of 0 has no finite gradient.
        distance = difference.square().sum(1).clamp_min(1e-12).sqrt()
        valid = sampled > 0
        both = valid.unsqueeze(2) & valid.unsqueeze(1)
        same = sampled.unsqueeze(2) == sampled.unsqueeze(1)
        itself = torch.eye(sampled.shape[1], dtype=torch.bool, device=sampled.device)
        positive, negative = both & same & ~itself, both & ~same
        triplets = (distance.unsqueeze(3) - distance.unsqueeze(2) + self.margin).relu()
        return mean_over_images(triplets, positive.unsqueeze(3) & negative.unsqueeze(2))

    def _sample(self, numbers: Tensor) -> Tensor:
        """Places (B,P) of the P pixels with the smallest keys: -log(u) * area of the object.

        That is a weighted sample without replacement, weights 1 / area (Efraimidis and Spirakis,
        2006). The draws u come from a fixed low-discrepancy sequence over the pixels, and the
        objects that are sampled from another one over the numbers of the objects.
        """
        pixels = numbers.shape[1]
        draws, area = even_draws(pixels, numbers.device), areas(numbers, pixels)
        turns = torch.where(area[:, 1:] > 0, draws, 2.0)
        objects = min(max(self.samples // 4, 1), pixels)
        last = turns.topk(objects, dim=1, largest=False).values[:, -1:]
        left_out = (numbers == 0) | (turns.gather(1, numbers.sub(1).clamp_min(0)) > last)
        keys = -draws.log() * area.gather(1, numbers)
        keys = keys.masked_fill(left_out, float("inf"))
        return keys.topk(min(self.samples, pixels), dim=1, largest=False).indices


class SegmentationLoss(nn.Module):
    """The weighted sum of the losses that a task needs.

    Args:
        things: classes whose objects are counted.
        task: "semantic", "instance" or "panoptic".
        keep: fraction of pixels that learned selectors should keep; None = no such loss.
        class_weights: factor of a pixel's cross-entropy, by its class; None = 1.
        hard: cross-entropy of hard pixels only, those whose class has a lower probability than
            this, and the hardest sixteenth of an image; 0 = of all.
        dice_weight, lovasz_weight: factors of `DiceLoss` and `LovaszLoss`; 0 = without.
        coarse_weight: factor of `CoarseLoss` for the logits of the decoder's coarser maps (deep
            supervision); 0 = without.
        pixel_weight: factor of `PixelContrastiveLoss`, which has layers of its own, learned with
            the network but no part of it; 0 = without.
        pixel_channels: of ``outputs.finest``; needed with a ``pixel_weight``.
        semantic_weight, center_weight, offset_weight, distance_weight, contrastive_weight,
            keep_weight: factors.
        sigma: of the centres' Gaussians, in pixels.

    Shapes:
        ``outputs`` of a `SegmentationNetwork`; ``batch`` a dict with "semantic" integer (B,H,W)
        and, unless the task is "semantic", "instance" integer (B,H,W). Returns a dict of scalars:
        "loss", the total, and its parts without their weights ("semantic", "dice", "lovasz",
        "coarse", "pixel", "center", "offset", "distance", "contrastive", "keep"); "pixel" in
        training only.

    Raises:
        ValueError: ``task``, ``hard`` or ``pixel_channels`` is wrong.

    Example:
        >>> import torch
        >>> from maskattn_kernels.segmentation.model.losses import SegmentationLoss
        >>> from maskattn_kernels.segmentation.model.network import SegmentationNetwork
        >>> network = SegmentationNetwork(3, things=[2], width=8, depth=1)
        >>> semantic = torch.full((1, 16, 16), 255)
        >>> outputs = network(torch.rand(1, 3, 16, 16))
        >>> batch = {"semantic": semantic, "instance": torch.zeros_like(semantic)}
        >>> losses = SegmentationLoss(things=[2])(outputs, batch)
        >>> losses["loss"].item()
        0.0
    """

    def __init__(
        self,
        things: Sequence[int] = (),
        task: str = "panoptic",
        *,
        keep: float | None = None,
        class_weights: Sequence[float] | None = None,
        hard: float = 0.0,
        dice_weight: float = 0.5,
        lovasz_weight: float = 0.0,
        coarse_weight: float = 0.0,
        pixel_weight: float = 0.0,
        pixel_channels: int | None = None,
        semantic_weight: float = 1.0,
        center_weight: float = 10.0,
        offset_weight: float = 0.02,
        distance_weight: float = 1.5,
        contrastive_weight: float = 0.05,
        keep_weight: float = 10.0,
        sigma: float = 3.0,
    ) -> None:
        super().__init__()
        if task not in TASKS:
            raise ValueError(f"task: expected one of {quoted(TASKS)}, got {task!r}")
        if not 0 <= hard < 1:
            raise ValueError(f"hard: expected a number from 0 below 1, got {hard!r}")
        if pixel_weight and pixel_channels is None:
            raise ValueError("pixel_channels: expected an int with a pixel_weight, got None")
        self.things = tuple(things)
        self.task = task
        self.keep = keep
        self.sigma = sigma
        self.weights = {
            "semantic": semantic_weight,
            "dice": dice_weight,
            "lovasz": lovasz_weight,
            "coarse": coarse_weight,
            "pixel": pixel_weight,
            "center": center_weight,
            "offset": offset_weight,
            "distance": distance_weight,
            "contrastive": contrastive_weight,
            "keep": keep_weight,
        }
        self.semantic = SemanticLoss(class_weights, hard)
        self.dice = DiceLoss()
        self.lovasz = LovaszLoss()
        self.coarse = CoarseLoss(class_weights)
        self.pixel = PixelContrastiveLoss()
        self.embedded: nn.Module | None = None
        if pixel_weight and pixel_channels is not None:
            self.embedded = PixelEmbedding(pixel_channels)
        self.center = CenterLoss()
        self.offset = OffsetLoss()
        self.distance = DistanceLoss()
        self.contrastive = InstanceContrastiveLoss()

    def forward(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        semantic = batch["semantic"].long()
        losses = {"semantic": self.semantic(outputs.semantic, semantic)}
        if self.weights["dice"]:
            losses["dice"] = self.dice(outputs.semantic, semantic)
        if self.weights["lovasz"]:
            losses["lovasz"] = self.lovasz(outputs.semantic, semantic)
        if self.weights["coarse"]:
            losses["coarse"] = self.coarse(outputs.coarse, semantic)
        if self.embedded is not None and outputs.finest is not None:
            embedding = self.embedded(outputs.finest)
            losses["pixel"] = self.pixel(embedding, outputs.semantic, semantic)
        if outputs.have_objects:
            losses |= self._of_objects(outputs, semantic, batch["instance"])
        learned = [s for s in outputs.selections.values() if s.score is not None]
        if self.keep is not None and learned:
            losses["keep"] = keep_ratio_loss(learned, self.keep)
        total = sum(self.weights[name] * loss for name, loss in losses.items())
        return {"loss": total, **losses}

    def _of_objects(
        self, outputs: Outputs, semantic: Tensor, instance: Tensor
    ) -> dict[str, Tensor]:
        losses = {}
        if outputs.distance is not None:
            depth = distance_targets(semantic, instance, self.things)
            losses["distance"] = self.distance(outputs.distance, depth.distance, depth.counts)
            numbers = depth.numbers
        else:
            targets = instance_targets(semantic, instance, self.things, sigma=self.sigma)
            losses["center"] = self.center(outputs.center, targets.center, targets.center_counts)
            losses["offset"] = self.offset(outputs.offset, targets.offset, targets.offset_counts)
            numbers = targets.numbers
        if outputs.embedding is not None:
            losses["contrastive"] = self.contrastive(outputs.embedding, numbers)
        return losses
