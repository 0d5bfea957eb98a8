# SPDX-License-Identifier: BSD-3-Clause
"""What a network says about a frame, brought to the size of the image itself."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maskattn_kernels.segmentation.data.sample import VOID
from maskattn_kernels.segmentation.model.grouping import Panoptic
from maskattn_kernels.segmentation.model.targets import is_thing

__all__ = ["at_size", "classes_at"]

_STRIP = 1 << 22  # logits of a strip of rows: 16 MB, whatever the image and the number of classes


@torch.no_grad()
def classes_at(logits: Tensor, size: tuple[int, int], confidence: float = 0.0) -> Tensor:
    """The classes of an image at another size: logits by bilinear interpolation, then the highest.

    The interpolated logits never exist as a whole: strips of rows are made one after another.

    Args:
        logits: (C,h,w).
        size: H and W.
        confidence: 0 to 1; pixels whose class has a lower probability become `VOID`.

    Returns:
        uint8 (H,W), on the device of the logits.

    Example:
        >>> logits = torch.tensor([[[0.0, 0.0]], [[3.0, -1.0]]])
        >>> classes_at(logits, (1, 8)).tolist()
        [[1, 1, 1, 1, 1, 0, 0, 0]]
    """
    (classes, height, _), (high, wide) = logits.shape, size
    found = torch.empty(size, dtype=torch.uint8, device=logits.device)
    rows = max(1, _STRIP // (classes * wide))
    middles = (torch.arange(high, device=logits.device) + 0.5) * (height / high) - 0.5
    middles = middles.clamp(0, height - 1)
    above = middles.long()
    below = (above + 1).clamp_max(height - 1)
    share = (middles - above).to(logits.dtype).unsqueeze(1)
    for first in range(0, high, rows):
        strip = slice(first, first + rows)
        taken = logits[:, above[strip]]
        if high != height:
            taken = taken.lerp(logits[:, below[strip]], share[strip])
        taken = _wide(taken, wide).float()
        highest, best = taken.max(0)
        if confidence > 0:
            probability = 1 / (taken - highest).exp_().sum(0)
            best.masked_fill_(probability < confidence, VOID)
        found[strip] = best
    return found


def _wide(rows: Tensor, wide: int) -> Tensor:
    """(C,h,w) at (C,h,wide)."""
    if rows.shape[2] == wide:
        return rows
    size = (rows.shape[1], wide)
    return F.interpolate(rows[None], size=size, mode="bilinear", align_corners=False)[0]


@torch.no_grad()
def at_size(
    logits: Tensor,
    found: Panoptic,
    size: tuple[int, int],
    things: Sequence[int],
    confidence: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Classes and objects of an image at another size.

    Classes come from interpolated logits. A pixel of a thing belongs to the object of the nearest
    of the four pixels around it that have one; so outlines of objects are those of the classes, and
    the pixels of an object have the class of the object.

    Args:
        logits: (C,h,w).
        found: of this image alone, a batch of one, at (h,w).
        size: H and W.
        things: classes whose objects are counted.
        confidence: as in `classes_at`.

    Returns:
        uint8 (H,W), classes or `VOID`; int32 (H,W), objects as they are numbered in ``found``.

    Example:
        >>> logits = torch.tensor([[[0.0, 0.0]], [[3.0, -1.0]]])
        >>> one, none = torch.tensor([[[1, 0]]]), torch.zeros(1, 1)
        >>> found = Panoptic(torch.tensor([[[1, 0]]]), one, torch.tensor([[1]]), none)
        >>> [part.tolist() for part in at_size(logits, found, (1, 8), things=[1])]
        [[[1, 1, 1, 1, 1, 0, 0, 0]], [[1, 1, 1, 1, 1, 0, 0, 0]]]
    """
    if logits.shape[1:] == size and confidence == 0:
        return found.semantic[0].to(torch.uint8), found.instance[0].to(torch.int32)
    semantic = classes_at(logits, size, confidence)
    if not things:
        return semantic, torch.zeros(size, dtype=torch.int32, device=semantic.device)
    thing = is_thing(semantic, things)
    small = found.instance[0].to(torch.int32)
    rows, columns = (
        _places(target, source, small.device)
        for target, source in zip(size, small.shape, strict=True)
    )
    instance = torch.where(thing, _nearest_objects(small, rows, columns), 0)
    # Where classes meet, a thing can win between pixels of which none has an object. (Of an image
    # whose things have no objects at all, they stay.)
    nearest = found.semantic[0].to(torch.uint8)[rows.near][:, columns.near]
    some = (small > 0).any() | ~is_thing(found.semantic[0], things).any()
    lost = thing & (instance == 0) & some
    semantic = torch.where(lost, nearest, semantic)
    labels = torch.cat([found.labels.new_full((1,), VOID), found.labels[0]]).to(torch.uint8)
    return torch.where(instance > 0, labels[instance.long()], semantic), instance


class _Places(NamedTuple):
    """Along one side, for each target pixel: the two source pixels around it.

    Attributes:
        near, far: their numbers; the same one beyond the middle of the first or the last pixel.
        distance: to the nearer one, at most half a pixel.
    """

    near: Tensor
    far: Tensor
    distance: Tensor


def _places(target: int, source: int, device: torch.device) -> _Places:
    place = (torch.arange(target, device=device) + 0.5) * (source / target) - 0.5
    place = place.clamp(0, source - 1)
    near = place.round().long()
    far = torch.where(place < near, place.floor(), place.ceil()).long()
    return _Places(near, far, (place - near).abs())


def _nearest_objects(small: Tensor, rows: _Places, columns: _Places) -> Tensor:
    """For each pixel the object of the nearest of the four around it that has one; or 0."""
    found = small[rows.far][:, columns.far]
    beside, above = small[rows.near][:, columns.far], small[rows.far][:, columns.near]
    first = rows.distance[:, None] > columns.distance  # then the other row is nearer
    order = (
        torch.where(first, beside, above),
        torch.where(first, above, beside),
        small[rows.near][:, columns.near],
    )
    for nearer in order:
        found = torch.where(nearer > 0, nearer, found)
    return found
