# SPDX-License-Identifier: BSD-3-Clause
"""Hundreds of objects of an image: all are learned, found and scored."""

import numpy as np
import pytest
import torch

from maskattn_kernels.segmentation.data.sample import Classes
from maskattn_kernels.segmentation.infer import Pipeline
from maskattn_kernels.segmentation.model.grouping import group
from maskattn_kernels.segmentation.model.network import Outputs, SegmentationNetwork
from maskattn_kernels.segmentation.model.targets import instance_targets
from maskattn_kernels.segmentation.scoring.metrics import SegmentationMetrics

CLASSES = Classes(("dish", "cell"), (False, True), ((0, 0, 0), (255, 0, 0)), (0, 1))


def cells(count: int, size: int = 128) -> np.ndarray:
    """Numbers of ``count`` squares of 3 x 3 pixels, on a grid."""
    instance = np.zeros((size, size), dtype=np.int32)
    places = [(y, x) for y in range(1, size - 3, 5) for x in range(1, size - 3, 5)]
    for number, (y, x) in enumerate(places[:count], start=1):
        instance[y : y + 3, x : x + 3] = number
    assert instance.max() == count
    return instance


def perfect(instance: torch.Tensor) -> Outputs:
    """What a network would say that has learned these objects."""
    semantic = (instance > 0).long()
    targets = instance_targets(semantic, instance, CLASSES.things, sigma=1.0)
    logits = torch.nn.functional.one_hot(semantic, 2).permute(0, 3, 1, 2) * 9.0
    return Outputs(logits, targets.center, targets.offset, None, {})


@pytest.mark.parametrize("count", [70, 300, 600])
def test_a_perfect_network_scores_all_objects(count):
    instance = torch.from_numpy(cells(count))[None]
    semantic = (instance > 0).long()
    found = group(perfect(instance), CLASSES.things, window=3)
    assert found.labels.shape == (1, count)
    assert len(torch.unique(found.instance)) == count + 1
    metrics = SegmentationMetrics(CLASSES)
    metrics.update(found, {"semantic": semantic, "instance": instance})
    scores = metrics.compute()
    assert scores["AP"] == pytest.approx(100) and scores["PQ"] == pytest.approx(100)


def test_targets_of_many_objects_are_those_of_each():
    count = 150
    instance = torch.from_numpy(cells(count))[None]
    together = instance_targets((instance > 0).long(), instance, [1])
    alone = torch.zeros_like(together.center)
    for number in range(1, count + 1):
        only = torch.where(instance == number, instance, 0)
        alone = torch.maximum(alone, instance_targets((only > 0).long(), only, [1]).center)
    assert torch.equal(together.center, alone)
    assert together.numbers.max() == count and together.center_counts.all()


def test_all_are_found_by_segment():
    instance = torch.from_numpy(cells(600))[None]
    pipeline = Pipeline(SegmentationNetwork(2, [1], width=4, depth=1), CLASSES, (128, 128), "fit")
    pipeline.network = lambda images: perfect(instance)
    found = pipeline.batch([np.zeros((128, 128, 3), np.uint8)])[0]
    assert len(found.objects) == 600
