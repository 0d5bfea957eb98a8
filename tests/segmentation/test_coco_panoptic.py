# SPDX-License-Identifier: BSD-3-Clause
"""COCO's panoptic JSON: every field is checked, and what is left out is told."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import data_trees as trees
import numpy as np
import pytest
from PIL import Image

from maskattn_kernels.segmentation.data import DataError, open_dataset

Change = Callable[[dict[str, Any]], object]


def panoptic(root: Path, change: Change) -> None:
    """COCO's panoptic files with a changed JSON for validation."""
    trees.coco(root)
    path = root / "annotations" / "panoptic_val2017.json"
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows))


PANOPTIC = {
    "no segments": (
        lambda rows: rows["annotations"][0].update(segments_info=None),
        "segments_info: expected a list of objects, got None",
    ),
    "segment as number": (
        lambda rows: rows["annotations"][0].update(segments_info=[3]),
        "segments_info: expected a list of objects, got",
    ),
    "segment without id": (
        lambda rows: rows["annotations"][0]["segments_info"][0].pop("id"),
        "an entry has no 'id'",
    ),
    "segment twice": (
        lambda rows: rows["annotations"][0]["segments_info"][1].update(id="9"),
        "segment 9 of image 139 appears twice",
    ),
    "category as list": (
        lambda rows: rows["annotations"][0]["segments_info"][0].update(category_id=[3]),
        "category_id: expected a whole number",
    ),
    "isthing absent": (
        lambda rows: rows["categories"][0].pop("isthing"),
        "category 'car' has no isthing; expected 1 where objects are counted",
    ),
    "file outside": (
        lambda rows: rows["annotations"][0].update(file_name="../../x.png"),
        r"file_name '\.\./\.\./x\.png' leaves the folder",
    ),
    "image outside": (
        lambda rows: rows["images"][0].update(file_name="../train2017/000000000139.jpg"),
        "leaves the folder",
    ),
    "twice": (
        lambda rows: rows["annotations"].append(rows["annotations"][0]),
        r"image 139 \(000000000139\.jpg\) has two annotations",
    ),
    "other size": (
        lambda rows: rows["images"][0].update(height=8, width=6),
        "declared with 6 x 8 pixels, the file has 8 x 6",
    ),
}


@pytest.mark.parametrize("case", PANOPTIC)
def test_panoptic_faults(tmp_path: Path, case: str) -> None:
    change, message = PANOPTIC[case]
    panoptic(tmp_path, change)
    with pytest.raises(DataError, match=rf"panoptic_val2017\.json: .*{message}"):
        open_dataset("coco", tmp_path, "val")[0]


def test_panoptic_images_and_segments_that_are_left_out_are_told(tmp_path: Path) -> None:
    def change(rows: dict[str, Any]) -> None:
        rows["images"].append({**rows["images"][0], "id": 7, "file_name": "7.jpg"})
        rows["annotations"][0]["segments_info"].append({"id": 55, "category_id": 3})
        rows["annotations"].append({**rows["annotations"][0], "image_id": "x"})

    panoptic(tmp_path, change)
    trees.photo(tmp_path / "val2017" / "7.jpg")
    samples = open_dataset("coco", tmp_path, "val")
    assert len(samples) == 1 and samples[0].semantic.shape == (6, 8)
    text = "\n".join(samples.notes)
    assert "1 images have no annotation and are left out, such as 7.jpg" in text
    assert "1 segments have no pixel in their PNG, such as segment 55" in text
    assert "1 annotations are of images that the file does not list, such as image_id 'x'" in text


def test_panoptic_images_that_the_json_does_not_list_are_told(tmp_path: Path) -> None:
    trees.coco(tmp_path)
    trees.photo(tmp_path / "val2017" / "7.jpg")
    (note,) = open_dataset("coco", tmp_path, "val").notes
    assert note.endswith("are not in it, such as '7.jpg'")


def test_panoptic_colours_in_a_palette(tmp_path: Path) -> None:
    """So optimisers of PNGs write a picture of few colours."""
    trees.coco(tmp_path)
    expected = open_dataset("coco", tmp_path)[0]
    (path,) = tmp_path.glob("annotations/panoptic_train2017/*.png")
    with Image.open(path) as picture:
        picture.quantize(8).save(path)
    found = open_dataset("coco", tmp_path)[0]
    np.testing.assert_array_equal(found.semantic, expected.semantic)
    np.testing.assert_array_equal(found.instance, expected.instance)


def test_panoptic_ids_as_text(tmp_path: Path) -> None:
    panoptic(tmp_path, lambda rows: rows["annotations"][0].update(image_id="139"))
    assert len(open_dataset("coco", tmp_path, "val")) == 1
