# SPDX-License-Identifier: BSD-3-Clause
"""From per-pixel outputs to objects: the grouping of Panoptic-DeepLab (Cheng et al., 2020).

Peaks of the heatmap are centres; a pixel of a thing belongs to the centre nearest to where its
offset points; an object's class is that of most of its pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial import cKDTree
from torch import Tensor

from maskattn_kernels.segmentation.data.sample import VOID
from maskattn_kernels.segmentation.model.neighbourhood import highest_around
from maskattn_kernels.segmentation.model.network import Outputs
from maskattn_kernels.segmentation.model.targets import is_thing
from maskattn_kernels.torch_compat import register_tuple

__all__ = ["Panoptic", "group"]

_TOGETHER = 8  # centres that a GPU compares at a time
_DEPTH = 1e-6  # pixels: below what float32 offsets tell apart


@register_tuple
class Panoptic(NamedTuple):
    """Every pixel's class and object.

    Attributes:
        semantic: int64 (B,H,W), classes; the pixels of an object have the class of the object.
        instance: int64 (B,H,W), the number of the object here, 0 = none. A thing pixel has 0 only
            where no centre was found in the whole image.
        labels: int64 (B,K), the class of object 1 to K; `VOID` for numbers without a pixel.
        scores: float32 (B,K), 0 to 1, its confidence: the peak of its centre times the
            mean probability of its class over its pixels.
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
    max_objects: int | None = None,
) -> Panoptic:
    """Group pixels of things into objects.

    Args:
        outputs: of a `SegmentationNetwork`; without ``center`` there are no objects.
        things: classes whose objects are counted.
        threshold: a centre's heatmap is above it.
        window: odd; a centre is the highest of window x window pixels.
        max_objects: K, the highest centres; then shapes depend on shapes alone, and on a GPU no
            value is read on the host. None = as many as the image with the most centres has.

    Returns:
        A `Panoptic`; objects are numbered by falling height of their centres.

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
    if outputs.center is None or outputs.offset is None:
        nothing = torch.zeros_like(semantic)
        labels = torch.full((batch, max_objects or 0), VOID, device=logits.device)
        return Panoptic(semantic, nothing, labels, torch.zeros_like(labels, dtype=torch.float32))

    heights, places = _centers(outputs.center.float(), threshold, window, max_objects)
    counted = is_thing(semantic, things)
    nearest = _nearest_of_few if logits.device.type == "cpu" else _nearest_of_all
    instance = nearest(outputs.offset.float(), heights > 0, places, counted)

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


def _centers(
    center: Tensor, threshold: float, window: int, most: int | None
) -> tuple[Tensor, Tensor]:
    """The K highest peaks: heights (B,K), 0 where there are fewer, and places (B,K)."""
    height, width = center.shape[2:]
    is_peak = (center == highest_around(center, [1] * window)) & (center > max(threshold, 0.0))
    # Of equal neighbours, as low precision makes them, the first one is the peak.
    order = torch.arange(height * width, device=center.device, dtype=torch.float32)
    order = torch.where(is_peak, -order.view(1, 1, height, width), float("-inf"))
    is_peak &= order == highest_around(order, [1] * 3)
    if most is None:
        most = int(is_peak.flatten(1).sum(1).max())
    peaks = torch.where(is_peak, center, 0.0).flatten(1)
    peaks = F.pad(peaks, (0, max(most - height * width, 0)))
    # Equal heights keep the order of their places on any device: a later place makes them smaller
    # by less than float32 can tell apart. (A stable sort would do, but cannot be exported.)
    place = torch.arange(peaks.shape[1], device=peaks.device, dtype=torch.float64)
    ordered = torch.where(peaks > 0, peaks.double() * (1 - place * 2.0**-50), -place)
    places = ordered.topk(most, dim=1).indices
    return peaks.gather(1, places), places


def _nearest_of_few(offset: Tensor, exists: Tensor, places: Tensor, counted: Tensor) -> Tensor:
    """For each pixel that is ``counted`` the centre, 1 to K, nearest to where its offset points; 0
    without one. On a CPU by a search tree: its time hardly depends on the number of centres."""
    instance = torch.zeros_like(counted, dtype=torch.int64)
    for number, there in enumerate(exists):
        count, (ys, xs) = int(there.sum()), np.nonzero(counted[number].numpy())
        if not count or not len(ys):
            continue
        dy, dx = np.nan_to_num(offset[number][:, ys, xs].numpy())
        rows, columns = np.divmod(places[number, :count].numpy(), offset.shape[3])
        # Equally near centres: the depths make the highest one nearest.
        tree = cKDTree(np.column_stack([rows, columns, _DEPTH * np.arange(count)]))
        _, nearest = tree.query(np.column_stack([ys + dy, xs + dx, np.zeros_like(dy)]))
        instance[number, ys, xs] = torch.from_numpy(nearest) + 1
    return instance


def _nearest_of_all(offset: Tensor, exists: Tensor, places: Tensor, counted: Tensor) -> Tensor:
    """The same on a GPU, where all centres are compared and no value is read on the host."""
    height, width = offset.shape[2:]
    aim_y = offset[:, 0] + torch.arange(height, device=offset.device).view(1, height, 1)
    aim_x = offset[:, 1] + torch.arange(width, device=offset.device).view(1, 1, width)
    far = torch.tensor(float("inf"), device=offset.device)
    center_y = torch.where(exists, places // width, far)
    center_x = places % width
    nearest = torch.zeros_like(aim_y, dtype=torch.int64)
    least = torch.full_like(aim_y, float("inf"))
    # A few centres at a time: without K times the memory of an image, and with few launches.
    for first in range(0, exists.shape[1], _TOGETHER):
        some = slice(first, first + _TOGETHER)
        dy = aim_y.unsqueeze(1) - center_y[:, some, None, None]
        dx = aim_x.unsqueeze(1) - center_x[:, some, None, None]
        distance, place = torch.addcmul(dx * dx, dy, dy).min(1)
        nearest = torch.where(distance < least, place + first + 1, nearest)
        least = torch.minimum(distance, least)
    return torch.where(counted, nearest, 0)
