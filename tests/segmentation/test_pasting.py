# SPDX-License-Identifier: BSD-3-Clause
"""Half of what one training frame shows, pasted into another."""

import numpy as np
import pytest
import torch

from maskattn_kernels.segmentation.data.augmentation import Augmentation, chosen_augmentation
from maskattn_kernels.segmentation.data.batches import Batches
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.frame import Frame
from maskattn_kernels.segmentation.data.pasting import pasted
from maskattn_kernels.segmentation.data.sample import VOID

SIZE = (12, 16)


def frame(first_class: int, objects: int, grey: int) -> Frame:
    """Columns of two classes of stuff, of one class with objects, and of void."""
    semantic = np.full(SIZE, VOID, np.uint8)
    instance = np.zeros(SIZE, np.int32)
    semantic[:, :4], semantic[:, 4:8] = first_class, first_class + 1
    semantic[:, 8 : 8 + objects] = first_class + 2
    instance[:, 8 : 8 + objects] = np.arange(1, objects + 1)
    return Frame(np.full((*SIZE, 3), grey, np.uint8), semantic, instance)


@pytest.mark.parametrize("seed", range(20))
def test_half_of_the_parts_is_taken_each_as_a_whole(seed) -> None:
    onto, source = frame(10, 2, grey=1), frame(20, 4, grey=2)
    found = pasted(onto, source, np.random.default_rng(seed))
    taken = (found.image == 2).all(-1)
    assert taken[0].sum() in (3, 6, 9)  # of two parts of 4 columns and four of 1: three parts
    np.testing.assert_array_equal(taken, np.broadcast_to(taken[0], SIZE))
    np.testing.assert_array_equal(found.semantic, np.where(taken, source.semantic, onto.semantic))
    assert VOID not in source.semantic[taken]
    for first, last in ((0, 4), (4, 8)):
        assert taken[0, first:last].all() or not taken[0, first:last].any()
    ours, theirs = found.instance[~taken], found.instance[taken]
    np.testing.assert_array_equal(ours, onto.instance[~taken])
    np.testing.assert_array_equal(theirs > 0, source.instance[taken] > 0)
    assert not np.isin(theirs[theirs > 0], onto.instance).any(), "an object of each has one number"
    objects = taken & (source.instance > 0)
    assert len(np.unique(found.instance[objects])) == len(np.unique(source.instance[objects]))


def test_every_part_is_taken_at_times_and_left_at_others() -> None:
    onto, source = frame(10, 2, grey=1), frame(20, 4, grey=2)
    draws = [pasted(onto, source, np.random.default_rng(seed)).image[0, :, 0] for seed in range(60)]
    often = (np.array(draws) == 2).mean(0)
    assert (often[:12] > 0.25).all() and (often[:12] < 0.75).all() and not often[12:].any()


def test_the_given_frames_stay_as_they_are() -> None:
    onto, source = frame(10, 2, grey=1), frame(20, 4, grey=2)
    pasted(onto, source, np.random.default_rng(0))
    for given, same in ((onto, frame(10, 2, grey=1)), (source, frame(20, 4, grey=2))):
        for name in ("image", "semantic", "instance"):
            np.testing.assert_array_equal(getattr(given, name), getattr(same, name))


def test_a_frame_without_labels_has_nothing_to_paste() -> None:
    onto, source = frame(10, 2, grey=1), frame(20, 4, grey=2)
    source.semantic[:] = VOID
    found = pasted(onto, source, np.random.default_rng(0))
    np.testing.assert_array_equal(found.image, onto.image)


def batch(**options) -> dict:
    batches = Batches("digit-scenes", count=6, batch_size=6, size=64, seed=3, **options)
    return next(iter(batches.train_loader(batches=1)))


def test_training_images_have_parts_of_others_as_often_as_asked() -> None:
    plain, never = batch(), batch(augment={"paste": 0.0})
    always = batch(augment={"paste": 1.0})
    assert torch.equal(plain["image"], never["image"])
    assert torch.equal(plain["index"], always["index"])
    changed = (plain["image"] != always["image"]).flatten(1).any(1)
    assert changed.sum() >= 5, "an image may be pasted into itself"
    assert torch.equal(always["image"], batch(augment={"paste": 1.0}, workers=2)["image"])


@pytest.mark.parametrize("value", [-0.1, 1.5, True, "often"])
def test_a_share_that_is_none_is_refused(value) -> None:
    with pytest.raises(DataError, match=r"^augment: expected a number from 0 to 1 for paste, got"):
        chosen_augmentation({"paste": value}, Augmentation())
