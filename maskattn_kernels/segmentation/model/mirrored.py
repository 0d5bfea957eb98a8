# SPDX-License-Identifier: BSD-3-Clause
"""Test-time augmentation: a network that also looks at the mirrored image."""

import torch
from torch import Tensor, nn

from maskattn_kernels.common.text import quoted
from maskattn_kernels.segmentation.model.network import Outputs

__all__ = ["TTA", "Mirrored", "with_tta"]

TTA = ("flip",)
"""Test-time augmentations by name."""

TINY = 1e-30  # a probability that is not 0


class Mirrored(nn.Module):
    """A network whose outputs are the means of those for an image and for its mirror image.

    Means are taken of the probabilities of the classes, of centres, of distances, and of offsets,
    which point the other way along rows in a mirror image. The logits keep the scale of the
    network's. All other outputs are those of the image as it is.

    Args:
        network: a `SegmentationNetwork`, or what `prepare_for_inference` makes of one.

    Example:
        >>> import torch
        >>> from maskattn_kernels.segmentation.model.network import SegmentationNetwork
        >>> network = SegmentationNetwork(5, task="semantic", width=8, depth=2).eval()
        >>> image = torch.rand(1, 3, 32, 32)
        >>> with torch.inference_mode():
        ...     outputs, mirrored = (Mirrored(network)(x) for x in (image, image.flip(-1)))
        >>> torch.allclose(outputs.semantic, mirrored.semantic.flip(-1), atol=1e-4)
        True
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Outputs:
        plain: Outputs = self.network(image)
        mirror: Outputs = self.network(image.flip(-1))
        center, offset, distance = plain.center, plain.offset, plain.distance
        if center is not None and mirror.center is not None:
            center = (center + mirror.center.flip(-1)) / 2
        if distance is not None and mirror.distance is not None:
            distance = (distance + mirror.distance.flip(-1)) / 2
        if offset is not None and mirror.offset is not None:
            signs = torch.tensor([1.0, -1.0], device=offset.device, dtype=offset.dtype)
            offset = (offset + mirror.offset.flip(-1) * signs.view(1, 2, 1, 1)) / 2
        semantic = _mean_of_probabilities(plain.semantic, mirror.semantic.flip(-1))
        return plain._replace(semantic=semantic, center=center, offset=offset, distance=distance)


def _mean_of_probabilities(a: Tensor, b: Tensor) -> Tensor:
    """Logits whose probabilities are the mean of those of ``a`` and ``b``; ``a`` if both agree."""
    a, b = a.float(), b.float()
    scale = (a.logsumexp(1, keepdim=True) + b.logsumexp(1, keepdim=True)) / 2
    return torch.log((a.softmax(1) + b.softmax(1)).div(2).clamp_min(TINY)) + scale


def with_tta(network: nn.Module, tta: str | None) -> nn.Module:
    """A network with a test-time augmentation.

    Args:
        network: as `Mirrored` takes it.
        tta: "flip" = `Mirrored`; None = the network as it is.

    Raises:
        ValueError: there is no such augmentation.
    """
    if tta is None:
        return network
    if tta not in TTA:
        raise ValueError(f"tta: expected None or {quoted(TTA)}, got {tta!r}")
    return Mirrored(network)
