# SPDX-License-Identifier: BSD-3-Clause
"""The files that ``maskattn predict`` leaves, written in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from maskattn_kernels.segmentation.atomic import WriteError
from maskattn_kernels.segmentation.coco_format import PanopticWriter
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.images import read_labels
from maskattn_kernels.segmentation.panels import draw_panel
from maskattn_kernels.segmentation.sample import VOID, Classes

if TYPE_CHECKING:
    from maskattn_kernels.segmentation.predict import Prediction

__all__ = ["Writer", "resize_labels"]

THREADS = 2
FAST = 1  # zlib's level: label maps shrink well at any, and slower ones would hold up the network


def resize_labels(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """A label map (h,w) at another size: each pixel takes the nearest label.

    Example:
        >>> import numpy as np
        >>> from maskattn_kernels.segmentation.writing import resize_labels
        >>> resize_labels(np.array([[1, 2]]), 1, 4)
        array([[1, 1, 2, 2]])
    """
    rows = (np.arange(height) + 0.5) * labels.shape[0] / height
    columns = (np.arange(width) + 0.5) * labels.shape[1] / width
    return labels[np.ix_(rows.astype(np.intp), columns.astype(np.intp))]
