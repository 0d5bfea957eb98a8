# SPDX-License-Identifier: BSD-3-Clause
"""Images with rare classes come more often, by the labels, in a repeatable order."""

import math
from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from segmentation_runs import tiny_arguments

from maskattn_kernels.segmentation.data.batches import Batches
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.label_counts import class_pixels, image_weights
from maskattn_kernels.segmentation.data.order import Draw, RunOrder
from maskattn_kernels.segmentation.data.sample import VOID, Classes, Sample
from maskattn_kernels.segmentation.training import command as training
from maskattn_kernels.segmentation.training.options import ConfigError

WEIGHTS = np.array([1.0, 0.0, 5.0, 1.0, 1.5, 0.2, 3.3])


def drawn(order: RunOrder) -> list[Draw]:
    return list(chain.from_iterable(order))


def test_the_weight_of_an_image_is_that_of_its_rarest_class():
    pixels = np.array([[9000, 990, 10], [9991, 0, 9], [0, 0, 0], [5000, 0, 0], [500, 400, 0]])
    total = pixels.sum()
    for row, weight in zip(pixels, image_weights(pixels), strict=True):
        seen = [c for c in range(3) if row[c] and row[c] >= 0.001 * row.sum()]
        expected = max((math.sqrt(total / pixels[:, c].sum()) for c in seen), default=0.0)
        lowest = math.sqrt(total / pixels[:, 0].sum())
        assert weight == pytest.approx(min(expected, 10 * lowest))
    assert image_weights(pixels)[0] == pytest.approx(10 * lowest), "or the rarest come always"


def test_without_labels_there_is_nothing_to_balance():
    with pytest.raises(DataError, match=r"^balance: no training image has a labelled pixel$"):
        image_weights(np.zeros((2, 3), dtype=np.int64))


def test_an_epoch_has_each_image_as_often_as_its_weight_says():
    order = RunOrder(7, 7, batches=300, seed=1, weights=WEIGHTS)
    expected = 7 * WEIGHTS / WEIGHTS.sum()
    total = np.zeros(7)
    for epoch, batch in enumerate(order):
        counts = np.bincount([draw.index for draw in batch], minlength=7)
        assert ((counts >= np.floor(expected)) & (counts <= np.ceil(expected))).all()
        assert {draw.epoch for draw in batch} == {epoch}
        for index in {draw.index for draw in batch}:
            again = sorted(draw.again for draw in batch if draw.index == index)
            assert again == list(range(counts[index])), "each draw has a number of its own"
        total += counts
    np.testing.assert_allclose(total / 300, expected, atol=0.12)
    assert total[1] == 0


def test_equal_weights_draw_each_image_once():
    order = RunOrder(9, 9, batches=20, seed=2, weights=np.full(9, 0.3))
    for batch in order:
        assert sorted(draw.index for draw in batch) == list(range(9))
        assert not any(draw.again for draw in batch)


def test_epochs_have_orders_of_their_own():
    batches = [
        [draw.index for draw in batch]
        for batch in RunOrder(64, 64, batches=4, seed=2, weights=np.linspace(1, 3, 64))
    ]
    assert all(a != b and sorted(a) != sorted(b) for a, b in pairwise(batches))
    assert all(batch != sorted(batch) for batch in batches)


def test_the_order_of_a_run_never_changes():
    """Saved runs are resumed, and published ones repeated, by later versions."""
    order = RunOrder(7, 7, batches=2, seed=7, weights=WEIGHTS)
    assert [draw.index for draw in drawn(order)] == [2, 3, 6, 6, 2, 2, 4, 2, 2, 6, 3, 6, 4, 2]


