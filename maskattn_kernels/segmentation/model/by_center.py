# SPDX-License-Identifier: BSD-3-Clause
"""From centres and offsets to objects: the grouping of Panoptic-DeepLab (Cheng et al., 2020).

Peaks of the heatmap are centres; a pixel belongs to the centre nearest to where its offset points.
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial import cKDTree
from torch import Tensor

from maskattn_kernels.segmentation.model.neighbourhood import highest_around

__all__ = ["objects_by_center"]

_TOGETHER = 8  # centres that a GPU compares at a time
_DEPTH = 1e-6  # pixels: below what float32 offsets tell apart


def objects_by_center(
    center: Tensor,
    offset: Tensor,
    counted: Tensor,
    threshold: float,
    window: int,
    max_objects: int | None,
) -> tuple[Tensor, Tensor]:
    """Objects of a batch.

    Args:
        center, offset: floating (B,1,H,W) and (B,2,H,W), see `Outputs`.
        counted: bool (B,H,W), pixels that belong to an object.
        threshold: a centre's heatmap is above it.
        window: odd; a centre is the highest of window x window pixels.
        max_objects: K, the highest centres; then shapes depend on shapes alone, and on a GPU no
            value is read on the host. None = as many as the image with the most centres has.

    Returns:
        int64 (B,H,W), the object here, 1 to K by falling height, 0 = none: at pixels that are not
        ``counted``, and in images without a centre. float32 (B,K), the height of each centre, 0
        for numbers not in use.

    Example:
        >>> import torch
        >>> from maskattn_kernels.segmentation.model.by_center import objects_by_center
        >>> center = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.9]).view(1, 1, 1, 5)
        >>> counted, offset = torch.ones(1, 1, 5, dtype=torch.bool), torch.zeros(1, 2, 1, 5)
        >>> objects_by_center(center, offset, counted, 0.1, window=3, max_objects=None)
        (tensor([[[1, 1, 1, 2, 2]]]), tensor([[1.0000, 0.9000]]))
    """
    heights, places = _centers(center.float(), threshold, window, max_objects)
    # A search tree cannot be exported.
    by_tree = center.device.type == "cpu" and not torch.compiler.is_exporting()
    nearest = _nearest_of_few if by_tree else _nearest_of_all
    return nearest(offset.float(), heights > 0, places, counted), heights


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
    """The same on a GPU and in exports: all centres are compared, no value is read on the host."""
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
    # Without a centre too: OpenVINO takes infinity for the largest number.
    return torch.where(counted & exists.any(1)[:, None, None], nearest, 0)
