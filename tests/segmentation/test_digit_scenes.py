# SPDX-License-Identifier: BSD-3-Clause
"""The generated scenes: repeatable, with labels that fit, and nothing shared between the splits."""

import zlib
from colorsys import rgb_to_hsv

import numpy as np
import pytest

from maskattn_kernels.segmentation.data import DataError, open_dataset
from maskattn_kernels.segmentation.data.digit_scenes import DigitScenes
from maskattn_kernels.segmentation.data.sample import SegmentationDataset
from maskattn_kernels.segmentation.data.slips import split_digits
from maskattn_kernels.segmentation.data.textures import TEXTURES, texture_pictures


def test_labels_are_the_same_on_every_machine() -> None:
    scenes = DigitScenes("train", count=20)
    labels = np.stack([scenes[i].semantic for i in range(20)])
    assert zlib.crc32(labels.tobytes()) == 0xA6A88BF7


def test_a_scene_depends_on_seed_split_and_index_alone() -> None:
    first = DigitScenes("val", count=3)[2]
    again = DigitScenes("val", count=100)[2]
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.instance, again.instance)
    for other in (DigitScenes("val", seed=1)[2], DigitScenes("train")[2], DigitScenes("val")[1]):
        assert (first.image != other.image).any()


@pytest.mark.parametrize("legend", [False, True], ids=["written", "legend"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_labels_fit(split: str, legend: bool) -> None:
    scenes = DigitScenes(split, count=40, legend=legend)
    assert isinstance(scenes, SegmentationDataset)
    for index in range(len(scenes)):
        scene = scenes[index]
        assert scene.image.shape == (128, 128, 3) and scene.image.dtype == np.uint8
        assert scene.semantic.dtype == np.uint8 and scene.instance.dtype == np.int32
        things = np.isin(scene.semantic, scenes.classes.things)
        np.testing.assert_array_equal(things, scene.instance > 0)
        numbers = np.unique(scene.instance)
        assert numbers.tolist() == list(range(len(numbers))) and 4 <= len(numbers) <= 9
        for number in numbers[1:]:
            mask = scene.instance == number
            assert len(np.unique(scene.semantic[mask])) == 1
            assert mask.sum() > 15
        assert 2 <= len(np.unique(scene.semantic[~things])) <= 5
    assert len({scenes[i].name for i in range(40)}) == 40


def test_a_legend_tells_the_blank_slips_apart() -> None:
    """A digit is a colour; each colour is written on once, and the writing is in full sight."""
    scenes = DigitScenes("train", count=40, legend=True)
    blanks = 0
    for scene in (scenes[i] for i in range(40)):
        hues: dict[int, list[float]] = {}
        written = []
        for number in range(1, int(scene.instance.max()) + 1):
            slip = scene.instance == number
            digit = int(scene.semantic[slip][0])
            colors = scene.image[slip] / 255
            bright = colors[colors.max(1) > 0.7]
            hues.setdefault(digit, []).append(float(np.median([rgb_to_hsv(*c)[0] for c in bright])))
            if (colors.max(1) < 0.45).mean() > 0.03:  # ink; borders are dark here and there
                written.append(digit)
        assert sorted(written) == sorted(hues) and 2 <= len(hues) <= 3
        blanks += sum(map(len, hues.values())) - len(written)
        for digit, same in hues.items():
            for other, apart in hues.items():
                distance = [abs((a - b + 0.5) % 1 - 0.5) for a in same for b in apart]
                assert max(distance) < 0.06 if digit == other else min(distance) > 0.25
    assert blanks > 3 * 40


def test_all_classes_occur() -> None:
    scenes = DigitScenes("val", count=60)
    seen = np.unique(np.stack([scenes[i].semantic for i in range(60)]))
    assert seen.tolist() == list(range(18))


def test_splits_share_no_digit() -> None:
    train, val = (
        {picture.tobytes() for pictures in split_digits(split) for picture in pictures}
        for split in ("train", "val")
    )
    assert not train & val
    assert len(train) + len(val) == 1797
    assert min(len(pictures) for pictures in split_digits("val")) >= 20


@pytest.mark.parametrize("number", range(len(TEXTURES)), ids=[t.name for t in TEXTURES])
def test_splits_share_no_pixels(number: int) -> None:
    """At zoom 1 without resizing, the halves side by side are the whole picture."""
    train, val = (texture_pictures(split, False)[number] for split in ("train", "val"))
    for left, right in zip(train, val, strict=True):
        assert min(*left.shape, *right.shape) >= 128
        assert abs(right.shape[1] / (left.shape[1] + right.shape[1]) - 0.4) < 0.01
    if TEXTURES[number].name == "brick":
        from skimage.data import brick

        halves = np.concatenate([p.view(np.uint8)[:, ::4] for p in (train[1], val[1])], axis=1)
        np.testing.assert_array_equal(halves, brick())


def test_shifted_textures_change_the_images_and_not_the_labels() -> None:
    plain, shifted = DigitScenes("val")[5], DigitScenes("val", textures="shifted")[5]
    np.testing.assert_array_equal(plain.semantic, shifted.semantic)
    stuff = plain.instance == 0
    difference = plain.image[stuff].astype(int) - shifted.image[stuff]
    assert np.abs(difference).mean() > 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "split: expected train or val, got 'test'"),
        ({"count": 0}, "count: expected a whole number from 1, got 0"),
        ({"seed": -1}, "seed: expected a whole number from 0, got -1"),
        ({"textures": "new"}, "textures: expected plain or shifted, got 'new'"),
        ({"legend": 1}, "legend: expected true or false, got 1"),
        (
            {"size": 3},
            "unknown option 'size' for digit-scenes; known: count, seed, textures, legend",
        ),
        ({"root": "x"}, "root: digit-scenes is generated and has no folder, got 'x'"),
        ({"name": "voc"}, "name: expected one of digit-scenes, coco, .*, got 'voc'"),
        ({"name": "coco"}, "root: coco needs the folder of its files"),
    ],
)
def test_wrong_options(options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(**{"name": "digit-scenes", **options})


def test_index_outside() -> None:
    with pytest.raises(IndexError, match="expected 0 to 2, got 3"):
        DigitScenes("val", count=3)[3]