@pytest.mark.parametrize("start", [0, 1, 4, 9, 10])
def test_a_resumed_run_gets_the_rest(start):
    whole = list(RunOrder(7, 3, batches=10, seed=3, weights=WEIGHTS))
    assert list(RunOrder(7, 3, batches=10, seed=3, start=start, weights=WEIGHTS)) == whole[start:]


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_batches_of_one(world):
    whole = list(RunOrder(7, 4 * world, batches=5, seed=3, weights=WEIGHTS))
    for rank in range(world):
        share = RunOrder(7, 4, batches=5, seed=3, rank=rank, world=world, weights=WEIGHTS)
        assert list(share) == [batch[rank::world] for batch in whole]


class Rare:
    """Ten images of class 0, of which the last shows class 1 too."""

    classes = Classes(("a", "b"), (False, False), ((0, 0, 9), (0, 9, 0)), (0, 1))

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Sample:
        semantic = np.zeros((8, 8), np.uint8)
        if index == 9:
            semantic[:4] = 1
        image = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
        return Sample(str(index), image, semantic)


def rare(**options) -> Batches:
    batches = Batches("digit-scenes", size=8, batch_size=10, balance=True, **options)
    batches.train_with(Rare())
    return batches


def test_what_comes_twice_in_an_epoch_is_changed_in_two_ways():
    batch = next(iter(rare().train_loader(batches=1)))
    places = (batch["index"] == 9).nonzero().flatten().tolist()
    assert len(places) >= 2
    images = [batch["image"][place] for place in places]
    assert all(not torch.equal(a, b) for a, b in pairwise(images))


def test_balanced_batches_are_the_same_for_workers_processes_and_after_a_resume():
    whole = list(rare().train_loader(batches=4))
    again = list(rare(workers=2).train_loader(batches=4, start=1))
    for one, other in zip(whole[1:], again, strict=True):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["index"], other["index"])
    half = rare()
    half.batch_size = 5
    shares = [list(half.train_loader(batches=4, rank=rank, world=2)) for rank in (0, 1)]
    for number, batch in enumerate(whole):
        for rank in (0, 1):
            assert torch.equal(shares[rank][number]["image"], batch["image"][rank::2])


def test_only_images_in_use_are_counted_and_drawn():
    batches = Batches("digit-scenes", count=12, size=16, batch_size=4, limit=3, balance=True)
    used = batches.labelled()
    np.testing.assert_array_equal(
        batches.class_pixels(), class_pixels(batches.dataset("train"), used)
    )
    loaded = torch.cat([batch["index"] for batch in batches.train_loader(batches=6)])
    assert set(loaded.tolist()) <= set(used.tolist())


def test_the_labels_are_counted_once_for_each_set(monkeypatch):
    batches = Batches("digit-scenes", count=4, size=16, balance=True)
    first = batches.class_pixels()
    assert batches.class_pixels() is first
    batches.train_with(Rare())  # as self-training does
    assert batches.class_pixels().shape == (10, 2)


def test_images_that_are_all_void_are_never_drawn():
    class Unsure(Rare):
        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            void = np.full((8, 8), VOID, np.uint8)
            return Sample(sample.name, sample.image, void if index < 5 else sample.semantic)

    batches = rare()
    batches.train_with(Unsure())
    loaded = torch.cat([batch["index"] for batch in batches.train_loader(batches=8)])
    assert set(loaded.tolist()) == {5, 6, 7, 8, 9}


def test_a_run_tells_what_it_counts(tmp_path, capsys):
    more = ("--data.balance", "true", "--data.limit", "6")
    training.main(tiny_arguments(tmp_path / "run", *more, steps=1))
    told = capsys.readouterr().err
    assert "counting the pixels of the classes of 6 images\nrun: 1 steps" in told


def test_a_run_from_before_there_was_the_option_is_not_resumed_with_it(tmp_path):
    out = tmp_path / "run"
    training.main(tiny_arguments(out, steps=2))
    state = torch.load(out / "last.ckpt", weights_only=True)
    del state["run"]["data.balance"]
    torch.save(state, out / "last.ckpt")
    with pytest.raises(ConfigError, match=r"^data.balance: the run to resume has false, got true$"):
        training.main(tiny_arguments(out, "--ckpt_path", "last", "--data.balance", "true", steps=2))
