# SPDX-License-Identifier: BSD-3-Clause
"""The part of the demo that learns: a small network on digit scenes, for about two minutes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.data.digit_scenes import DigitScenes
from maskattn_kernels.segmentation.prediction.panels import draw_panel
from maskattn_kernels.segmentation.training.command import run
from maskattn_kernels.segmentation.training.csv_log import read_log
from maskattn_kernels.segmentation.training.options import parse

#: Options of ``maskattn train`` besides the folder.
OPTIONS: tuple[str, ...] = ("--config", "digit-scenes-demo")
#: Validation scenes of which the page shows a panel.
PANELS = 3


@dataclass(frozen=True)
class Trained:
    """What the training left.

    Attributes:
        scores: at the end, 0 to 100, by name.
        log: rows of the training log: ``step``, ``loss/..`` and ``keep/..``.
        panels: pictures of scenes that it was not trained on.
    """

    scores: dict[str, float]
    log: list[dict[str, float]]
    panels: list[Image.Image]


def learn(out: Path, step: Callable[[str], None]) -> Trained:
    """Train from scratch, and predict scenes that the network has not seen.

    Args:
        out: folder of the run; what an earlier demo left there is removed.
        step: told what was done.
    """
    shutil.rmtree(out, ignore_errors=True)
    config = parse([*OPTIONS, "--out", str(out)])
    scores = run(config)
    step(f"trained {config.steps} steps on digit scenes: mIoU {scores['mIoU']:.1f}")
    checkpoint = Checkpoint.from_pretrained(out / "final")
    scenes = DigitScenes(split="val", count=PANELS)
    results = checkpoint.segment([scenes[i] for i in range(PANELS)], attended=True)
    panels = [draw_panel(found, found.sample.semantic) for found in results]
    step("scenes predicted that it has not seen")
    return Trained(scores, read_log(out / "train.csv"), panels)
