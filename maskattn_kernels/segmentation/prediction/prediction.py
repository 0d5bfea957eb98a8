# SPDX-License-Identifier: BSD-3-Clause
"""`Prediction`: what a network says about one image."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from maskattn_kernels.segmentation.prediction.panels import Attended

__all__ = ["Prediction"]


@dataclass(frozen=True)
class Prediction:
    """What a network says about one image, at the size of its own input.

    Attributes:
        name: of the image.
        image: uint8 (H,W,3), as it was read.
        semantic: int64 (S,S), class numbers or 255 = void.
        instance: int64 (S,S), 0 = no object, else its number.
        labels: int64 (K,), the class of each object; object n is at place n - 1.
        scores: float32 (K,), how sure it is.
        attended: where each scale attends, by its name; empty where nobody asked for it.
    """

    name: str
    image: np.ndarray
    semantic: np.ndarray
    instance: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    attended: dict[str, Attended] = field(default_factory=dict)
