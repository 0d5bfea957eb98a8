# SPDX-License-Identifier: BSD-3-Clause
"""Batches: the same for any number of workers, after a resume, and shared over processes."""

from pathlib import Path

import data_trees as trees
import numpy as np
import pytest
import torch

from maskattn_kernels.segmentation.data import DataError
from maskattn_kernels.segmentation.data.augmentation import Augmentation
from maskattn_kernels.segmentation.data.batches import Batches
from maskattn_kernels.segmentation.data.colors import Colors
from maskattn_kernels.segmentation.data.frame import whole_frame
from maskattn_kernels.segmentation.data.order import PADDING
from maskattn_kernels.segmentation.data.sample import VOID, Sample
from maskattn_kernels.segmentation.training.run_data import RunData


def same(first: dict, second: dict) -> bool:
    return first["name"] == second["name"] and all(
        torch.equal(first[key], second[key]) for key in ("image", "semantic", "instance", "index")
    )


def test_a_batch() -> None:
    batches = Batches(batch_size=3, size=64, count=6)
    batch = next(iter(batches.train_loader(batches=1)))
    assert batch["image"].shape == (3, 3, 64, 64) and batch["image"].dtype == torch.uint8
    for key in ("semantic", "instance"):
        assert batch[key].shape == (3, 64, 64) and batch[key].dtype == torch.int64
    assert batch["original_size"].tolist() == [[128, 128]] * 3
    assert batch["name"] == [f"train-{i:05d}" for i in batch["index"].tolist()]


def test_validation_is_in_order_and_as_it_is() -> None:
    batches = Batches(batch_size=2, count=5)
    found = [part for batch in batches.val_loader() for part in batch]
    assert [name for b in found for name in b["name"]] == [f"val-{i:05d}" for i in range(5)]
    scene = batches.dataset("val")[4]
    np.testing.assert_array_equal(found[2]["image"][0].permute(1, 2, 0).numpy(), scene.image)
    np.testing.assert_array_equal(found[2]["semantic"][0].numpy(), scene.semantic)


def training(start: int = 0, total: int = 7, **options) -> list[dict]:
    """The batches that `maskattn train` takes; the set is 2.5 batches, so epochs meet in one."""
    batches = Batches(batch_size=4, size=32, count=10, **options)
    return list(RunData(batches, total, start).train_dataloader())


@pytest.fixture(scope="module")
def whole() -> list[dict]:
    return training()


def test_workers_change_nothing(whole: list[dict]) -> None:
    helped = training(workers=2)
    assert len(whole) == 7
    assert all(same(a, b) for a, b in zip(whole, helped, strict=True))


@pytest.mark.parametrize(("start", "workers"), [(1, 0), (3, 2), (6, 0), (7, 0)])
def test_a_resumed_run_gets_the_rest(whole: list[dict], start: int, workers: int) -> None:
    rest = training(start, workers=workers)
    assert len(rest) == 7 - start
    assert all(same(a, b) for a, b in zip(rest, whole[start:], strict=True))


def test_every_image_comes_once_an_epoch_and_is_augmented_anew(whole: list[dict]) -> None:
    images: dict[int, list[torch.Tensor]] = {}
    drawn = [index for batch in whole for index in batch["index"].tolist()]
    for epoch in (drawn[:10], drawn[10:20]):
        assert sorted(epoch) == list(range(10))
    for batch in whole[:5]:
        for index, image in zip(batch["index"].tolist(), batch["image"], strict=True):
            images.setdefault(index, []).append(image)
    assert all(not torch.equal(first, second) for first, second in images.values())


def test_each_image_of_an_epoch_is_augmented_in_its_own_way() -> None:
    batches = Batches(batch_size=4, size=32, count=1)
    scene = batches.dataset("train")[0]

    class Copies:
        classes = batches.classes

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Sample:
            return scene

    batches.train_with(Copies())
    images = next(iter(batches.train_loader(batches=1)))["image"]
    assert len({image.numpy().tobytes() for image in images}) == 4


