# SPDX-License-Identifier: BSD-3-Clause
"""`ImageToLabels`: what is exported, from the pixels of a camera to labels."""

from typing import Any

import torch
from torch import Tensor, nn

from maskattn_kernels.segmentation.model.grouping import group
from maskattn_kernels.segmentation.model.network import Outputs, SegmentationNetwork

__all__ = [
    "FOUND",
    "LAYOUTS",
    "ImageToLabels",
    "check_objects",
    "dynamic_shapes",
    "example_image",
    "output_names",
]

LAYOUTS = ("nhwc", "nchw")
FOUND = ("instance", "object_labels", "object_scores")
"""The outputs of a file that finds objects, beside the labels."""


def output_names(
    network: SegmentationNetwork, labels_only: bool = False, max_objects: int | None = None
) -> tuple[str, ...]:
    """The names of the outputs of `ImageToLabels`, in their order.

    Args:
        network: that is exported.
        labels_only: without logits and maps of objects.
        max_objects: objects are found too; None = they are not.

    Example:
        >>> from maskattn_kernels.segmentation.exporting.graph import output_names
        >>> from maskattn_kernels.segmentation.model.network import SegmentationNetwork
        >>> output_names(SegmentationNetwork(5, things=[3], width=4, depth=1))
        ('labels', 'logits', 'center', 'offset')
    """
    found = () if max_objects is None else FOUND
    if labels_only:
        return ("labels", *found)
    maps = {"center": ("center", "offset"), "distance": ("distance",)}[network.config["objects"]]
    return ("labels", *found, "logits", *(maps if network.task != "semantic" else ()))


def check_objects(network: SegmentationNetwork, max_objects: int | None) -> None:
    """Whether the objects of a network can be found inside of a file.

    Args:
        network: that is exported.
        max_objects: at most so many of an image; None = they are not found.

    Raises:
        ValueError: not those of this network.
    """
    if max_objects is None:
        return
    if max_objects < 1:
        raise ValueError(f"max_objects: expected a whole number from 1, got {max_objects}")
    if network.task == "semantic":
        raise ValueError(
            f"max_objects: expected none for a network that finds no objects, got {max_objects}"
        )
    if network.config["objects"] == "distance":
        raise ValueError(
            "max_objects: expected none for a network with distances, whose objects are connected "
            f"regions, which no standard operator finds, got {max_objects}"
        )


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
        description: of the file, as in ``export.json``; what counts is "outputs", see
            `output_names`, "layout", "nhwc" as cameras and image files give images, or "nchw", and
            with objects "max_objects" and the "is_thing" of "classes".

    Shapes:
        image uint8 (B,H,W,3) or (B,3,H,W), RGB; labels uint8 (B,H,W), logits float32 (B,C,H,W), and
        the maps of objects as in `Outputs`. With objects, K at most: instance int32 (B,H,W), 0 =
        none; object_labels uint8 (B,K), `VOID` for numbers without a pixel; object_scores float32
        (B,K); the pixels of an object have its label, see `group`.

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
        self.max_objects = description.get("max_objects")
        is_thing = description["classes"]["is_thing"] if self.max_objects else ()
        self.things = [number for number, thing in enumerate(is_thing) if thing]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        image = image.to(torch.float32) / 255  # first: few runtimes have more operators on uint8
        if self.layout == "nhwc":
            image = image.permute(0, 3, 1, 2)
        outputs: Outputs = self.network(image)
        found = {"labels": outputs.semantic.argmax(1).to(torch.uint8)}
        if self.max_objects is not None:
            panoptic = group(outputs, self.things, max_objects=self.max_objects)
            kinds = (torch.uint8, torch.int32, torch.uint8, torch.float32)
            parts = zip(("labels", *FOUND), panoptic, kinds, strict=True)
            found = {name: part.to(kind) for name, part, kind in parts}
        made = {
            **found,
            "logits": outputs.semantic.float(),
            "center": outputs.center,
            "offset": outputs.offset,
            "distance": outputs.distance,
        }
        return tuple(made[name] for name in self.names)  # type: ignore[misc]
