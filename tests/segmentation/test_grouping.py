# SPDX-License-Identifier: BSD-3-Clause
"""From outputs to objects: what goes in perfect comes out as the truth."""

import pytest
import torch
from scenes import CLASSES, THINGS, perfect_outputs, scenes

from maskattn_kernels.segmentation.data.sample import VOID
from maskattn_kernels.segmentation.model.by_center import _nearest_of_all, _nearest_of_few
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
        pairs_of = zip(panoptic.labels[image], panoptic.scores[image], strict=True)
        for number, (label, score) in enumerate(pairs_of, start=1):
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
    panoptic = group(full, [0], max_objects=10)
    assert panoptic.labels.shape == (1, 10) and (panoptic.labels == 0).all()
    assert panoptic.instance.unique().tolist() == list(range(1, 11))
    heights = center.flatten().sort(descending=True).values[:10].clamp_max(1)
    torch.testing.assert_close(panoptic.scores[0], heights)


def test_task_without_objects():
    semantic = torch.randn(2, CLASSES, 5, 7)
    panoptic = group(Outputs(semantic, None, None, None, {}), [])
    assert torch.equal(panoptic.semantic, semantic.argmax(1))
    assert panoptic.instance.sum() == 0 and panoptic.labels.shape == (2, 0)


def test_no_value_is_read_on_the_host():
    with torch.device("meta"):
        maps = [torch.empty(2, channels, 16, 16) for channels in (CLASSES, 1, 2)]
        panoptic = group(Outputs(*maps, None, {}), THINGS, max_objects=64)
    assert panoptic.labels.shape == (2, 64)


@pytest.mark.parametrize("step", [1 / 8, None], ids=["equal distances", "any distances"])
def test_the_search_tree_finds_what_comparing_all_centres_finds(step):
    g = torch.Generator().manual_seed(1)
    size, count = 48, 90
    offset = torch.randn(3, 2, size, size, generator=g) * 9
    offset[0, :, :4] = 1e4  # far out of the image
    if step:
        offset = (offset / step).round() * step  # distances are exact, and often equal
    places = torch.stack([torch.randperm(size * size, generator=g)[:count] for _ in range(3)])
    exists = torch.arange(count).expand(3, -1) < torch.tensor([[count], [7], [0]])
    counted = torch.rand(3, size, size, generator=g) < 0.7
    few = _nearest_of_few(offset, exists, places, counted)
    assert torch.equal(few, _nearest_of_all(offset, exists, places, counted))
    assert few[0].max() > 64 and torch.equal(few[:2] > 0, counted[:2]) and not few[2].any()


def test_offsets_that_are_not_numbers_leave_pixels_where_they_are():
    offset = torch.zeros(1, 2, 1, 9)
    offset[..., :3] = torch.tensor([float("nan"), float("inf"), float("-inf")])
    found = group(outputs([1.0, 0, 0, 0, 0, 0, 0, 0, 0.9], offset), [1]).instance.flatten()
    assert found[0] == 1 and (found > 0).all()


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
