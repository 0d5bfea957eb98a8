# SPDX-License-Identifier: BSD-3-Clause
"""Objects that do not reach the labels, and images that EXIF turns, are told in every layout."""

import json
from pathlib import Path

import data_trees as trees
import numpy as np
import pytest
from PIL import Image

from maskattn_kernels.segmentation.data import DataError, open_dataset
from maskattn_kernels.segmentation.data.findings import survey

NO_THING = "objects are left out, since their pixels are of classes that are no things"
TREES = {
    "folder": lambda root: trees.folder(root, 5, apart=True),
    "cityscapes": trees.cityscapes,
    "bdd100k": trees.bdd100k,
    "ade20k": trees.ade20k,
    "coco": trees.coco,
}


def told(name: str, root: Path) -> str:
    """The notes of ``check-data``."""
    splits = {split: open_dataset(name, root, split) for split in trees.SPLITS}
    return "\n".join(survey(splits, 0).notes)


def save_all(root: Path, pattern: str, values: np.ndarray) -> None:
    paths = sorted(root.glob(pattern))
    assert paths
    for path in paths:
        trees.save(path, values)


@pytest.mark.parametrize("name", TREES)
def test_good_labels_give_no_note_on_objects(tmp_path: Path, name: str) -> None:
    TREES[name](tmp_path)
    assert "objects" not in told(name, tmp_path)


@pytest.mark.parametrize("name", TREES)
def test_images_that_exif_turns_and_twins_are_told(tmp_path: Path, name: str) -> None:
    TREES[name](tmp_path)
    exif = Image.Exif()
    exif[0x112] = 3
    for path in [*tmp_path.rglob("*.jpg"), *tmp_path.rglob("*_leftImg8bit.png")]:
        Image.new("RGB", (trees.WIDTH, trees.HEIGHT)).save(path, exif=exif)
    notes = told(name, tmp_path)
    assert "of the images read are turned by their EXIF orientation" in notes
    assert "images of val are in train too" in notes


def test_objects_of_a_folder_without_things(tmp_path: Path) -> None:
    trees.folder(tmp_path)
    file = tmp_path / "classes.yaml"
    file.write_text(file.read_text().replace(", thing: true", ""))
    assert f"{NO_THING}, such as object 700 of" in told("folder", tmp_path)


def test_objects_beside_their_class(tmp_path: Path) -> None:
    trees.folder(tmp_path)
    save_all(tmp_path, "instances/*.png", trees.grid(9, 700, 0, np.uint16))
    assert f"{NO_THING}, such as object 9 of" in told("folder", tmp_path)


def test_objects_that_are_counted_anew_in_each_class(tmp_path: Path) -> None:
    trees.folder(tmp_path)
    classes = "classes: [{name: road, thing: true}, {id: 7, name: car, thing: true}]"
    (tmp_path / "classes.yaml").write_text(classes)
    save_all(tmp_path, "instances/*.png", trees.grid(1, 1, 0))
    message = "objects have pixels of two classes; number all objects of an image differently"
    assert f"{message}, such as object 1 of" in told("folder", tmp_path)
    save_all(tmp_path, "instances/*.png", trees.grid(1, 2, 0))
    assert message not in told("folder", tmp_path)


def test_instances_of_0_and_255_are_told(tmp_path: Path) -> None:
    trees.folder(tmp_path)
    message = "files of instances have no number but 255, so that all objects are one"
    assert message not in told("folder", tmp_path)
    save_all(tmp_path, "instances/*.png", trees.grid(0, 255, 0))
    assert f"{message}, such as " in told("folder", tmp_path)


def test_object_numbers_of_32_bits_are_refused(tmp_path: Path) -> None:
    """A TIFF under the name of a PNG can hold them."""
    trees.folder(tmp_path)
    for path in (tmp_path / "instances").iterdir():
        Image.fromarray(trees.grid(0, 2**31 - 1, -5, np.int32)).save(path, format="TIFF")
    with pytest.raises(DataError, match="expected numbers from 0 to 65535, got -5 to 2147483647"):
        open_dataset("folder", tmp_path)[0]


def test_instances_without_image_are_told(tmp_path: Path) -> None:
    trees.folder(tmp_path)
    trees.save(tmp_path / "instances" / "more.png", trees.grid(0, 1, 0))
    assert "instances: 1 have no image, such as 'more'" in told("folder", tmp_path)


def test_instances_that_are_empty_everywhere(tmp_path: Path) -> None:
    trees.folder(tmp_path)
    save_all(tmp_path, "instances/*.png", trees.grid(0, 0, 0))
    assert "no labels of objects, so those of car cannot be told apart" in told("folder", tmp_path)


def test_cityscapes_objects_on_the_road(tmp_path: Path) -> None:
    trees.cityscapes(tmp_path)
    save_all(tmp_path, "gtFine/*/*/*instanceIds.png", trees.grid(24001, 26001, 0, np.uint16))
    assert f"{NO_THING}, such as object 24001 of" in told("cityscapes", tmp_path)


def test_cityscapes_objects_in_colour_name_their_own_file(tmp_path: Path) -> None:
    trees.cityscapes(tmp_path)
    colors = np.zeros((trees.HEIGHT, trees.WIDTH, 3), np.uint8)
    colors[..., 1] = trees.grid(1, 2, 3)
    save_all(tmp_path, "gtFine/*/*/*instanceIds.png", colors)
    with pytest.raises(DataError, match=r"instanceIds\.png: expected one number a pixel"):
        open_dataset("cityscapes", tmp_path)[0]


def test_ade20k_objects_on_a_wall(tmp_path: Path) -> None:
    trees.ade20k(tmp_path, "instances")
    pixels = np.stack([trees.grid(1, 1, 0), trees.grid(4, 6, 0), trees.grid(0, 0, 0)], axis=-1)
    save_all(tmp_path, "annotations_instance/*/*.png", pixels)
    assert f"{NO_THING}, such as object 4 of" in told("ade20k", tmp_path)


@pytest.mark.parametrize(
    ("objects", "pattern"),
    [("panoptic", "ade20k_panoptic_*/*.png"), ("instances", "annotations_instance/*/*.png")],
)
def test_ade20k_objects_in_grey_with_alpha(tmp_path: Path, objects: str, pattern: str) -> None:
    trees.ade20k(tmp_path, objects)
    for path in tmp_path.glob(pattern):
        Image.fromarray(trees.grid(5, 9, 0)).convert("LA").save(path)
    with pytest.raises(DataError, match=r"expected a PNG in colour \(RGB\)"):
        open_dataset("ade20k", tmp_path)[0]


def test_ade20k_segments_that_the_json_does_not_list(tmp_path: Path) -> None:
    trees.ade20k(tmp_path)
    for path in tmp_path.glob("ade20k_panoptic_*.json"):
        rows = json.loads(path.read_text())
        rows["annotations"][0]["segments_info"].pop()
        path.write_text(json.dumps(rows))
    with pytest.raises(DataError, match=r"t_1\.png: id 2313 is not of a segment in its JSON"):
        open_dataset("ade20k", tmp_path)[0]
