# SPDX-License-Identifier: BSD-3-Clause
"""The order of training and of validation: every image in turn, resumable, shared by processes."""

from itertools import chain

import pytest

from maskattn_kernels.segmentation.data.order import (
    PADDING,
    RunOrder,
    ValidationOrder,
)


def indices(order: RunOrder) -> list[int]:
    return [draw.index for batch in order for draw in batch]


@pytest.mark.parametrize(("images", "batch_size"), [(7, 3), (3, 8), (8, 4), (1, 2)])
def test_every_image_comes_once_an_epoch(images: int, batch_size: int) -> None:
    order = RunOrder(images, batch_size, batches=4 * images, seed=3)
    assert len(order) == 4 * images
    stream = list(chain.from_iterable(order))
    assert len(stream) == 4 * images * batch_size
    for epoch in range(4 * batch_size):
        draws = stream[epoch * images : (epoch + 1) * images]
        assert {draw.epoch for draw in draws} == {epoch}
        assert sorted(draw.index for draw in draws) == list(range(images))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [
        indices(RunOrder(32, 8, batches=8, seed=seed))[32 * epoch : 32 * (epoch + 1)]
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    assert all(order != sorted(order) for order in orders)
    assert indices(RunOrder(32, 8, batches=4, seed=1)) == orders[2], "the same for the same seed"


def test_the_order_of_a_run_never_changes() -> None:
    """Saved runs are resumed, and published ones repeated, by later versions."""
    assert indices(RunOrder(5, 4, batches=3, seed=7)) == [3, 0, 1, 4, 2, 4, 2, 1, 3, 0, 4, 1]


@pytest.mark.parametrize("start", [0, 1, 4, 9, 10])
def test_a_resumed_run_gets_the_rest(start: int) -> None:
    whole = list(RunOrder(7, 3, batches=10, seed=3))
    assert list(RunOrder(7, 3, batches=10, seed=3, start=start)) == whole[start:]


@pytest.mark.parametrize("images", [1, 4, 7, 19])
@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_batches_of_one(images: int, world: int) -> None:
    whole = list(RunOrder(images, 4 * world, batches=5, seed=3))
    shares = [
        list(RunOrder(images, 4, batches=5, seed=3, rank=rank, world=world))
        for rank in range(world)
    ]
    for number, batch in enumerate(whole):
        for rank, share in enumerate(shares):
            assert share[number] == batch[rank::world]


@pytest.mark.parametrize(("images", "world"), [(5, 1), (5, 2), (6, 2), (2, 4)])
def test_validation_shows_every_image_once_and_pads(images: int, world: int) -> None:
    orders = [ValidationOrder(images, rank, world) for rank in range(world)]
    shares = [[draw.index for draw in order] for order in orders]
    assert {len(share) for share in shares} == {len(orders[0])} == {-(-images // world)}
    drawn = list(chain.from_iterable(zip(*shares, strict=True)))
    assert drawn == [*range(images), *[PADDING] * (len(drawn) - images)]