def test_seeds_differ(whole: list[dict]) -> None:
    other = training(seed=1)
    assert [b["name"] for b in other] != [b["name"] for b in whole]
    mine, theirs = (
        {n: i for b in run[:2] for n, i in zip(b["name"], b["image"], strict=True)}
        for run in (whole, other)
    )
    both = mine.keys() & theirs.keys()
    assert both and not any(torch.equal(mine[name], theirs[name]) for name in both)


def test_two_processes_see_the_batches_of_one(whole: list[dict]) -> None:
    halves = Batches(batch_size=2, size=32, count=10)
    shares = [list(halves.train_loader(batches=7, rank=rank, world=2)) for rank in (0, 1)]
    for number, batch in enumerate(whole):
        for rank, share in enumerate(shares):
            assert share[number]["name"] == batch["name"][rank::2]
            assert torch.equal(share[number]["image"], batch["image"][rank::2])


def test_validation_is_padded_with_void() -> None:
    batches = Batches(batch_size=3, size=16, count=2)
    (batch,) = next(iter(batches.val_loader(rank=3, world=4)))
    assert batch["index"].tolist() == [PADDING]
    assert (batch["semantic"] == VOID).all() and (batch["instance"] == 0).all()


def test_limits_are_nested() -> None:
    chosen = [set(Batches(limit=n, count=100).labelled()) for n in (10, 30, None)]
    assert chosen[0] < chosen[1] < chosen[2]
    assert [len(c) for c in chosen] == [10, 30, 100]
    few = Batches(limit=3, batch_size=8, size=16, count=100)
    batch = next(iter(few.train_loader(batches=1)))
    assert len(batch["name"]) == 8 and len(set(batch["name"])) == 3
    twins = [i for i, name in enumerate(batch["name"]) if name == batch["name"][0]]
    assert not torch.equal(*(batch["image"][i] for i in twins[:2])), "augmented anew each time"


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
    augmentation = Augmentation(zoom, mirror, Colors(light=0.0))
    for seed in range(4):
        frame = augmentation(sample, (64, 64), np.random.default_rng(seed), "squeeze")
        known = frame.semantic != VOID
        assert known.mean() == pytest.approx(min(1, zoom[0]) ** 2, abs=0.01)
        told = np.rint(frame.image[..., 0] / 40) == frame.semantic
        assert told[known].mean() > 0.75, "only borders of blocks may differ"
        assert (frame.instance[~known] == 0).all()
        np.testing.assert_array_equal(frame.instance[known], frame.semantic[known] * 3)


def test_squeezing_resizes_any_shape_and_keeps_label_values() -> None:
    frame = whole_frame(coded(50, 23), (32, 32), "squeeze")
    assert frame.image.shape == (32, 32, 3)
    assert set(np.unique(frame.semantic)) <= set(range(5))
    bare = whole_frame(Sample("bare", coded(9, 9).image), (32, 32), "fit")
    assert (bare.semantic == VOID).all() and (bare.instance == 0).all()


def test_options_for_validation() -> None:
    batches = Batches(count=4, val_options={"textures": "shifted", "count": 2})
    assert len(batches.dataset("train")) == 4 and len(batches.dataset("val")) == 2


@pytest.mark.parametrize("name", ["size", "batch_size", "limit"])
def test_wrong_numbers(name: str) -> None:
    with pytest.raises(DataError, match=f"{name}: expected a whole number from 1.*, got 0"):
        Batches(**{name: 0})


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_error_of_a_loading_process_is_the_one_line(tmp_path: Path, split: str) -> None:
    trees.folder(tmp_path, 4)
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"no image")
    batches = Batches("folder", tmp_path, size=32, batch_size=1, workers=1)
    loader = batches.train_loader(batches=1) if split == "train" else batches.val_loader()
    with pytest.raises(DataError, match=r"^/.*\.jpg: not an image that can be read; [a-z ]+$"):
        next(iter(loader))
