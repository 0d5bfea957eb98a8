# SPDX-License-Identifier: BSD-3-Clause
"""Class numbers become the ids of the data set's own files, and back."""

from dataclasses import replace
from pathlib import Path

import data_trees as trees
import numpy as np
import pytest
from segmentation_runs import CLASSES, tiny_checkpoint

from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.data import open_dataset
from maskattn_kernels.segmentation.data.images import read_labels
from maskattn_kernels.segmentation.data.sample import VOID, Classes

MAKE = {
    "cityscapes": (trees.cityscapes, "gtFine/val/aachen/*_labelIds.png"),
    "ade20k": (trees.ade20k, "annotations/validation/*.png"),
    "bdd100k": (trees.bdd100k, "labels/sem_seg/masks/val/*.png"),
    "folder": (trees.folder, "masks/{}.png"),
}


@pytest.mark.parametrize("name", MAKE)
def test_ids_are_those_of_the_files(tmp_path: Path, name: str) -> None:
    make, masks = MAKE[name]
    make(tmp_path)
    samples = open_dataset(name, tmp_path, "val")
    stored = read_labels(next(tmp_path.glob(masks.format(samples[0].name))))
    numbers = samples.classes.from_ids(stored)
    known = numbers != VOID
    assert known.any() and not known.all()
    np.testing.assert_array_equal(samples.classes.to_ids(numbers)[known], stored[known])
    again = samples.classes.from_ids(samples.classes.to_ids(numbers))
    np.testing.assert_array_equal(again, numbers)


def test_the_ids_of_street_scenes(tmp_path: Path) -> None:
    """Cityscapes' tools want labelIds; BDD100K's want trainIds. The numbers are the same."""
    trees.cityscapes(tmp_path / "c")
    trees.bdd100k(tmp_path / "b")
    labels = np.array([0, 13, 18, VOID])
    for name, root, expected in (("cityscapes", "c", [7, 26, 33, 0]), ("bdd100k", "b", labels)):
        classes = open_dataset(name, tmp_path / root, "val").classes
        np.testing.assert_array_equal(classes.to_ids(labels), expected)
        assert classes.to_ids(labels).dtype == np.uint8 and classes.names[13] == "car"


@pytest.mark.parametrize(
    ("ids", "void", "expected"),
    [
        ((0, 255), (), [0, 255, 254]),
        ((10, 200), (), [10, 200, 255]),
        ((0, 300), (255,), [0, 300, 255]),
        ((0, 65535), (), [0, 65535, 65534]),
        ((1, 70_000), (0,), [1, 70_000, 0]),
        ((1, 2), (700, 9), [1, 2, 700]),
    ],
)
def test_void_is_no_class(ids: tuple[int, int], void: tuple[int, ...], expected: list[int]) -> None:
    classes = Classes(("a", "b"), (False, False), ((0, 0, 0), (9, 9, 9)), ids, void)
    written = classes.to_ids(np.array([[0, 1, VOID]], np.uint8))
    assert written.tolist() == [expected] and written.dtype.kind == "u"
    known = written[:, : 3 if void else 2]
    assert classes.from_ids(known).tolist() == [[0, 1, VOID][: known.shape[1]]]


def test_unknown_ids_are_an_error() -> None:
    with pytest.raises(ValueError, match="unknown id 3, 300"):
        CLASSES.from_ids(np.array([1, 3, 300], np.uint16))


def test_checkpoints_keep_the_ids_of_void(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path)
    replace(checkpoint, classes=replace(CLASSES, void_ids=(0, 9))).save_pretrained(tmp_path)
    assert Checkpoint.from_pretrained(tmp_path).classes.void_ids == (0, 9)
