# SPDX-License-Identifier: BSD-3-Clause
"""Does the drift warning come when it should? A network of CamVid on changed and other images.

    python -m bench.real.drift --checkpoint BEST     the table, into drift.json and on stdout

The checkpoint keeps what the images of its training are like; checkpoints/camvid-10g is one.
Images are changed in memory, at their own size. Where there are labels, mIoU tells what it costs.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from bench.real.plan import DATA
from bench.real.tables import DRIFT, drift_table
from maskattn_kernels.segmentation import (
    Checkpoint,
    Sample,
    SegmentationDataset,
    evaluate,
    open_dataset,
)
from maskattn_kernels.segmentation.drift import Drift, Reference

GROUP = 10  # images of a small folder

Change = Callable[[np.ndarray], np.ndarray]


def _blurred(sigma: float) -> Change:
    blur = ImageFilter.GaussianBlur(sigma)
    return lambda image: np.asarray(Image.fromarray(image).filter(blur))


def _darkened(gain: float) -> Change:
    return lambda image: (image * gain).astype(np.uint8)


def _noisy(sigma: float) -> Change:
    def change(image: np.ndarray) -> np.ndarray:
        noise = np.random.default_rng(0).normal(0, sigma, image.shape)
        return np.clip(image + noise, 0, 255).astype(np.uint8)

    return change


def _in_fog(image: np.ndarray) -> np.ndarray:
    return (0.4 * image + 0.6 * 200).astype(np.uint8)


def _grey(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).convert("L").convert("RGB"))


#: What is done to the validation images of CamVid, by the name of the row.
CHANGES: dict[str, Change] = {
    "blurred, sigma 1": _blurred(1),
    "blurred, sigma 2": _blurred(2),
    "blurred, sigma 4": _blurred(4),
    "darkened to 0.7": _darkened(0.7),
    "darkened to 0.5": _darkened(0.5),
    "darkened to 0.25": _darkened(0.25),
    "noise, sigma 15": _noisy(15),
    "noise, sigma 40": _noisy(40),
    "fog": _in_fog,
    "grey": _grey,
    "red and blue exchanged": lambda image: np.ascontiguousarray(image[..., ::-1]),
}


class Changed:
    """A data set whose images are changed."""

    def __init__(self, dataset: SegmentationDataset, change: Change) -> None:
        self.dataset, self.change, self.classes = dataset, change, dataset.classes

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        sample = self.dataset[index]
        return replace(sample, image=self.change(sample.image), file=None)


class Recorded(Drift):
    """A drift that also keeps the statistics of each image."""

    def __init__(self, reference: Reference) -> None:
        super().__init__(reference)
        self.rows: list[Mapping[str, float]] = []

    def count(self, name: str, statistics: Mapping[str, float]) -> None:
        super().count(name, statistics)
        self.rows.append(statistics)


def measured(checkpoint: Checkpoint, dataset: SegmentationDataset) -> dict[str, Any]:
    """What the checkpoint's reference says of a data set, as a whole and in groups of 10 images.

    Raises:
        ValueError: the checkpoint has no reference.
    """
    reference = checkpoint.reference
    if reference is None:
        raise ValueError("checkpoint: it has no reference; train it with this version")
    drift, miou = Recorded(reference), None
    if dataset.classes.names == checkpoint.classes.names:
        scores = evaluate(checkpoint, dataset, measured=True, each=drift.add)
        miou = round(scores["original size"]["mean"]["mIoU"], 1)
    else:
        reads = (partial(dataset.__getitem__, index) for index in range(len(dataset)))
        for found in checkpoint.segment_stream(reads, measured=True):
            drift.add(found)
    report = drift.report()
    groups = [drift.rows[i : i + GROUP] for i in range(0, len(drift.rows) - GROUP + 1, GROUP)]
    alarms = [_drifted(reference, group) for group in groups]
    return {
        "images": report["images"],
        "mIoU": miou,
        "unusual": report["unusual"],
        "drifted": report["drifted"],
        "groups": len(groups),
        "groups that drifted": sum(alarms),
        "why": report["why"],
    }


def _drifted(reference: Reference, rows: Sequence[Mapping[str, float]]) -> bool:
    drift = Drift(reference)
    for number, statistics in enumerate(rows):
        drift.count(str(number), statistics)
    return drift.report()["drifted"]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help="of a training on CamVid")
    given = parser.parse_args(argv)
    checkpoint = Checkpoint.from_pretrained(given.checkpoint)
    val, train = (open_dataset("folder", DATA / "camvid", split) for split in ("val", "train"))
    sets: dict[str, SegmentationDataset] = {
        "CamVid, val": val,
        "CamVid, train": train,
        "nuclei": open_dataset("folder", DATA / "nuclei", "val"),
        **{name: Changed(val, change) for name, change in CHANGES.items()},
    }
    rows = {}
    for name, dataset in sets.items():
        rows[name] = measured(checkpoint, dataset)
        print(name, json.dumps(rows[name]), file=sys.stderr, flush=True)
    DRIFT.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(drift_table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
