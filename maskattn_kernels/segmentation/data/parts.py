# SPDX-License-Identifier: BSD-3-Clause
"""Some of the samples of a data set."""

from collections.abc import Sequence

from maskattn_kernels.segmentation.data.sample import Sample, SegmentationDataset

__all__ = ["Part", "spread"]


class Part:
    """Some of the samples of a data set, as a data set.

    Args:
        dataset: that they are from.
        places: of the samples in it.

    Example:
        >>> from maskattn_kernels.segmentation.data.digit_scenes import DigitScenes
        >>> whole = DigitScenes("val", count=5)
        >>> part = Part(whole, [1, 4])
        >>> len(part), part[1].name == whole[4].name
        (2, True)
    """

    def __init__(self, dataset: SegmentationDataset, places: Sequence[int]) -> None:
        self.dataset, self.places, self.classes = dataset, places, dataset.classes

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[self.places[index]]


def spread(count: int, of: int) -> list[int]:
    """At most ``count`` places of a list ``of`` so many items, as far apart as can be.

    Example:
        >>> spread(3, 9), spread(5, 2), spread(2, 0)
        ([0, 4, 8], [0, 1], [])
    """
    count = min(count, of)
    return [round((of - 1) * k / max(1, count - 1)) for k in range(count)]
