# SPDX-License-Identifier: BSD-3-Clause
"""The part of the demo with a trained network: nuclei in pictures that it was not trained on."""

from __future__ import annotations

from PIL import Image

from maskattn_kernels.segmentation.checkpoint_files import SHIPPED
from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.prediction.panels import draw_panel

NETWORK = "nuclei"
#: Pictures beside the network, of its validation images (CC0).
PICTURES = ("fluorescence", "stained", "tissue")


def found_nuclei() -> tuple[list[Image.Image], int]:
    """A panel of each picture with its nuclei, and how many were found in all."""
    files = [SHIPPED / NETWORK / f"{name}.jpg" for name in PICTURES]
    results = Checkpoint.from_pretrained(NETWORK).segment(files, attended=True)
    return [draw_panel(found) for found in results], sum(len(found.objects) for found in results)
