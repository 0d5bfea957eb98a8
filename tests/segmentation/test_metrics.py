# SPDX-License-Identifier: BSD-3-Clause
"""mIoU, PQ and AP: cases counted by hand, ground truth as prediction, and the libraries' own."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.detection import PanopticQuality

from maskattn_kernels.segmentation.data.digit_scenes import DigitScenes
from maskattn_kernels.segmentation.data.sample import VOID, Classes
from maskattn_kernels.segmentation.model.grouping import Panoptic
from maskattn_kernels.segmentation.scoring.metrics import SegmentationMetrics
from maskattn_kernels.segmentation.scoring.panoptic_quality import ClassQuality

CLASSES = Classes(
    ("sky", "car", "sea", "dog"), (False, True, False, True), ((0, 0, 0),) * 4, (3, 10, 4, 7)
)
SKY, CAR, SEA, DOG = range(4)


def predict(semantic, instance=None, labels=(), scores=()) -> Panoptic:
    semantic = torch.as_tensor(semantic)
    instance = torch.zeros_like(semantic) if instance is None else torch.as_tensor(instance)
    return Panoptic(
        semantic[None],
        instance[None],
        torch.tensor([[*labels, VOID]]),
        torch.tensor([[*scores, 0.0]]),
    )


def truth(semantic, instance=None) -> dict[str, Tensor]:
    prediction = predict(semantic, instance)
    return {"semantic": prediction.semantic, "instance": prediction.instance}


def scores(prediction: Panoptic, batch: dict, task: str = "panoptic") -> SegmentationMetrics:
    metrics = SegmentationMetrics(CLASSES, task)
    metrics.update(prediction, batch)
    return metrics


def test_labels_as_prediction_score_100() -> None:
    scenes = DigitScenes("val", count=12)
    metrics = SegmentationMetrics(scenes.classes, "panoptic")
    for index in range(len(scenes)):
        scene = scenes[index]
        numbers = range(1, int(scene.instance.max()) + 1)
        labels = [int(scene.semantic[scene.instance == k][0]) for k in numbers]
        maps = scene.semantic.astype(np.int64), scene.instance.astype(np.int64)
        metrics.update(predict(*maps, labels, [0.9] * len(labels)), truth(*maps))
    assert metrics.compute() == pytest.approx(
        dict.fromkeys(("mIoU", "PQ", "SQ", "RQ", "AP", "AP50"), 100.0)
    )
    assert metrics.per_class()["brick"] | {"AP": 0, "AP50": 0} == {
        "IoU": 100.0, "PQ": 100.0, "SQ": 100.0, "RQ": 100.0, "AP": 0, "AP50": 0,
    }  # fmt: skip
    metrics.reset()
    assert not metrics.precision.images


def test_miou_by_hand() -> None:
    """One confusion matrix over two batches; void is left out; absent classes too."""
    metrics = SegmentationMetrics(CLASSES, "semantic")
    metrics.update(predict([[SKY, SKY, SKY, SEA]]), truth([[SKY, SKY, SEA, VOID]]))
    metrics.update(predict([[SEA, VOID, SEA, SEA]]), truth([[SEA, SEA, SEA, SEA]]))
    table = metrics.per_class()
    assert table["sky"]["IoU"] == pytest.approx(100 * 2 / 3)
    assert table["sea"]["IoU"] == pytest.approx(100 * 3 / 5), "predicted void is wrong"
    assert np.isnan(table["car"]["IoU"])
    assert metrics.compute() == {"mIoU": pytest.approx(100 * (2 / 3 + 3 / 5) / 2)}


def test_pq_by_hand() -> None:
    true = truth([[CAR] * 4 + [SKY] * 4], [[1, 1, 1, 1, 0, 0, 0, 0]])
    found = predict([[CAR] * 3 + [SKY] * 5], [[1, 1, 1, 0, 0, 0, 0, 0]], [CAR], [0.5])
    table = scores(found, true).per_class()
    assert table["car"]["PQ"] == pytest.approx(75) and table["sky"]["PQ"] == pytest.approx(80)
    assert table["car"]["RQ"] == 100


@pytest.mark.parametrize("missed", [VOID, CAR])
def test_an_object_lost_in_void_is_missed(missed: int) -> None:
    """torchmetrics alone would leave it out; a thing pixel without an object counts as void."""
    true = truth([[CAR, CAR, SKY, SKY]], [[1, 1, 0, 0]])
    metrics = scores(predict([[missed, missed, SKY, SKY]]), true)
    assert metrics.per_class()["car"]["PQ"] == 0
    assert metrics.compute()["PQ"] == pytest.approx(50)


def test_a_find_on_void_counts_for_nothing() -> None:
    true = truth([[CAR, CAR, SKY, VOID, VOID, VOID]], [[1, 1, 0, 0, 0, 0]])
    found = predict([[CAR, CAR, SKY, DOG, DOG, DOG]], [[1, 1, 0, 2, 2, 2]], [CAR, DOG], [0.9, 1])
    assert list(scores(found, true).compute().values()) == pytest.approx([100] * 6)


def test_pq_counts_as_torchmetrics() -> None:
    """On random segments, where no void is predicted."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 12, (8, 4, 4), generator=rng)
    blocks = coarse.repeat_interleave(3, 1).repeat_interleave(3, 2)
    flips = torch.rand(blocks.shape, generator=rng) < 0.3
    other = torch.where(flips, torch.randint(0, 12, blocks.shape, generator=rng), blocks)
    target = torch.stack([blocks % 4, blocks // 4 + 1], dim=-1)
    target[..., 0][torch.rand(blocks.shape, generator=rng) < 0.1] = VOID
    preds = torch.stack([other % 4, other // 4 + 1], dim=-1)
    library = PanopticQuality(
        {CAR, DOG}, {SKY, SEA}, return_per_class=True, return_sq_and_rq=True
    )  # fmt: skip
    library.update(preds, target)
    ours = ClassQuality(CLASSES)
    ours.update(preds, target)
    expected = library.compute()[ours.place]
    assert 0.2 < expected[:, 0].mean() < 0.9
    torch.testing.assert_close(ours.compute(), expected)


def test_ap_by_hand() -> None:
    """Two cars, one found exactly with the lower score, one find beside: AP = precision 1/2 up to
    recall 1/2."""
    true = truth([[CAR, CAR, SKY, SKY, CAR, CAR]], [[1, 1, 0, 0, 2, 2]])
    found = predict(
        [[CAR, CAR, CAR, CAR, SKY, SKY]], [[1, 1, 2, 2, 0, 0]], [CAR, CAR], [0.5, 0.9]
    )  # fmt: skip
    metrics = scores(found, true, "instance")
    recalls_up_to_half = 51  # of 101
    assert metrics.compute()["AP"] == pytest.approx(100 * 0.5 * recalls_up_to_half / 101)
    assert np.isnan(metrics.per_class()["dog"]["AP"])


def test_ap_thresholds() -> None:
    """IoU 0.75 passes 6 of the 10 thresholds."""
    true = truth([[CAR] * 4 + [SKY]], [[1, 1, 1, 1, 0]])
    found = predict([[CAR] * 3 + [SKY] * 2], [[1, 1, 1, 0, 0]], [CAR], [0.5])
    metrics = scores(found, true, "instance").compute()
    expected = {"mIoU": 62.5, "AP": 60, "AP50": 100}
    assert metrics == pytest.approx(expected)


def test_nothing_found_scores_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    true = truth([[CAR, CAR, SKY]], [[1, 1, 0]])
    assert scores(predict([[SKY, SKY, SKY]]), true).compute()["AP"] == 0
    assert capsys.readouterr().out == "", "pycocotools prints nothing"


def test_states_of_processes_add_up() -> None:
    """As torchmetrics does over processes: states are concatenated or summed, then computed."""
    true = truth([[CAR, CAR, SKY]], [[1, 1, 0]])
    good = predict([[CAR, CAR, SKY]], [[1, 1, 0]], [CAR], [0.9])
    bad = predict([[SKY, SKY, SKY]])
    whole = SegmentationMetrics(CLASSES)
    parts = [SegmentationMetrics(CLASSES) for _ in range(2)]
    for part, prediction in zip(parts, (good, bad), strict=True):
        whole.update(prediction, true)
        part.update(prediction, true)
    for name in ("iou", "quality", "precision"):
        first, second = (getattr(part, name) for part in parts)
        first._reduce_states(second.metric_state)
        first._update_count = 2
    assert parts[0].compute() == pytest.approx(whole.compute())


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"task: expected one of .*, got 'depth'"):
        SegmentationMetrics(CLASSES, "depth")
    with pytest.raises(ValueError, match=r"prediction\.semantic: expected the shape"):
        scores(predict([[SKY]]), truth([[SKY, SKY]]))


def test_ap_counts_every_object_of_a_crowd() -> None:
    """COCO's own limit is 100 objects an image; a perfect answer must be perfect with 150 too."""
    instance = torch.arange(300).reshape(10, 30) // 2 + 1
    semantic = torch.full_like(instance, CAR)
    found = predict(semantic, instance, [CAR] * 150, torch.linspace(0.9, 0.1, 150).tolist())
    assert scores(found, truth(semantic, instance), "instance").compute()["AP"] == 100


@pytest.mark.parametrize("number", [4, 29, 256, -1])
def test_numbers_of_no_class_are_refused(number: int) -> None:
    good, bad = [[SKY, CAR, VOID]], [[SKY, number, VOID]]
    expected = rf"expected class numbers from 0 to 3, or 255 for void, got {number}$"
    with pytest.raises(ValueError, match=rf'^batch\["semantic"\]: {expected}'):
        scores(predict(good), truth(bad), "semantic")
    with pytest.raises(ValueError, match=rf"^prediction\.semantic: {expected}"):
        scores(predict(bad), truth(good), "semantic")


def test_labelled_pixels() -> None:
    metrics = scores(predict([[SKY, SKY, CAR, DOG]]), truth([[SKY, CAR, CAR, VOID]]), "semantic")
    assert metrics.labelled_pixels() == {"sky": 1, "car": 2, "sea": 0, "dog": 0}
