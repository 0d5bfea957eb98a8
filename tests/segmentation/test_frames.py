# SPDX-License-Identifier: BSD-3-Clause
"""Frames: what images of any shape become before a network sees them, whole or in parts."""

import numpy as np
import pytest
import torch

from maskattn_kernels.segmentation.data import DataError
from maskattn_kernels.segmentation.data.augmentation import Augmentation
from maskattn_kernels.segmentation.data.batches import Batches
from maskattn_kernels.segmentation.data.colors import Colors
from maskattn_kernels.segmentation.data.frame import as_frame_kind, as_size, frame_size, whole_frame
from maskattn_kernels.segmentation.data.frame_advice import frame_advice
from maskattn_kernels.segmentation.data.sample import VOID, Classes, Sample

STILL = Augmentation((1.0, 1.0), mirror=False, colors=Colors(light=0.0))


def numbered(height: int, width: int) -> Sample:
    """Every pixel is different: its row, column, class and object tell its place."""
    rows, columns = np.indices((height, width))
    image = np.stack([rows % 256, columns % 256, 0 * rows], axis=-1).astype(np.uint8)
    semantic = ((rows + columns) % 7).astype(np.uint8)
    return Sample("numbered", image, semantic, (rows * width + columns + 1).astype(np.int32))


@pytest.mark.parametrize(
    ("image", "size", "fit"),
    [
        ((360, 480), (128, 128), (96, 128)),
        ((480, 360), (128, 128), (128, 96)),
        ((360, 480), (288, 384), (288, 384)),
        ((1024, 2048), (512, 1000), (500, 1000)),
        ((7, 5), (128, 128), (128, 91)),  # smaller images are scaled up
        ((1, 1), (32, 48), (32, 32)),
        ((1, 5000), (32, 32), (1, 32)),  # never less than a pixel
        ((5000, 1), (32, 32), (32, 1)),
        ((9, 9), (1, 1), (1, 1)),
    ],
)
def test_sizes_of_frames(image, size, fit) -> None:
    assert frame_size(*image, size, "fit") == fit
    assert frame_size(*image, size, "own") == image
    assert frame_size(*image, size, "squeeze") == size
    sample = numbered(*image)
    for kind in ("fit", "own", "squeeze"):
        frame = whole_frame(sample, size, kind)
        shape = frame_size(*image, size, kind)
        assert frame.image.shape == (*shape, 3)
        assert frame.semantic.shape == frame.instance.shape == shape


def test_a_square_of_the_right_size_is_the_same_in_every_way() -> None:
    sample = numbered(48, 48)
    for kind in ("fit", "own", "squeeze"):
        frame = whole_frame(sample, (48, 48), kind)
        part = STILL(sample, (48, 48), np.random.default_rng(0), kind)
        for found in (frame, part):
            np.testing.assert_array_equal(found.image, sample.image)
            np.testing.assert_array_equal(found.semantic, sample.semantic)
            np.testing.assert_array_equal(found.instance, sample.instance)


@pytest.mark.parametrize("wrong", [0, -1, 20000, 1.5, True, None, "12", [], [3], [3, 4, 5], [3, 0]])
def test_wrong_sizes_are_told_in_one_line(wrong) -> None:
    with pytest.raises(DataError, match=r"^size: expected a whole number from 1 to 16384, or hei"):
        as_size(wrong)
    with pytest.raises(DataError, match=r'^frame: expected one of "fit", "own", "squeeze", got '):
        as_frame_kind(wrong)


def test_sizes_that_can_be_given() -> None:
    assert as_size(3) == as_size(np.int64(3)) == (3, 3)
    assert as_size((3, 4)) == as_size([3, 4]) == (3, 4)
    assert Batches(size=[30, 40], count=1).size == (30, 40)


@pytest.mark.parametrize("image", [(40, 60), (40, 20), (16, 60), (5, 7), (1, 1)])
def test_parts_of_own_frames_are_pixels_of_the_image(image: tuple[int, int]) -> None:
    """Where nothing is zoomed nothing is blurred, and what lies outside of the image is void."""
    sample, size, seen = numbered(*image), (24, 32), set()
    for seed in range(100):
        part = STILL(sample, size, np.random.default_rng(seed), "own")
        assert part.image.shape == (*size, 3) and part.semantic.shape == size
        known = part.instance > 0
        rows, columns = np.nonzero(known)
        assert known.sum() == min(image[0], size[0]) * min(image[1], size[1])
        assert (part.semantic[~known] == VOID).all() and (part.image[~known] == 124).all()
        places = part.instance[known] - 1
        np.testing.assert_array_equal(part.image[known], sample.image.reshape(-1, 3)[places])
        np.testing.assert_array_equal(part.semantic[known], sample.semantic.ravel()[places])
        top = part.instance[rows.min(), columns.min()] - 1
        assert (places == top + (rows - rows.min()) * image[1] + columns - columns.min()).all()
        seen |= {*places.tolist()}
    assert len(seen) > 0.9 * image[0] * image[1], "every place is shown sooner or later"


