# SPDX-License-Identifier: BSD-3-Clause
"""Objects without learning: Otsu, distance transform, watershed; scored as networks are.

    python bench/real/classical.py --root NUCLEI              the row of the validation images
    python bench/real/classical.py --root NUCLEI --tune       the two numbers below, from train

It is what one writes with scikit-image in an hour: smoothed grey; Otsu's threshold of each image;
the smaller side of it is objects (dark images have bright nuclei, stained tissue dark ones); holes
filled, specks dropped; peaks of the smoothed distance to the border are the markers of a watershed.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.filters import gaussian, threshold_otsu
from skimage.morphology import remove_small_objects
from skimage.segmentation import watershed

from maskattn_kernels.segmentation import Sample, SegmentationDataset, open_dataset
from maskattn_kernels.segmentation.model.grouping import Panoptic
from maskattn_kernels.segmentation.scoring.metrics import SegmentationMetrics

RESULT = Path(__file__).with_suffix(".json")
#: Pixels between markers, and sigma of the smoothed distances: the best PQ on 100 training images.
APART, SMOOTH = 5, 2.0
SPECK = 20  # pixels


def segment(
    image: np.ndarray, apart: int = APART, smooth: float = SMOOTH
) -> tuple[np.ndarray, np.ndarray]:
    """The objects of an image.

    Args:
        image: uint8 (H,W,3).
        apart: pixels between two markers.
        smooth: sigma of the smoothed distances.

    Returns:
        their numbers int64 (H,W), 0 = none, and of each a score from 0 to 1: how far its grey is
        from the threshold.
    """
    grey = gaussian(image.mean(axis=2) / 255, 1)
    if np.ptp(grey) == 0:
        return np.zeros(grey.shape, np.int64), np.zeros(0)
    above = grey - threshold_otsu(grey)
    if (above > 0).mean() > 0.5:
        above = -above
    objects = ndimage.binary_fill_holes(above > 0)
    objects = remove_small_objects(objects, max_size=SPECK)
    distance = gaussian(ndimage.distance_transform_edt(objects), smooth)
    markers = np.zeros(grey.shape, np.int64)
    places = peak_local_max(distance, min_distance=apart, labels=objects, exclude_border=False)
    markers[tuple(places.T)] = np.arange(1, len(places) + 1)
    found = watershed(-distance, markers, mask=objects).astype(np.int64)
    areas = np.bincount(found.ravel(), minlength=len(places) + 1)[1:]
    sums = np.bincount(found.ravel(), above.ravel(), minlength=len(places) + 1)[1:]
    return found, (sums / np.maximum(areas, 1) / above.max()).clip(0, 1)


def score(
    dataset: SegmentationDataset, samples: Iterable[Sample], **options: float
) -> dict[str, float]:
    """Scores of the only thing of a data set, and mIoU, 0 to 100."""
    stuff, thing = 0, dataset.classes.things[0]
    metrics = SegmentationMetrics(dataset.classes)
    for sample in samples:
        found, scores = segment(sample.image, **options)
        semantic = np.where(found > 0, thing, stuff)
        labels = np.full(len(scores), thing)
        parts = (torch.from_numpy(part)[None] for part in (semantic, found, labels, scores))
        truth = {"semantic": sample.semantic, "instance": sample.instance}
        metrics.update(
            Panoptic(*parts),
            {name: torch.from_numpy(part.astype(np.int64))[None] for name, part in truth.items()},
        )
    own = metrics.per_class()[dataset.classes.names[thing]]
    return {"mIoU": metrics.compute()["mIoU"], **{n: own[n] for n in ("PQ", "AP", "AP50")}}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder of nuclei")
    parser.add_argument("--split", default="val", help="default val")
    parser.add_argument("--tune", action="store_true", help="try the numbers on training images")
    parser.add_argument("--out", type=Path, default=RESULT, help=f"JSON (default {RESULT.name})")
    given = parser.parse_args(argv)
    dataset = open_dataset("folder", given.root, "train" if given.tune else given.split)
    if given.tune:
        samples = [dataset[index] for index in range(100)]
        for apart, smooth in itertools.product((3, 5, 8, 12), (0.5, 1.0, 2.0)):
            print(apart, smooth, score(dataset, samples, apart=apart, smooth=smooth), flush=True)
        return 0
    row = score(dataset, (dataset[index] for index in range(len(dataset))))
    facts = {"method": "Otsu + watershed", "split": given.split, "images": len(dataset)}
    record = {**facts, **{name: round(value, 1) for name, value in row.items()}}
    given.out.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
