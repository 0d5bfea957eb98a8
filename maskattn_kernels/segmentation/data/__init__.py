# SPDX-License-Identifier: BSD-3-Clause
"""Data sets: generated scenes, published layouts, own images; all as `SegmentationDataset`."""

from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.opening import NAMES, open_dataset

__all__ = ["NAMES", "DataError", "open_dataset"]
