# SPDX-License-Identifier: BSD-3-Clause
"""How sure a network is of an image, and what the image is like: a few numbers each."""

from typing import NamedTuple

import torch
from torch import Tensor

from maskattn_kernels.segmentation.model.network import Outputs

__all__ = ["STATISTICS", "Measures", "measure", "pixel_entropy"]

STATISTICS = ("entropy", "logit", "brightness", "contrast", "sharpness", "saturation")
"""What `Measures.statistics` holds for an image, in this order."""

_GREY = (0.299, 0.587, 0.114)  # as Pillow makes grey of RGB


class Measures(NamedTuple):
    """What can be told of each image without labels.

    Attributes:
        entropy: float32 (B,H,W), of the class probabilities of each pixel, in nats: 0 = sure, the
            logarithm of the number of classes = all of them are equally probable.
        statistics: float32 (B,6), by `STATISTICS`:

            - the mean over the pixels of ``entropy``, and of the highest logit;
            - of the grey levels, 0 to 255: mean, standard deviation, and the mean absolute second
              difference along rows plus that along columns, which blur makes small;
            - the mean over the pixels of the highest minus the lowest colour, 0 to 255.
        pooled: float32 (B,F), `Outputs.pooled`.
    """

    entropy: Tensor
    statistics: Tensor
    pooled: Tensor


def measure(images: Tensor, outputs: Outputs) -> Measures:
    """Measure images and what a network says about them.

    Args:
        images: uint8 (B,3,H,W), RGB, as the network saw them.
        outputs: of the network.

    Raises:
        ValueError: the outputs lack ``pooled``, which every network gives.

    Example:
        >>> import torch
        >>> from maskattn_kernels.segmentation.model.network import SegmentationNetwork
        >>> network = SegmentationNetwork(5, task="semantic", width=8, depth=2).eval()
        >>> images = torch.full((1, 3, 32, 32), 90, dtype=torch.uint8)
        >>> measured = measure(images, network(images))
        >>> measured.entropy.shape, measured.statistics.shape, measured.pooled.shape
        (torch.Size([1, 32, 32]), torch.Size([1, 6]), torch.Size([1, 16]))
    """
    if outputs.pooled is None:
        raise ValueError("outputs: expected those of a SegmentationNetwork, got no pooled map")
    logits = outputs.semantic.float()
    entropy = pixel_entropy(logits)
    colours = images.float()
    red, green, blue = (colours[:, i] * share for i, share in enumerate(_GREY))
    grey = red + green + blue
    statistics = (
        _mean(entropy),
        _mean(logits.amax(1)),
        _mean(grey),
        grey.flatten(1).std(1, correction=0),
        _mean(grey.diff(n=2, dim=1).abs()) + _mean(grey.diff(n=2, dim=2).abs()),
        _mean(colours.amax(1) - colours.amin(1)),
    )
    return Measures(entropy, torch.stack(statistics, 1), outputs.pooled.float())


def pixel_entropy(logits: Tensor) -> Tensor:
    """The entropy of each pixel's class probabilities, in nats, (B,H,W) of ``logits`` (B,C,H,W)."""
    certainty = logits.float().log_softmax(1)
    return -(certainty.exp() * certainty).sum(1)


def _mean(values: Tensor) -> Tensor:
    """The mean of each image of (B,h,w); 0 of an image without values."""
    return values.flatten(1).sum(1) / max(1, values[0].numel())
