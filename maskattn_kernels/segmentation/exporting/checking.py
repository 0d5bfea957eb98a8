# SPDX-License-Identifier: BSD-3-Clause
"""An exported file beside the network that it was made of, on the same images."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from maskattn_kernels.common.errors import CommandError
from maskattn_kernels.segmentation.checkpoint_files import SHIPPED
from maskattn_kernels.segmentation.data.errors import DataError, shown
from maskattn_kernels.segmentation.data.files import image_files
from maskattn_kernels.segmentation.data.frame import whole_frame
from maskattn_kernels.segmentation.data.inputs import AnyImage, as_sample
from maskattn_kernels.segmentation.data.parts import spread
from maskattn_kernels.segmentation.data.sample import Sample, SegmentationDataset
from maskattn_kernels.segmentation.model.grouping import group
from maskattn_kernels.segmentation.model.network import Outputs, SegmentationNetwork
from maskattn_kernels.segmentation.model.prepared import prepared
from maskattn_kernels.segmentation.runtimes import Exported

__all__ = ["Check", "Images", "Mismatch", "check", "scaled", "some_images"]

Images: TypeAlias = str | Path | Sequence[AnyImage] | SegmentationDataset
"""A folder of images, a list of them, or a data set."""

_MOST = 64  # images that are compared
_SECONDS = 2.0  # of timing
_LEAST = 3  # calls that are timed, however long they take


class Mismatch(CommandError):
    """An exported file gives other labels than the network."""


@dataclass(frozen=True)
class Check:
    """A comparison of an exported file with the network in torch.

    Attributes:
        runtime, version: that ran the file.
        images: that were compared.
        labels_equal: share of their pixels with the same label.
        largest_difference: of a logit; None where the file gives labels only.
        ms, torch_ms: median time of one image, in the same number of threads.
    """

    runtime: str
    version: str
    images: int
    labels_equal: float
    largest_difference: float | None
    ms: float
    torch_ms: float

    def __str__(self) -> str:
        difference = (
            ""
            if self.largest_difference is None
            else f", largest difference of a logit {self.largest_difference:.2g}"
        )
        return (
            f"{self.runtime} {self.version}: labels equal on {100 * self.labels_equal:.3f}% of the "
            f"pixels of {self.images} images{difference}; {self.ms:.1f} ms an image, torch "
            f"{self.torch_ms:.1f} ms"
        )


def some_images(images: Images | None, argument: str = "verify") -> list[Sample]:
    """At most 64 images, as far apart as can be: those of a video are much alike one by one.

    Args:
        images: None = the three pictures of cells that come with the package.
        argument: that named the images, for the error.

    Raises:
        DataError: there is no such folder, there are no images, or one cannot be read.
    """
    if images is None or isinstance(images, str | Path):
        where = SHIPPED / "nuclei" if images is None else Path(images)
        given: Any = list(image_files(where).values()) if where.is_dir() else []
    else:
        given = images
    if not len(given):
        raise DataError(f"{argument}: expected a folder of images, got {shown(images)}")
    return [as_sample(given[place], place) for place in spread(_MOST, len(given))]


def scaled(samples: Sequence[Sample], size: tuple[int, int]) -> Tensor:
    """The images of ``samples``, uint8 (n,3,H,W), scaled to exactly a ``size``."""
    frames = [whole_frame(sample, size, "squeeze").image for sample in samples]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()


@torch.inference_mode()
def check(
    exported: Exported, network: SegmentationNetwork, images: Tensor, min_agreement: float
) -> Check:
    """Compare the labels of an exported file with those of the network, and both times.

    In a file that finds objects, a pixel's label is its class and its object.

    Each image is compared by itself, as random masks depend on the place in a batch.

    Args:
        exported: the file in a runtime.
        network: in eval mode.
        images: uint8 (n,3,H,W).
        min_agreement: share of pixels, 0 to 1.

    Raises:
        Mismatch: fewer pixels have the same label.
    """
    ready = prepared(network, torch.float32)
    equal, largest = 0, 0.0
    names = exported.description["outputs"]
    for image in images.split(1):
        outputs, made = ready(image), exported.batch(image)
        same = torch.ones_like(image[:, 0], dtype=torch.bool)
        for name, right in _labels(outputs, network, exported.description).items():
            same &= torch.from_numpy(made[name]) == right
        equal += int(same.sum())
        if "logits" in names:
            difference = (torch.from_numpy(made["logits"]) - outputs.semantic).abs().max()
            largest = max(largest, float(difference))
    batch = images[:1].expand(exported.description["batch"] or 1, -1, -1, -1)
    ms, torch_ms = _times(lambda: exported.batch(batch), lambda: ready(batch), 1e3 / len(batch))
    found = Check(
        exported.runtime,
        exported.version,
        len(images),
        equal / images[:, 0].numel(),
        largest if "logits" in names else None,
        ms,
        torch_ms,
    )
    if not found.labels_equal >= min_agreement:
        raise Mismatch(
            f"{found.runtime} {found.version}: expected the labels of torch on at least "
            f"{100 * min_agreement:g}% of the pixels, got {100 * found.labels_equal:.3f}%; nothing "
            "was written"
        )
    return found


def _labels(
    outputs: Outputs, network: SegmentationNetwork, description: dict[str, Any]
) -> dict[str, Tensor]:
    """What a file says of each pixel: its class, and the number of its object if it finds them."""
    if "instance" not in description["outputs"]:
        return {"labels": outputs.semantic.argmax(1)}
    things, most = network.config["things"], description["max_objects"]
    found = group(outputs, things, max_objects=most)
    return {"labels": found.semantic, "instance": found.instance}


def _times(first: Callable[[], object], second: Callable[[], object], unit: float) -> list[float]:
    """Median time of a call of each, in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    start = time.perf_counter()
    while len(times[0]) < _LEAST or time.perf_counter() - start < _SECONDS:
        for call, seconds in zip((first, second), times, strict=True):
            began = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - began)
    return [unit * statistics.median(seconds) for seconds in times]
