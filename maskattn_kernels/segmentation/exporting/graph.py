# SPDX-License-Identifier: BSD-3-Clause
"""`ImageToLabels`: what is exported, from the pixels of a camera to labels."""

from typing import Any

import torch
from torch import Tensor, nn

from maskattn_kernels.segmentation.model.network import Outputs, SegmentationNetwork

__all__ = ["LAYOUTS", "ImageToLabels", "dynamic_shapes", "example_image", "output_names"]

LAYOUTS = ("nhwc", "nchw")


def output_names(network: SegmentationNetwork, labels_only: bool = False) -> tuple[str, ...]:
    """The names of the outputs of `ImageToLabels`, in their order.

    Args:
        network: that is exported.
        labels_only: as in `ImageToLabels`.

    Example:
        >>> from maskattn_kernels.segmentation.exporting.graph import output_names
        >>> from maskattn_kernels.segmentation.model.network import SegmentationNetwork
        >>> output_names(SegmentationNetwork(5, things=[3], width=4, depth=1))
        ('labels', 'logits', 'center', 'offset')
    """
    if labels_only:
        return ("labels",)
    maps = {"center": ("center", "offset"), "distance": ("distance",)}[network.config["objects"]]
    return ("labels", "logits", *(maps if network.task != "semantic" else ()))


def example_image(description: dict[str, Any]) -> Tensor:
    """An image, or a batch, of the shape that a file takes.

    Args:
        description: of the file, as in ``export.json``.
    """
    batch, size = description["batch"], description["size"]
    batch = 2 if batch is None else batch  # a dynamic 1 would be taken for a constant
    shape = (batch, *size, 3) if description["layout"] == "nhwc" else (batch, 3, *size)
    return torch.zeros(shape, dtype=torch.uint8)


def dynamic_shapes(description: dict[str, Any]) -> dict[str, Any] | None:
    """What of the shape may change, as `torch.export.export` takes it; None = nothing.

    Args:
        description: of the file, as in ``export.json``.
    """
    return {"image": {0: torch.export.Dim("batch")}} if description["batch"] is None else None


class ImageToLabels(nn.Module):
    """A network with all that a device would have to do around it.

    Args:
        network: a `SegmentationNetwork`, or one made of it with the same outputs.
        description: of the file, as in ``export.json``; counts are "outputs", see `output_names`,
            and "layout", "nhwc" as cameras and image files give images, or "nchw".

    Shapes:
        image uint8 (B,H,W,3) or (B,3,H,W), RGB; labels uint8 (B,H,W), logits float32 (B,C,H,W), and
        the maps of objects as in `Outputs`.

    Example:
        >>> import torch
        >>> from maskattn_kernels.segmentation.exporting.graph import ImageToLabels
        >>> from maskattn_kernels.segmentation.model.network import SegmentationNetwork
        >>> network = SegmentationNetwork(5, task="semantic", width=4, depth=1).eval()
        >>> graph = ImageToLabels(network, {"outputs": ["labels", "logits"], "layout": "nhwc"})
        >>> labels, logits = graph(torch.zeros(1, 16, 24, 3, dtype=torch.uint8))
        >>> labels.shape, labels.dtype, logits.shape
        (torch.Size([1, 16, 24]), torch.uint8, torch.Size([1, 5, 16, 24]))
    """

    def __init__(self, network: nn.Module, description: dict[str, Any]) -> None:
        super().__init__()
        self.network = network
        self.names, self.layout = tuple(description["outputs"]), description["layout"]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        image = image.to(torch.float32) / 255  # first: few runtimes have more operators on uint8
        if self.layout == "nhwc":
            image = image.permute(0, 3, 1, 2)
        outputs: Outputs = self.network(image)
        made = {
            "labels": outputs.semantic.argmax(1).to(torch.uint8),
            "logits": outputs.semantic.float(),
            "center": outputs.center,
            "offset": outputs.offset,
            "distance": outputs.distance,
        }
        return tuple(made[name] for name in self.names)  # type: ignore[misc]
