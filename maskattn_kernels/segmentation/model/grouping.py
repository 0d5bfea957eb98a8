# SPDX-License-Identifier: BSD-3-Clause
"""From per-pixel outputs to objects, each with a class and a score.

Pixels of things form objects by their centres and offsets (`by_center`), or by their distances
(`by_distance`); an object's class is that of most of its pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from maskattn_kernels.segmentation.data.sample import VOID
from maskattn_kernels.segmentation.model.by_center import objects_by_center
from maskattn_kernels.segmentation.model.by_distance import objects_by_distance
from maskattn_kernels.segmentation.model.network import Outputs
from maskattn_kernels.segmentation.model.targets import is_thing
from maskattn_kernels.torch_compat import register_tuple

__all__ = ["Panoptic", "group"]


@register_tuple
class Panoptic(NamedTuple):
    """Every pixel's class and object.

    Attributes:
        semantic: int64 (B,H,W), classes; the pixels of an object have the class of the object.
        instance: int64 (B,H,W), the number of the object here, 0 = none. A thing pixel has 0 only
            where no centre was found in the whole image, or with distances where all classes are
            things.
        labels: int64 (B,K), the class of object 1 to K; `VOID` for numbers without a pixel.
        scores: float32 (B,K), 0 to 1, its confidence: the peak of its centre or of its distances
            times the mean probability of its class over its pixels.
    """

    semantic: Tensor
    instance: Tensor
    labels: Tensor
    scores: Tensor


@torch.no_grad()
def group(
    outputs: Outputs,
    things: Sequence[int],
    *,
    threshold: float = 0.1,
    window: int = 7,
    core: float = 0.5,
    max_objects: int | None = None,
) -> Panoptic:
    """Group pixels of things into objects.

    Args:
        outputs: of a `SegmentationNetwork`; without centres and distances there are no objects.
        things: classes whose objects are counted.
        threshold, window: of centres, see `objects_by_center`.
        core: of distances, see `objects_by_distance`.
        max_objects: K, the highest peaks; None = as many as the image with the most has.

    Returns:
        A `Panoptic`; objects are numbered by falling height of their peaks. With distances, pixels
        of things that belong to no object get the likeliest class that is not a thing.

    Example:
        >>> import torch
        >>> from maskattn_kernels.segmentation.model.grouping import group
        >>> from maskattn_kernels.segmentation.model.network import Outputs
        >>> center = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.9]).view(1, 1, 1, 5)
        >>> logits = torch.tensor([0.0, 9.0]).view(1, 2, 1, 1).expand(1, 2, 1, 5)
        >>> outputs = Outputs(logits, center, torch.zeros(1, 2, 1, 5), None, {})
        >>> group(outputs, things=[1], window=3).instance
        tensor([[[1, 1, 1, 2, 2]]])
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window: expected an odd number from 1, got {window}")
    logits = outputs.semantic.float()
    batch, classes = logits.shape[:2]
    highest, semantic = logits.max(1)
    counted = is_thing(semantic, things)
    if outputs.distance is not None:
        instance, heights = objects_by_distance(outputs.distance, counted, core, max_objects)
        semantic = torch.where(counted & (instance == 0), _others(logits, things), semantic)
    elif outputs.center is not None and outputs.offset is not None:
        maps = outputs.center, outputs.offset
        instance, heights = objects_by_center(*maps, counted, threshold, window, max_objects)
    else:
        nothing = torch.zeros_like(semantic)
        labels = torch.full((batch, max_objects or 0), VOID, device=logits.device)
        return Panoptic(semantic, nothing, labels, torch.zeros_like(labels, dtype=torch.float32))

    # Votes: how many pixels of each object (row 0: background) have each class.
    flat, objects = instance.flatten(1), heights.shape[1] + 1
    votes = torch.zeros(batch, objects * classes, dtype=torch.int64, device=flat.device)
    votes.scatter_add_(1, flat * classes + semantic.flatten(1), torch.ones_like(flat))
    votes = votes.view(batch, objects, classes)
    winners, area = votes.argmax(2), votes.sum(2)
    merged = torch.where(flat > 0, winners.gather(1, flat), semantic.flatten(1))

    powers = (logits - highest.unsqueeze(1)).exp_()
    own = powers.flatten(2).gather(1, merged.unsqueeze(1)).squeeze(1)
    certainty = own / powers.flatten(2).sum(1)  # softmax, of one class
    sums = torch.zeros(batch, objects, device=flat.device, dtype=torch.float64)
    sums.scatter_add_(1, flat, certainty.double())
    mean = (sums / area.clamp_min(1)).float()[:, 1:]
    found = area[:, 1:] > 0
    labels = torch.where(found, winners[:, 1:], VOID)
    scores = torch.where(found, heights.clamp_max(1) * mean, 0.0)
    return Panoptic(merged.view_as(semantic), instance, labels, scores)


def _others(logits: Tensor, things: Sequence[int]) -> Tensor:
    """The likeliest class that is not a thing, int64 (B,H,W); of all, if all are things."""
    others = [number for number in range(logits.shape[1]) if number not in things]
    if not others:
        return logits.argmax(1)
    return torch.tensor(others, device=logits.device)[logits[:, others].argmax(1)]
