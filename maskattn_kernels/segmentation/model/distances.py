# SPDX-License-Identifier: BSD-3-Clause
"""From label maps to maps of distances: how deep in its object each pixel lies, from 0 to 1.

On the device of the labels, batched, with shapes that depend on the labels' shapes alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maskattn_kernels.segmentation.model.targets import object_numbers
from maskattn_kernels.torch_compat import register_tuple

__all__ = ["DistanceTargets", "distance_targets"]


@register_tuple
class DistanceTargets(NamedTuple):
    """Attributes:
    distance: float32 (B,1,H,W), above 0 to 1 in objects, 0 elsewhere.
    counts: bool (B,1,H,W), where ``distance`` is known.
    numbers: int64 (B,H,W), the object here, from 1, 0 = none.
    """

    distance: Tensor
    counts: Tensor
    numbers: Tensor


def distance_targets(semantic: Tensor, instance: Tensor, things: Sequence[int]) -> DistanceTargets:
    """For each pixel the distance to the nearest one that is not of its object, of the largest of
    the object.

    Euclidean and exact, between the middles of pixels. Objects of all sizes so have values up to 1
    in their middle, and low ones where they touch. What lies outside of the image is not of an
    object. Void pixels and pixels of things without an object do not count.

    Args:
        semantic, instance, things: as in `instance_targets`.

    Example:
        >>> import torch
        >>> from maskattn_kernels.segmentation.model.distances import distance_targets
        >>> instance = torch.tensor([[[4, 4, 4, 7, 7]]]).repeat(1, 3, 1)
        >>> distance_targets((instance > 0).long(), instance, things=[1]).distance[0, 0]
        tensor([[0.5000, 0.5000, 0.5000, 1.0000, 1.0000],
                [0.5000, 1.0000, 0.5000, 1.0000, 1.0000],
                [0.5000, 0.5000, 0.5000, 1.0000, 1.0000]])
    """
    numbers, known = object_numbers(semantic, instance, things)
    distance = _depths(numbers)
    flat, depths = numbers.flatten(1), distance.flatten(1)
    most = int(flat.max()) if _can_ask(flat) else flat.shape[1]
    deepest = depths.new_ones(len(flat), most + 1).scatter_reduce_(1, flat, depths, "amax")
    share = torch.where(flat > 0, depths / deepest.gather(1, flat), 0.0)
    return DistanceTargets(share.view_as(distance).unsqueeze(1), known.unsqueeze(1), numbers)


def _depths(numbers: Tensor) -> Tensor:
    """float32 (B,H,W): the distance of each pixel to the nearest one of another number.

    Along each row first. Then along columns: of the places above and below a pixel, one of another
    number is as far as it is; one of the same number is as near to another number as its row says.
    """
    height = numbers.shape[1]
    along = _to_other_number(numbers)
    reach = (height + 1) // 2
    if _can_ask(numbers):
        down = _to_other_number(numbers.transpose(1, 2)).transpose(1, 2)
        inside = torch.where(numbers > 0, torch.minimum(along, down), 0)
        reach = min(reach, int(inside.max()))
    square = along.square().float()
    least = square
    labels = F.pad(numbers, (0, 0, reach, reach), value=-1)
    squares = F.pad(square, (0, 0, reach, reach))
    for shift in range(1, reach + 1):
        for first in (reach - shift, reach + shift):
            same = labels.narrow(1, first, height) == numbers
            rest = torch.where(same, squares.narrow(1, first, height), 0.0)
            least = torch.minimum(least, rest + shift**2)
    return least.sqrt()


def _to_other_number(numbers: Tensor) -> Tensor:
    """int64 (B,H,W): steps along the row to the nearest place of another number, or outside."""
    width = numbers.shape[2]
    place = torch.arange(width, device=numbers.device).expand_as(numbers)
    differs = F.pad(numbers[:, :, 1:] != numbers[:, :, :-1], (1, 1), value=True)
    before = torch.where(differs[:, :, :-1], place - 1, -1).cummax(2).values
    after = torch.where(differs[:, :, 1:], place + 1, width).flip(2).cummin(2).values.flip(2)
    return torch.minimum(place - before, after - place)


def _can_ask(values: Tensor) -> bool:
    """Whether a value can be read without waiting for a device."""
    return values.device.type == "cpu" and values.numel() > 0
