# SPDX-License-Identifier: BSD-3-Clause
"""From maps of distances to objects: what is deep inside of an object is connected.

Two objects that touch have a valley of low distances between them. So each connected region above
half of the largest distance is the core of an object. Cores grow down the slopes in a few steps, to
the nearest pixels at each: nearly what a watershed gives. By scipy, on the host.
"""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

__all__ = ["objects_by_distance"]

_STEPS = (0.6, 0.3, -np.inf)  # of the height of cores; the last one takes all that is left
_NEIGHBOURS = np.ones((3, 3), dtype=bool)  # corners connect as well


def objects_by_distance(
    distance: Tensor, counted: Tensor, core: float, max_objects: int | None
) -> tuple[Tensor, Tensor]:
    """Objects of a batch.

    Args:
        distance: floating (B,1,H,W), about 0 outside of objects and 1 in their middle.
        counted: bool (B,H,W), pixels that can belong to an object.
        core: a core's distances are above it.
        max_objects: K, the highest cores; None = as many as the image with the most cores has.

    Returns:
        int64 (B,H,W), the object here, 1 to K by falling height, 0 = none: a region of ``counted``
        pixels without a core. float32 (B,K), the height of each core, 0 for numbers not in use.

    Example:
        >>> import torch
        >>> from maskattn_kernels.segmentation.model.by_distance import objects_by_distance
        >>> distance = torch.tensor([0.4, 0.9, 0.3, 1.0, 0.0, 0.4]).view(1, 1, 1, 6)
        >>> counted = torch.tensor([True, True, True, True, False, True]).view(1, 1, 6)
        >>> objects_by_distance(distance, counted, core=0.5, max_objects=None)
        (tensor([[[2, 2, 2, 1, 0, 0]]]), tensor([[1.0000, 0.9000]]))
    """
    found = [
        _objects(depth, mask, core, max_objects)
        for depth, mask in zip(
            distance[:, 0].float().cpu().numpy(), counted.cpu().numpy(), strict=True
        )
    ]
    most = max_objects
    if most is None:
        most = max((len(heights) for _, heights in found), default=0)
    instance = torch.from_numpy(np.stack([numbers for numbers, _ in found]))
    heights = torch.zeros(len(found), most)
    for row, (_, own) in zip(heights, found, strict=True):
        row[: len(own)] = torch.from_numpy(own)
    return instance.to(distance.device), heights.to(distance.device)


def _objects(
    depth: np.ndarray, counted: np.ndarray, core: float, most: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Of one image: numbers int64 (H,W), and heights float32 (K,)."""
    cores, count = ndimage.label((depth > core) & counted, _NEIGHBOURS)
    if not count:
        return np.zeros(depth.shape, dtype=np.int64), np.zeros(0, dtype=np.float32)
    heights = np.asarray(ndimage.maximum(depth, cores, np.arange(1, count + 1)), dtype=np.float32)
    order = np.argsort(-heights, kind="stable")[:most]
    places = np.zeros(count + 1, dtype=np.int64)
    places[order + 1] = np.arange(1, len(order) + 1)
    numbers = places[cores]
    regions, _ = ndimage.label(counted, _NEIGHBOURS)
    for step in _STEPS:
        rows, columns = ndimage.distance_transform_edt(
            numbers == 0, return_distances=False, return_indices=True
        )
        reached = counted & (depth > step * core) & (regions[rows, columns] == regions)
        numbers = np.where(reached, numbers[rows, columns], numbers)
    return numbers, heights[order]
