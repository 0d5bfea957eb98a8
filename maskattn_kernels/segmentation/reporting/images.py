# SPDX-License-Identifier: BSD-3-Clause
"""The labelled images of a report: read once, to know their sizes and to tell them from others."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from maskattn_kernels.common.background import map_ahead
from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.frame import frame_size
from maskattn_kernels.segmentation.data.parts import Part
from maskattn_kernels.segmentation.data.sample import Sample, SegmentationDataset
from maskattn_kernels.segmentation.scoring.evaluation import labelled

__all__ = ["LabelledImages", "look_through", "usual_sizes"]


@dataclass(frozen=True)
class LabelledImages:
    """What a look at all images found.

    Attributes:
        dataset: those that can be read and have labels.
        sizes: height and width of each.
        sha256: of their names, pixels and labels.
        failed: a line for each of the others.
    """

    dataset: Part
    sizes: list[tuple[int, int]]
    sha256: str
    failed: list[str]


def look_through(dataset: SegmentationDataset, progress: Callable[[int], object]) -> LabelledImages:
    """Read a data set once.

    Args:
        dataset: with labels.
        progress: called with the number of images that are done.

    Raises:
        DataError: no image can be used; that of the first one.
    """
    places, sizes, failed = list[int](), list[tuple[int, int]](), list[DataError]()
    sha256 = hashlib.sha256()
    read = partial(_labelled_or_error, dataset)
    for place, sample in enumerate(map_ahead(read, range(len(dataset)))):
        progress(place + 1)
        if isinstance(sample, DataError):
            failed.append(sample)
            continue
        places.append(place)
        height, width = sample.image.shape[:2]
        sizes.append((height, width))
        sha256.update(f"{sample.name} {height} {width}".encode())
        for pixels in (sample.image, sample.semantic, sample.instance):
            sha256.update(b"" if pixels is None else pixels.tobytes())
    if not places:
        raise failed[0] if failed else DataError("data: expected labelled images, got none")
    lines = [str(error) for error in failed]
    return LabelledImages(Part(dataset, places), sizes, sha256.hexdigest(), lines)


def _labelled_or_error(dataset: SegmentationDataset, place: int) -> Sample | DataError:
    try:
        return labelled(dataset, place)
    except DataError as error:
        return error


def usual_sizes(
    checkpoint: Checkpoint, sizes: list[tuple[int, int]]
) -> list[tuple[int, int] | None]:
    """The sizes at which a network sees images as ``maskattn eval`` shows them to it.

    Args:
        checkpoint: whose frame counts.
        sizes: height and width of the images.

    Returns:
        the smallest size that holds all frames, so that little is filled up with grey; of images
        of several sizes that are seen as they are, None, and beside it the size of the checkpoint.

    Example:
        >>> from maskattn_kernels.segmentation import Checkpoint
        >>> nuclei = Checkpoint.from_pretrained("nuclei")  # sees images as they are
        >>> usual_sizes(nuclei, [(96, 128)] * 2), usual_sizes(nuclei, [(96, 128), (512, 512)])
        ([(96, 128)], [None, (256, 256)])
    """
    if checkpoint.frame == "own" and len(set(sizes)) > 1:
        return [None, checkpoint.size]
    kind = checkpoint.frame

    def frames(size: tuple[int, int]) -> list[tuple[int, int]]:
        return [frame_size(*image, size, kind) for image in sizes]

    usual = frames(checkpoint.size)
    smallest = (max(height for height, _ in usual), max(width for _, width in usual))
    # Fitted into a size that is rounded down, frames may be one pixel smaller still.
    return [smallest if frames(smallest) == usual else checkpoint.size]
