# SPDX-License-Identifier: BSD-3-Clause
"""Losses of the class of each pixel: cross-entropy and its variants, Dice, and Lovasz-softmax.

Every loss is a mean over the pixels of an image that count, or over its classes, then a mean over
images: an image without any (all void) adds 0 and no gradient, and processes with equal shares of
a batch average to the loss of the whole batch. No value is read on the host.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskattn_kernels.segmentation.data.sample import VOID

__all__ = ["CoarseLoss", "DiceLoss", "LovaszLoss", "SemanticLoss", "mean_over_images"]

#: Hard pixels are at least one in so many of the labelled pixels of an image.
LEAST_HARD = 16


def mean_over_images(losses: Tensor, counts: Tensor) -> Tensor:
    """The mean over images of the mean of what counts; an image where nothing counts adds 0.

    Args:
        losses: (B,..).
        counts: bool, of the same shape.
    """
    kept = torch.where(counts, losses, 0.0).flatten(1).sum(1)
    return (kept / counts.flatten(1).sum(1).clamp_min(1)).mean()


class _Weighted(nn.Module):
    """A loss with a factor for each class; None = 1."""

    weights: Tensor | None

    def __init__(self, class_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        weights = None if class_weights is None else torch.tensor(class_weights).float()
        self.register_buffer("weights", weights, persistent=False)


class SemanticLoss(_Weighted):
    """Cross-entropy of ``logits`` (B,C,H,W) and ``semantic``, classes int64 (B,H,W) or `VOID`.

    Args:
        class_weights: factor of a pixel's loss, by its class; None = 1.
        hard: only pixels whose class has a lower probability than this count, and at least the
            hardest sixteenth of an image; more where equal losses meet that bound. 0 = all count.

    Example:
        >>> import torch
        >>> from maskattn_kernels.segmentation.model.pixel_losses import SemanticLoss
        >>> labels = torch.tensor([[[0, 1, 255]]])
        >>> SemanticLoss()(torch.zeros(1, 2, 1, 3), labels)
        tensor(0.6931)
        >>> SemanticLoss(class_weights=[1, 3])(torch.zeros(1, 2, 1, 3), labels)
        tensor(1.3863)
        >>> easy = torch.tensor([[[[2.0, 0.0, 0.0]], [[0.0, 0.0, 0.0]]]])
        >>> SemanticLoss(hard=0.7)(easy, labels)
        tensor(0.6931)
    """

    def __init__(self, class_weights: Sequence[float] | None = None, hard: float = 0.0) -> None:
        super().__init__(class_weights)
        self.hard = hard

    def forward(self, logits: Tensor, semantic: Tensor) -> Tensor:
        losses = F.cross_entropy(logits.float(), semantic, ignore_index=VOID, reduction="none")
        counts = semantic != VOID
        if self.hard:
            counts = _hard(losses.detach(), counts, -math.log(self.hard))
        if self.weights is not None:
            losses = losses * self.weights[torch.where(counts, semantic, 0)]
        return mean_over_images(losses, counts)


def _hard(losses: Tensor, counts: Tensor, above: float) -> Tensor:
    """Where a loss that counts is above a bound, or among the largest of its image."""
    flat = losses.masked_fill(~counts, -1.0).flatten(1)  # below every cross-entropy
    most = -(-flat.shape[1] // LEAST_HARD)
    least = (counts.flatten(1).sum(1, keepdim=True) + LEAST_HARD - 1) // LEAST_HARD
    last = flat.topk(most, dim=1).values.gather(1, (least - 1).clamp_min(0))
    return counts & ((losses > above) | (losses >= last.unsqueeze(2)))


class DiceLoss(nn.Module):
    """1 - Dice of the probabilities and the labels: a mean over the classes of an image.

        dice of a class = (2 * sum of p * t + 1) / (sum of p + sum of t + 1)

    with the probability p of the class and t = 1 on its pixels. Classes without a labelled pixel in
    an image do not count there. Small classes weigh as much as large ones.

    Shapes:
        ``logits`` and ``semantic`` as in `SemanticLoss`.

    Example:
        >>> import torch
        >>> from maskattn_kernels.segmentation.model.pixel_losses import DiceLoss
        >>> labels = torch.tensor([[[0, 0, 0, 255]]])
        >>> DiceLoss()(torch.zeros(1, 2, 1, 4), labels)  # 1 - (2 * 1.5 + 1) / (1.5 + 3 + 1)
        tensor(0.2727)
    """

    def forward(self, logits: Tensor, semantic: Tensor) -> Tensor:
        probabilities, labels = _probabilities(logits), semantic.flatten(1)
        counts = labels != VOID
        probabilities = torch.where(counts.unsqueeze(1), probabilities, 0.0)
        place = torch.where(counts, labels, 0).unsqueeze(1)
        true = probabilities.gather(1, place).squeeze(1)
        empty = probabilities.new_zeros(probabilities.shape[:2])
        common = empty.scatter_add(1, place.squeeze(1), true)
        area = empty.scatter_add(1, place.squeeze(1), counts.to(empty.dtype))
        dice = (2 * common + 1) / (probabilities.sum(2) + area + 1)
        return mean_over_images(1 - dice, area > 0)


class LovaszLoss(nn.Module):
    """The Lovasz extension of 1 - IoU (Berman et al., 2018): a mean over the classes of an image.

    Classes without a labelled pixel in an image do not count there. It sorts the pixels for each
    class, which at 480 x 360 pixels takes longer than a small network.

    Shapes:
        ``logits`` and ``semantic`` as in `SemanticLoss`.

    Example:
        >>> import torch
        >>> from maskattn_kernels.segmentation.model.pixel_losses import LovaszLoss
        >>> wrong = torch.tensor([[[[-99.0, 99.0, 0.0]], [[99.0, -99.0, 0.0]]]])
        >>> LovaszLoss()(wrong, torch.tensor([[[0, 0, 255]]]))  # one of two pixels: IoU 0.5
        tensor(0.5000)
    """

    def forward(self, logits: Tensor, semantic: Tensor) -> Tensor:
        probabilities, labels = _probabilities(logits), semantic.flatten(1)
        counts = (labels != VOID).unsqueeze(1)
        classes = torch.arange(logits.shape[1], device=logits.device).view(1, -1, 1)
        own = labels.unsqueeze(1) == classes
        errors = torch.where(own, 1 - probabilities, probabilities)
        # Void pixels come last, where they change nothing before them.
        errors, order = torch.where(counts, errors, -1.0).sort(dim=2, descending=True)
        own = own.gather(2, order)
        found = own.cumsum(2)
        total = found[:, :, -1:]
        other = (~own).cumsum(2)
        loss = 1 - (total - found) / (total + other)
        steps = torch.cat([loss[:, :, :1], loss.diff(dim=2)], dim=2)
        each = (errors.clamp_min(0) * steps).sum(2)
        return mean_over_images(each, total.squeeze(2) > 0)


def _probabilities(logits: Tensor) -> Tensor:
    """(B,C,H*W) in float32."""
    return logits.float().softmax(1).flatten(2)


class CoarseLoss(_Weighted):
    """Cross-entropy of logits at lower resolutions: a mean over the maps.

    The label of a place of a map is the share of each class among the labelled pixels under it. So
    the loss of a map is the cross-entropy at full resolution of its logits, brought there by
    nearest neighbour; a majority vote would lose thin objects instead.

    Args:
        class_weights: as in `SemanticLoss`.

    Shapes:
        ``maps`` of logits, each (B,C,h,w); ``semantic`` as in `SemanticLoss`.

    Example:
        >>> import torch
        >>> from maskattn_kernels.segmentation.model.pixel_losses import CoarseLoss
        >>> labels = torch.tensor([[[0, 1, 255], [1, 1, 255]]])
        >>> CoarseLoss()([torch.zeros(1, 2, 1, 1)], labels)
        tensor(0.6931)
    """

    def forward(self, maps: Sequence[Tensor], semantic: Tensor) -> Tensor:
        return torch.stack([self._loss(logits, semantic) for logits in maps]).mean()

    def _loss(self, logits: Tensor, semantic: Tensor) -> Tensor:
        classes = logits.shape[1]
        pixels = _pixels_below(semantic, classes, logits.shape[-2:]).to(torch.float32)
        factors = pixels if self.weights is None else pixels * self.weights.view(1, -1, 1, 1)
        losses = -(factors * logits.float().log_softmax(1)).flatten(1).sum(1)
        return (losses / pixels.flatten(1).sum(1).clamp_min(1)).mean()


def _pixels_below(semantic: Tensor, classes: int, size: Sequence[int]) -> Tensor:
    """How many pixels of each class lie under each place of a map: int64 (B,C,h,w)."""
    height, width = semantic.shape[-2:]
    rows = torch.arange(height, device=semantic.device) * size[0] // height
    columns = torch.arange(width, device=semantic.device) * size[1] // width
    places = size[0] * size[1]
    labels = torch.where(semantic == VOID, classes, semantic)  # a row of its own, left out below
    index = labels * places + rows.unsqueeze(1) * size[1] + columns
    empty = semantic.new_zeros(len(semantic), (classes + 1) * places)
    counted = empty.scatter_add(1, index.flatten(1), torch.ones_like(semantic).flatten(1))
    return counted[:, : classes * places].view(-1, classes, *size)
