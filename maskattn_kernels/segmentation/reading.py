# SPDX-License-Identifier: BSD-3-Clause
"""Images on their way to a network: read in threads, framed, and those of one shape together."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from maskattn_kernels.common.background import map_ahead
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.frame import Frame, FrameKind, whole_frame
from maskattn_kernels.segmentation.data.inputs import AnyImage, as_sample
from maskattn_kernels.segmentation.data.sample import Sample
from maskattn_kernels.segmentation.tiling import Tiling

__all__ = ["Read", "Reader", "alike"]

#: How long images of one shape wait for each other: the order of results is kept meanwhile.
_BATCHES = 4
_PIXELS = 1 << 24


class Read(NamedTuple):
    """An image that was read.

    Attributes:
        place: among those that were given, from 0.
        sample: at its own size.
        frame: at the size of what is found.
        seen: uint8 (h,w,3), the whole image as the network sees it; empty = it sees tiles only.
        order: among those that could be read, from 0.
        total: pixels of all images up to this one.
    """

    place: int
    sample: Sample
    frame: Frame
    seen: np.ndarray
    order: int = 0
    total: int = 0


class Reader:
    """Reads images and makes their frames.

    Args:
        size, kind: of frames of whole images, see `frame_size`.
        classes: that the network tells apart.
        tiling: how images are cut into tiles; None = not at all.
        failed: called with the error of each image that cannot be read, in a thread; that image is
            left out. None = the error is raised.
    """

    def __init__(
        self,
        size: tuple[int, int],
        kind: FrameKind,
        classes: int,
        tiling: Tiling | None = None,
        failed: Callable[[DataError], object] | None = None,
    ) -> None:
        self.size, self.kind, self.classes = size, kind, classes
        self.tiling, self.failed = tiling, failed

    def read(self, place: int, image: AnyImage) -> Read:
        """Read one image.

        Args:
            place: among those that were given.
            image: see `as_sample`.

        Raises:
            TypeError, DataError: it cannot be used.
        """
        sample = as_sample(image, place)
        if self.tiling is None:
            frame = whole_frame(sample, self.size, self.kind)
            return Read(place, sample, frame, frame.image)
        plan = self.tiling.plan(sample.name, sample.image.shape[:2], self.classes)
        frame = whole_frame(sample, plan.grid, "squeeze")
        if self.tiling.share is None:
            return Read(place, sample, frame, np.empty((0, 0, 3), np.uint8))
        first = whole_frame(sample, self.size, "fit" if self.kind == "own" else self.kind)
        return Read(place, sample, frame, first.image)

    def stream(self, images: Iterable[AnyImage]) -> Iterator[Read]:
        """Read ``images`` in threads, some ahead; the results are in order."""
        for read in map_ahead(self._read_or_error, enumerate(images)):
            if not isinstance(read, DataError):
                yield read
            elif self.failed is None:
                raise read
            else:
                self.failed(read)

    def _read_or_error(self, numbered: tuple[int, AnyImage]) -> Read | DataError:
        try:
            return self.read(*numbered)
        except DataError as error:
            return error


def alike(
    images: Iterable[Read], batch_size: int, together: Callable[[tuple[int, int]], int]
) -> Iterator[list[Read]]:
    """Images that a network sees in one shape, as many as go through it together.

    An image waits while at most four batches are read, and at most 16 million pixels.

    Args:
        images: in order.
        batch_size: images of a batch.
        together: how many images of a shape (height and width) go through the network at once.
    """
    waiting: dict[tuple[int, int], list[Read]] = {}  # the group of the oldest image is first
    total = 0
    for order, read in enumerate(images):
        total += read.sample.image.size // 3
        image = read._replace(order=order, total=total)
        if not image.seen.size:
            yield [image]
            continue
        height, width = image.seen.shape[:2]
        group = waiting.setdefault((height, width), [])
        group.append(image)
        if len(group) == together((height, width)):
            yield waiting.pop((height, width))
        while waiting:
            oldest, (first, *_) = next(iter(waiting.items()))
            after = order - first.order
            if after < _BATCHES * batch_size and total - first.total <= _PIXELS:
                break
            yield waiting.pop(oldest)
    yield from waiting.values()
