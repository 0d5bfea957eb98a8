# SPDX-License-Identifier: BSD-3-Clause
"""Batches: the same for any number of workers, after a resume, and shared over processes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskattn_kernels.segmentation.data import DataError
from maskattn_kernels.segmentation.data.augmentation import Augmentation, fit
from maskattn_kernels.segmentation.data.batches import Batches
from maskattn_kernels.segmentation.data.order import PADDING, Order
from maskattn_kernels.segmentation.data.sample import VOID, Sample


def same(first: dict, second: dict) -> bool:
    return first["name"] == second["name"] and all(
        torch.equal(first[key], second[key]) for key in ("image", "semantic", "instance", "index")
    )


def test_a_batch() -> None:
    batches = Batches(batch_size=3, size=64, count=6)
    batch = next(iter(batches.train_dataloader()))
    assert batch["image"].shape == (3, 3, 64, 64) and batch["image"].dtype == torch.uint8
    for key in ("semantic", "instance"):
        assert batch[key].shape == (3, 64, 64) and batch[key].dtype == torch.int64
    assert batch["original_size"].tolist() == [[128, 128]] * 3
    assert batch["name"] == [f"train-{i:05d}" for i in batch["index"].tolist()]


def test_validation_is_in_order_and_as_it_is() -> None:
    batches = Batches(batch_size=2, count=5)
    found = list(batches.val_dataloader())
    assert [name for b in found for name in b["name"]] == [f"val-{i:05d}" for i in range(5)]
    scene = batches.dataset("val")[4]
    np.testing.assert_array_equal(found[2]["image"][0].permute(1, 2, 0).numpy(), scene.image)
    np.testing.assert_array_equal(found[2]["semantic"][0].numpy(), scene.semantic)


def test_workers_change_nothing() -> None:
    alone, helped = (
        list(Batches(batch_size=2, size=32, count=6, workers=w).train_dataloader()) for w in (0, 2)
    )
    assert len(alone) == 3
    assert all(same(a, b) for a, b in zip(alone, helped, strict=True))


def test_epochs_differ_and_seeds_too() -> None:
    def names(seed: int, epoch: int) -> list[str]:
        loader = Batches(batch_size=8, size=16, count=32, seed=seed).train_dataloader()
        loader.sampler.set_epoch(epoch)
        return [name for batch in loader for name in batch["name"]]

    assert sorted(names(0, 0)) == sorted(names(0, 1)) == sorted(names(1, 0))
    assert names(0, 0) == names(0, 0)
    assert names(0, 0) != names(0, 1) and names(0, 0) != names(1, 0)


@pytest.mark.parametrize("done", [0, 1, 3, 4])
def test_resume_goes_on_where_it_stopped(done: int) -> None:
    batches = Batches(batch_size=2, size=16, count=8)
    loader = batches.train_dataloader()
    loader.sampler.set_epoch(2)
    iterator = iter(loader)
    for _ in range(done):
        next(iterator)
    state = loader.state_dict()
    rest = list(iterator)
    again = batches.train_dataloader()
    again.load_state_dict(state)
    if done == 4:
        loader.sampler.set_epoch(3)
        rest = list(loader)
    resumed = list(again)
    assert len(resumed) == len(rest)
    assert all(same(a, b) for a, b in zip(resumed, rest, strict=True))
    assert len(again) == len(loader) == 4
    assert len(list(again)) == 4, "the next epoch is whole"


def share(order: Order, rank: int, world: int) -> list[int]:
    order.rank, order.num_replicas = rank, world
    return [draw.index for draw in order]


@pytest.mark.parametrize("size", [4, 9, 16, 19])
def test_two_processes_see_the_batches_of_one(size: int) -> None:
    whole = share(Order(size, batch_size=8, shuffle=True, seed=3), 0, 1)
    halves = [share(Order(size, batch_size=4, shuffle=True, seed=3), r, 2) for r in (0, 1)]
    assert len(whole) == max(8, size // 8 * 8)
    for start in range(0, len(whole), 8):
        both = halves[0][start // 2 : start // 2 + 4] + halves[1][start // 2 : start // 2 + 4]
        assert sorted(both) == sorted(whole[start : start + 8])


def test_validation_is_padded_with_void() -> None:
    halves = [share(Order(5, batch_size=2, shuffle=False), r, 2) for r in (0, 1)]
    assert halves == [[0, 2, 4], [1, 3, PADDING]]
    batches = Batches(batch_size=3, size=16, count=2)
    loader = batches.val_dataloader()
    loader.sampler.num_replicas, loader.sampler.rank = 4, 3
    batch = next(iter(loader))
    assert batch["index"].tolist() == [PADDING]
    assert (batch["semantic"] == VOID).all() and (batch["instance"] == 0).all()


def test_limits_are_nested() -> None:
    chosen = [set(Batches(limit=n, count=100).labelled()) for n in (10, 30, None)]
    assert chosen[0] < chosen[1] < chosen[2]
    assert [len(c) for c in chosen] == [10, 30, 100]
    few = Batches(limit=3, batch_size=8, size=16, count=100).train_dataloader()
    batch = next(iter(few))
    assert len(batch["name"]) == 8 and len(set(batch["name"])) == 3
    twins = [i for i, name in enumerate(batch["name"]) if name == batch["name"][0]]
    assert not torch.equal(*(batch["image"][i] for i in twins[:2])), "augmented anew each turn"


def coded(height: int, width: int) -> Sample:
    """A sample whose image tells the labels: red = class, green = object."""
    semantic = (np.arange(height * width).reshape(height, width) // 37 % 5).astype(np.uint8)
    instance = (semantic * 3).astype(np.int32)
    image = np.stack([semantic * 40, instance * 12, 0 * semantic], axis=-1).astype(np.uint8)
    return Sample("coded", image, semantic, instance)


@pytest.mark.parametrize("zoom", [(1.0, 1.0), (0.5, 0.5), (1.5, 1.5)])
@pytest.mark.parametrize("mirror", [True, False])
def test_labels_follow_the_image(zoom: tuple[float, float], mirror: bool) -> None:
    sample = Sample("big", *(np.repeat(np.repeat(a, 8, 0), 8, 1) for a in (
        coded(12, 16).image, coded(12, 16).semantic, coded(12, 16).instance)))  # fmt: skip
    augmentation = Augmentation(zoom, mirror, light=0.0)
    for seed in range(4):
        square = augmentation(sample, 64, np.random.default_rng(seed))
        known = square.semantic != VOID
        assert known.mean() == pytest.approx(min(1, zoom[0]) ** 2, abs=0.01)
        told = np.rint(square.image[..., 0] / 40) == square.semantic
        assert told[known].mean() > 0.75, "only borders of blocks may differ"
        assert (square.instance[~known] == 0).all()
        np.testing.assert_array_equal(square.instance[known], square.semantic[known] * 3)


def test_fit_resizes_any_shape_and_keeps_label_values() -> None:
    square = fit(coded(50, 23), 32)
    assert square.image.shape == (32, 32, 3)
    assert set(np.unique(square.semantic)) <= set(range(5))
    bare = fit(Sample("bare", coded(9, 9).image), 32)
    assert (bare.semantic == VOID).all() and (bare.instance == 0).all()


def test_predict_reads_a_folder_or_one_image(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg"):
        Image.new("RGB", (20, 10)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    folder = next(iter(Batches(predict=tmp_path, size=16).predict_dataloader()))
    assert folder["name"] == ["a", "b"] and folder["original_size"].tolist() == [[10, 20]] * 2
    one = next(iter(Batches(predict=tmp_path / "b.png", size=16).predict_dataloader()))
    assert one["name"] == ["b"] and (one["semantic"] == VOID).all()


def test_options_for_validation() -> None:
    batches = Batches(count=4, val_options={"textures": "shifted", "count": 2})
    assert len(batches.dataset("train")) == 4 and len(batches.dataset("val")) == 2


@pytest.mark.parametrize("name", ["size", "batch_size", "limit"])
def test_wrong_numbers(name: str) -> None:
    with pytest.raises(DataError, match=f"{name}: expected a whole number from 1, got 0"):
        Batches(**{name: 0})
