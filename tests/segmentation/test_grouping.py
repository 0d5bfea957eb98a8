# SPDX-License-Identifier: BSD-3-Clause
"""From outputs to objects: what goes in perfect comes out as the truth."""

import pytest
import torch
from scenes import CLASSES, THINGS, perfect_outputs, scenes

from maskattn_kernels.segmentation.data.sample import VOID
from maskattn_kernels.segmentation.model.grouping import group
from maskattn_kernels.segmentation.model.network import Outputs
from maskattn_kernels.segmentation.model.targets import renumbered


def outputs(center, offset=None, logits=None) -> Outputs:
    """Of one row of pixels, all of class 1 of 2 unless told otherwise."""
    center = torch.tensor(center).view(1, 1, 1, -1)
    width = center.shape[-1]
    if offset is None:
        offset = torch.zeros(1, 2, 1, width)
    if logits is None:
        logits = torch.tensor([0.0, 20.0]).view(1, 2, 1, 1).expand(1, 2, 1, width)
    return Outputs(logits, center, offset, None, {})


def pairs(a: torch.Tensor, b: torch.Tensor) -> set[tuple[int, int]]:
    return set(zip(a.flatten().tolist(), b.flatten().tolist(), strict=True))


@pytest.mark.parametrize("discs", [0, 1, 4, 9])
def test_perfect_outputs_group_back_to_the_truth(discs):
    batch = scenes(3, discs=discs)
    panoptic = group(perfect_outputs(batch), THINGS)
    known = batch["semantic"] != VOID
    assert torch.equal(panoptic.semantic[known], batch["semantic"][known])
    for image in range(3):
        truth, found = batch["instance"][image], panoptic.instance[image]
        matches = pairs(truth[known[image]], found[known[image]])
        numbers = truth[known[image]].unique()
        assert len(matches) == len(numbers), "one number for one object, and the other way round"
        assert all((a == 0) == (b == 0) for a, b in matches)
        for number, label, score in zip(
            range(1, 65), panoptic.labels[image], panoptic.scores[image], strict=True
        ):
            pixels = found == number
            assert (label != VOID) == pixels.any()
            assert score == 0 if label == VOID else score > 0.99
            assert not pixels.any() or (panoptic.semantic[image][pixels] == label).all()


def test_nothing_is_an_object():
    panoptic = group(outputs([0.05, 0.0, 0.09]), [1])
    assert panoptic.instance.sum() == 0
    assert (panoptic.labels == VOID).all() and (panoptic.scores == 0).all()
    stuff = group(outputs([1.0, 0.0, 0.0]), [0])
    assert stuff.instance.sum() == 0 and (stuff.labels == VOID).all()


def test_pixels_go_where_their_offset_points():
    offset = torch.zeros(1, 2, 1, 9)
    offset[0, 1, 0, 1] = 7.0  # against the nearer centre at 0
    found = group(outputs([1.0, 0, 0, 0, 0, 0, 0, 0, 0.9], offset), [1]).instance.flatten()
    assert found.tolist() == [1, 2, 1, 1, 1, 2, 2, 2, 2]


def test_majority_gives_the_class_and_its_sureness_the_score():
    logits = torch.zeros(1, 3, 1, 5)
    logits[0, 1, 0, :3] = 2.0
    logits[0, 2, 0, 3:] = 2.0
    panoptic = group(outputs([0.5, 0.0, 0.0, 0.0, 0.0], logits=logits), [1, 2])
    assert panoptic.semantic.flatten().tolist() == [1] * 5
    assert panoptic.labels[0, 0] == 1
    probability = logits.softmax(1)[0, 1, 0].mean()
    torch.testing.assert_close(panoptic.scores[0, 0], 0.5 * probability)


def test_of_equal_neighbours_one_is_the_centre():
    panoptic = group(outputs([0.0, 0.5, 0.5, 0.5, 0.0, 0.0]), [1])
    assert (panoptic.labels != VOID).sum() == 1


def test_more_centres_than_places_for_them():
    center = torch.zeros(1, 1, 64, 64)
    center[:, :, ::8, ::8] = torch.rand(8, 8) + 0.5
    logits = torch.zeros(1, 1, 64, 64)
    full = Outputs(logits, center, torch.zeros(1, 2, 64, 64), None, {})
    panoptic = group(full, [0], max_instances=10)
    assert panoptic.labels.shape == (1, 10) and (panoptic.labels == 0).all()
    assert panoptic.instance.unique().tolist() == list(range(1, 11))
    heights = center.flatten().sort(descending=True).values[:10].clamp_max(1)
    torch.testing.assert_close(panoptic.scores[0], heights)


def test_task_without_objects():
    semantic = torch.randn(2, CLASSES, 5, 7)
    panoptic = group(Outputs(semantic, None, None, None, {}), [])
    assert torch.equal(panoptic.semantic, semantic.argmax(1))
    assert panoptic.instance.sum() == 0 and panoptic.labels.shape == (2, 64)


def test_no_value_is_read_on_the_host():
    with torch.device("meta"):
        maps = [torch.empty(2, channels, 16, 16) for channels in (CLASSES, 1, 2)]
        panoptic = group(Outputs(*maps, None, {}), THINGS)
    assert panoptic.labels.shape == (2, 64)


def test_nan_outputs_are_no_objects_and_no_crash():
    maps = [torch.full((1, channels, 8, 8), float("nan")) for channels in (CLASSES, 1, 2)]
    panoptic = group(Outputs(*maps, None, {}), THINGS)
    assert (panoptic.instance == 0).all()


def test_bad_window():
    with pytest.raises(ValueError, match="window: expected an odd number from 1, got 4"):
        group(outputs([1.0]), [1], window=4)


def test_renumbering_keeps_the_order_and_the_zeros():
    instance = torch.tensor([[[5, 0], [2**40, 5]], [[0, 0], [0, 0]]])
    assert renumbered(instance).tolist() == [[[1, 0], [2, 1]], [[0, 0], [0, 0]]]
