# SPDX-License-Identifier: BSD-3-Clause
"""From label maps to the targets of an instance branch: centres, offsets, and where they count.

All on the device of the labels, batched, with shapes that depend on the labels' shapes alone.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from maskattn_kernels.segmentation.data.sample import VOID
from maskattn_kernels.segmentation.model.neighbourhood import highest_around
from maskattn_kernels.torch_compat import register_tuple

__all__ = ["Targets", "instance_targets", "is_thing", "object_numbers", "renumbered"]

_TAIL = 5  # sigmas, beyond which a Gaussian is 0: it is below 4e-6 there


@register_tuple
class Targets(NamedTuple):
    """Attributes:
    center: float32 (B,1,H,W), a Gaussian of height 1 on each object's centre pixel.
    center_counts: bool (B,1,H,W), where ``center`` is known.
    offset: float32 (B,2,H,W), (dy, dx) in pixels to the centre pixel of the object here.
    offset_counts: bool (B,1,H,W), where there is an object.
    numbers: int64 (B,H,W), the object here, from 1, 0 = none.
    """

    center: Tensor
    center_counts: Tensor
    offset: Tensor
    offset_counts: Tensor
    numbers: Tensor


def instance_targets(
    semantic: Tensor,
    instance: Tensor,
    things: Sequence[int],
    *,
    sigma: float = 3.0,
) -> Targets:
    """The targets of Panoptic-DeepLab (Cheng et al., 2020).

    A centre is the mean place of an object's pixels, rounded to a pixel. Void pixels and pixels of
    things without an object do not count. Time and memory do not depend on the number of objects.

    Args:
        semantic: integer (B,H,W), classes or `VOID`.
        instance: integer (B,H,W), 0 = none; any numbers from 1, unique within an image.
        things: classes whose objects are counted; objects of other classes are ignored.
        sigma: of the Gaussians, in pixels.

    Example:
        >>> import torch
        >>> from maskattn_kernels.segmentation.model.targets import instance_targets
        >>> instance = torch.tensor([[[7, 7, 7, 0]]])
        >>> targets = instance_targets((instance > 0).long(), instance, things=[1])
        >>> targets.offset[0, 1]
        tensor([[ 1.,  0., -1.,  0.]])
        >>> targets.numbers
        tensor([[[1, 1, 1, 0]]])
    """
    batch, height, width = semantic.shape
    device = semantic.device
    numbers, known = object_numbers(semantic, instance, things)
    ys = torch.arange(height, device=device, dtype=torch.float32)
    xs = torch.arange(width, device=device, dtype=torch.float32)

    # Sums over each object's pixels; row 0 collects background. Whole numbers: exact in float64,
    # and so the same in any order of addition. How many objects there are is asked only where it
    # waits for nothing; there are at most as many as pixels.
    flat = numbers.flatten(1)
    on_cpu = device.type == "cpu" and flat.numel() > 0
    most = int(flat.max()) if on_cpu else flat.shape[1]
    grid = torch.stack(torch.meshgrid(ys, xs, indexing="ij"))
    places = torch.cat([torch.ones_like(grid[:1]), grid])
    sums = torch.zeros(batch, 3, most + 1, device=device, dtype=torch.float64)
    index = flat.unsqueeze(1).expand(-1, 3, -1)
    sums.scatter_add_(2, index, places.flatten(1).double().expand(batch, -1, -1))
    area = sums[:, :1]
    centers = (sums[:, 1:] / area.clamp_min(1)).round().float()  # (B, 2, most + 1)

    # The highest of many Gaussians is that of the nearest centre, found along rows, then columns.
    peaks = torch.zeros(batch, height * width, device=device, dtype=torch.float32)
    at = (centers[:, 0] * width + centers[:, 1]).long()
    exists = (area[:, 0] > 0).float()
    exists[:, 0] = 0.0
    peaks.scatter_add_(1, at, exists).clamp_max_(1)
    reach = min(math.ceil(_TAIL * sigma), max(height, width))
    bump = [math.exp(-(d**2) / (2 * sigma**2)) for d in range(-reach, reach + 1)]
    center = highest_around(peaks.view(batch, height, width), bump)

    own = centers.gather(2, flat.unsqueeze(1).expand(-1, 2, -1)).view(batch, 2, height, width)
    has_object = (numbers > 0).unsqueeze(1)
    offset = torch.where(has_object, own - grid, 0.0)
    return Targets(center.unsqueeze(1), known.unsqueeze(1), offset, has_object, numbers)


def object_numbers(
    semantic: Tensor, instance: Tensor, things: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The objects that are counted, and where it is known whether there is one.

    Args:
        semantic, instance, things: as in `instance_targets`.

    Returns:
        int64 (B,H,W), the object here, from 1, 0 = none; bool (B,H,W), False at void pixels and
        pixels of things without an object.
    """
    thing = is_thing(semantic, things)
    numbers = renumbered(torch.where(thing, instance.long(), 0))
    return numbers, (semantic != VOID) & ~(thing & (numbers == 0))


def is_thing(semantic: Tensor, things: Sequence[int]) -> Tensor:
    """bool, in the shape of ``semantic``: whether the class there is one of ``things``."""
    found = torch.zeros_like(semantic, dtype=torch.bool)
    for thing in things:
        found |= semantic == thing
    return found


def renumbered(instance: Tensor) -> Tensor:
    """``instance`` with the numbers of each image's objects, in order, as 1, 2, ..; 0 stays 0.

    Example:
        >>> import torch
        >>> from maskattn_kernels.segmentation.model.targets import renumbered
        >>> renumbered(torch.tensor([[[26001, 0, 9, 26001]]]))
        tensor([[[2, 0, 1, 2]]])
    """
    ordered, order = instance.flatten(1).sort(1)
    is_new = torch.zeros_like(ordered)
    is_new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    is_new[:, :1] = ordered[:, :1] > 0
    ranks = is_new.cumsum(1)
    return torch.zeros_like(ordered).scatter_(1, order, ranks).view_as(instance)