@pytest.mark.parametrize("kind", ["fit", "own"])
@pytest.mark.parametrize("zoom", [0.7, 1.0, 1.6])
def test_parts_keep_the_aspect(kind, zoom) -> None:
    """A step of a pixel in the part is the same step in the image, down and along."""
    sample = numbered(90, 160)
    whole = frame_size(90, 160, (64, 64), kind)
    part = Augmentation((zoom, zoom), mirror=False, colors=Colors(light=0.0))(
        sample, (64, 64), np.random.default_rng(3), kind
    )
    rows, columns = np.nonzero(part.instance)
    places = part.instance[rows, columns] - 1
    down = np.polyfit(rows, places // 160, 1)[0]
    along = np.polyfit(columns, places % 160, 1)[0]
    assert down == pytest.approx(90 / (zoom * whole[0]), rel=0.05)
    assert along == pytest.approx(160 / (zoom * whole[1]), rel=0.05)


class Shapes:
    """Six images of three shapes, one of a single pixel."""

    classes = Classes(("a", "b"), (False, True), ((0, 0, 0), (255, 0, 0)), (0, 1))
    shapes = ((20, 30), (30, 20), (20, 30), (1, 1), (20, 30), (30, 20))

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> Sample:
        sample = numbered(*self.shapes[index])
        return Sample(str(index), sample.image, sample.semantic % 2, sample.instance)


def shaped(**options) -> Batches:
    batches = Batches(**options)
    for split in ("train", "val"):
        batches._sets[split] = Shapes()
    return batches


@pytest.mark.parametrize("workers", [0, 2])
def test_validation_frames_of_one_shape_go_together(workers: int) -> None:
    batches = shaped(size=(20, 30), frame="own", batch_size=6, workers=workers)
    (parts,) = list(batches.val_loader())
    assert [part["name"] for part in parts] == [["0", "2", "4"], ["1", "5"], ["3"]]
    assert [tuple(part["image"].shape[2:]) for part in parts] == [(20, 30), (30, 20), (1, 1)]
    assert parts[0]["original_size"].tolist() == [[20, 30]] * 3
    fitted = shaped(size=(20, 30), batch_size=6, workers=workers)
    shapes = {tuple(part["semantic"].shape[1:]) for part in next(iter(fitted.val_loader()))}
    assert shapes == {(20, 30), (20, 13), (20, 20)}


def test_validation_batches_have_no_more_pixels_than_training_batches() -> None:
    batches = shaped(size=(20, 15), frame="own", batch_size=4)
    names = [part["name"] for parts in batches.val_loader() for part in parts]
    assert names == [["0", "2"], ["1"], ["3"], ["4"], ["5"]]


@pytest.mark.parametrize("kind", ["fit", "own", "squeeze"])
def test_training_batches_have_the_size(kind) -> None:
    for augment in (True, False):
        batches = shaped(size=(16, 24), frame=kind, batch_size=4, augment=augment)
        for batch in batches.train_loader(batches=3):
            assert batch["image"].shape == (4, 3, 16, 24)
            assert batch["semantic"].shape == batch["instance"].shape == (4, 16, 24)
            known = batch["instance"] > 0
            assert torch.equal(batch["semantic"] == VOID, ~known)


def test_rectangles_and_shapes_are_the_same_for_any_workers_and_processes() -> None:
    options = {"size": (12, 20), "frame": "own"}
    whole = list(shaped(batch_size=4, **options).train_loader(batches=4))
    helped = shaped(batch_size=4, workers=2, **options).train_loader(batches=4)
    halves = shaped(batch_size=2, **options)
    shares = [list(halves.train_loader(4, rank=rank, world=2)) for rank in (0, 1)]
    for number, (batch, same) in enumerate(zip(whole, helped, strict=True)):
        for key in ("image", "semantic", "instance"):
            assert torch.equal(batch[key], same[key])
            for rank, share in enumerate(shares):
                assert torch.equal(batch[key][rank::2], share[number][key])


def test_an_image_that_is_too_large_for_its_own_size_is_named() -> None:
    sample = Sample("map", np.zeros((2049, 2048, 3), np.uint8))
    with pytest.raises(DataError, match=r"^map: 2048 x 2049 pixels; expected at most 4 million "):
        whole_frame(sample, (64, 64), "own")
    assert whole_frame(sample, (64, 64), "fit").image.shape == (64, 64, 3)


def test_a_size_that_does_not_suit_the_images_is_told() -> None:
    assert frame_advice({(480, 360): 7}, (96, 128), "fit") == []
    assert frame_advice({(480, 360): 7}, (288, 384), "own") == []
    assert frame_advice({(480, 360): 7}, (128, 128), "squeeze") == []
    assert frame_advice({}, (128, 128), "fit") == []
    (note,) = frame_advice({(100, 70): 3, (20, 30): 1}, (128, 128), "own")
    assert "for 70 x 100 pixels --data.size '[64, 96]'" in note
    (note,) = frame_advice({(200, 20): 1}, (128, 128), "fit")
    assert note.startswith("90% of the training images") and "'[48, 400]'" in note
