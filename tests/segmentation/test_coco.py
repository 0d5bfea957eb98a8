# SPDX-License-Identifier: BSD-3-Clause
"""COCO instance JSON, ours and others': nothing is invented, what is left out is told."""

import codecs
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from maskattn_kernels.segmentation.data import DataError, open_dataset
from maskattn_kernels.segmentation.data.coco_masks import outline
from maskattn_kernels.segmentation.data.sample import VOID, Sample, SegmentationDataset

HEIGHT, WIDTH = 20, 30
SQUARE = [5, 4, 15, 4, 15, 14, 5, 14]
Change = Callable[[dict[str, Any]], object]


def content() -> dict[str, Any]:
    """Two images of one object each, with their sizes."""
    return {
        "images": [
            {"id": n, "file_name": f"{n}.png", "height": HEIGHT, "width": WIDTH} for n in (1, 2)
        ],
        "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "nucleus"}],
        "annotations": [annotation(10 * n, n) for n in (1, 2)],
    }


def annotation(key: int, image: int, **more: Any) -> dict[str, Any]:
    box = [5, 4, 10, 10]
    row = {"id": key, "image_id": image, "category_id": 1, "iscrowd": 0, "bbox": box}
    return {**row, "segmentation": [SQUARE], **more}


def write(root: Path, rows: dict[str, Any], encoding: str = "utf-8", bom: bytes = b"") -> Path:
    """All images for both splits."""
    (root / "images").mkdir(exist_ok=True)
    for number in (1, 2):
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / "images" / f"{number}.png")
    for split in ("train", "val"):
        (root / f"{split}.json").write_bytes(bom + json.dumps(rows).encode(encoding))
    return root


def opened(root: Path, change: Change) -> tuple[SegmentationDataset, list[Sample]]:
    """The data set after a change of the JSON, and all its samples."""
    rows = content()
    change(rows)
    samples = open_dataset("coco-json", write(root, rows))
    return samples, [samples[index] for index in range(len(samples))]


def row(**more: Any) -> Change:
    """Changes annotation 10, of image 1."""
    return lambda rows: rows["annotations"][0].update(more)


def whole_image(values: int = 0) -> np.ndarray:
    return np.full((HEIGHT, WIDTH), values)


def square(background: int = 2, inside: int = 0) -> np.ndarray:
    expected = whole_image(background)
    expected[4:14, 5:15] = inside
    return expected


REFUSED = {
    "NaN": (row(segmentation=[[*SQUARE[:-1], float("nan")]]), "10: .* not finite"),
    "infinite": (row(segmentation=[[float("inf"), *SQUARE[1:]]]), "10: .* not finite"),
    "1e308": (row(segmentation=[[1e308, *SQUARE[1:]]]), "10 lies far outside of its image"),
    "UTM": (
        row(segmentation=[[5e5, 4e6, 500_010, 4e6, 500_010, 4_000_010]]),
        r"10 lies far outside of its image of 30 x 20 \(coordinate",
    ),
    "huge whole number": (row(segmentation=[[10**30, *SQUARE[1:]]]), "10: a segmentation that"),
    "text": (row(segmentation=[["5", *SQUARE[1:]]]), "10: a segmentation that cannot be read"),
    "odd": (row(segmentation=[SQUARE[:-1]]), "10: .*a polygon of 7 numbers"),
    "deep": (row(segmentation=[[[[1, 2], [3, 4]]]]), "10: a segmentation that cannot be read"),
    "text alone": (row(segmentation="abc"), "10: .*expected polygons"),
    "short runs": (
        row(segmentation={"size": [HEIGHT, WIDTH], "counts": [100, 50]}),
        "10: .*run lengths cover 150 of the 600 pixels of 30 x 20",
    ),
    "long runs": (
        row(segmentation={"size": [HEIGHT, WIDTH], "counts": [100, 501]}),
        "10: .*run lengths cover 601 of the 600 pixels",
    ),
    "negative runs": (
        row(segmentation={"size": [HEIGHT, WIDTH], "counts": [700, -100]}),
        "10: .*whole numbers from 0 to 600",
    ),
    "short packed runs": (
        row(segmentation={"size": [HEIGHT, WIDTH], "counts": "0f1"}),
        "10: .*run lengths cover",
    ),
    "packed nonsense": (
        row(segmentation={"size": [HEIGHT, WIDTH], "counts": "\u00e9\x01"}),
        "10: .*packed run lengths",
    ),
    "packed and broken off": (
        row(segmentation={"size": [HEIGHT, WIDTH], "counts": "ooo"}),
        "10: .*packed run lengths",
    ),
    "packed too long": (
        row(segmentation={"size": [HEIGHT, WIDTH], "counts": "o" * 40 + "0"}),
        "10: .*more than 32 bits",
    ),
    "turned runs": (
        row(segmentation={"size": [WIDTH, HEIGHT], "counts": [600]}),
        "10 is of 20 x 30 pixels, its image of 30 x 20",
    ),
    "runs of a huge image": (
        row(segmentation={"size": [HEIGHT, 10**12], "counts": [1]}),
        "10: .*size: expected",
    ),
    "runs without size": (row(segmentation={"counts": [600]}), "10: .*size: expected 2 numbers"),
    "runs without counts": (
        row(segmentation={"size": [HEIGHT, WIDTH]}),
        "10: .*counts: expected",
    ),
    "category as list": (row(category_id=[1]), "category_id: expected a whole number"),
    "image as list": (row(image_id=[1]), "image_id: expected a number or a text"),
    "crowd as text": (row(iscrowd="0"), "iscrowd: expected 0 or 1"),
    "fractions": (
        lambda rows: [
            r.update(segmentation=[[0.2, 0.2, 0.9, 0.2, 0.9, 0.9]]) for r in rows["annotations"]
        ],
        "2 of 2 annotations have coordinates from 0 to 1 only, such as annotation 10; multiply",
    ),
    "id as dict": (lambda rows: rows["images"][0].update(id={}), "id: expected a number or a text"),
    "id missing": (lambda rows: rows["images"][0].pop("id"), "an entry has no 'id'"),
    "name as number": (lambda rows: rows["images"][0].update(file_name=1.5), "file_name: expected"),
    "size as text": (lambda rows: rows["images"][0].update(height="x"), "height: expected a whole"),
    "size 0": (lambda rows: rows["images"][0].update(width=0), "width: expected a whole number"),
    "category of more than 32 bits": (
        lambda rows: rows["categories"][0].update(id=2**31),
        "id: expected a whole number below 2147483648, got 2147483648",
    ),
    "category as text": (
        lambda rows: rows["categories"][0].update(id="cell"),
        "id: expected a whole number",
    ),
    "equal names": (
        lambda rows: rows["categories"][0].update(name="nucleus"),
        "category name 'nucleus' appears twice",
    ),
    "equal names in other forms": (
        lambda rows: [
            r.update(name=unicodedata.normalize(form, "z\u00e9ro"))
            for r, form in zip(rows["categories"], ("NFC", "NFD"), strict=True)
        ],
        "category name 'z\u00e9ro' appears twice",
    ),
    "no name": (
        lambda rows: rows["categories"][0].update(name=None),
        "name: expected text",
    ),
    "parent folder": (
        lambda rows: rows["images"][0].update(file_name="../images/1.png"),
        r"file_name '\.\./images/1\.png' leaves the folder",
    ),
    "absolute": (
        lambda rows: rows["images"][0].update(file_name="/etc/x.png"),
        "leaves the folder",
    ),
    "windows": (lambda rows: rows["images"][0].update(file_name="C:\\x.png"), "leaves the folder"),
    "windows parent": (
        lambda rows: rows["images"][0].update(file_name="a\\..\\..\\x.png"),
        "leaves the folder",
    ),
    "one id twice": (
        lambda rows: rows["images"][1].update(id=1.0),
        "two images have the id 1; the second is '2.png'",
    ),
    "one name in two folders": (
        lambda rows: rows["images"][1].update(file_name="b/1.png"),
        "two images are named '1', the second in file_name 'b/1.png'; expected names that differ",
    ),
    "other size": (
        lambda rows: rows["images"][0].update(height=480, width=640),
        r"1\.png is declared with 640 x 480 pixels, the file has 30 x 20; expected the file that",
    ),
    "boxes only": (
        lambda rows: [r.pop("segmentation") for r in rows["annotations"]],
        "no annotation with a segmentation .*; .*2 annotations have a box and no outline",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(tmp_path: Path, case: str) -> None:
    change, message = REFUSED[case]
    with pytest.raises(DataError, match=rf"train\.json: .*{message}") as caught:
        opened(tmp_path, change)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_shapes_without_declared_sizes_are_checked_by_the_image(tmp_path: Path) -> None:
    def change(rows: dict[str, Any], points: list[float]) -> None:
        rows["images"][0] = {"id": 1, "file_name": "1.png"}
        rows["annotations"][0]["segmentation"] = [points]

    samples, (first, _) = opened(tmp_path, lambda rows: change(rows, [40, 0, 50, 0, 50, 9]))
    assert (first.semantic == 2).all()
    assert samples.notes[0].endswith("nothing of them lies in their image, such as annotation 10")
    with pytest.raises(DataError, match="10 lies far outside of its image of 30 x 20"):
        opened(tmp_path, lambda rows: change(rows, [4e6, 0, 50, 0, 50, 9]))


OUTLINE = "annotations have a box and no outline: their boxes are void"
TOLD = {
    "a box, no outline": (row(segmentation=[]), square(2, VOID), OUTLINE),
    "empty text": (row(segmentation=""), square(2, VOID), OUTLINE),
    "empty object": (row(segmentation={}), square(2, VOID), OUTLINE),
    "null": (row(segmentation=None), square(2, VOID), OUTLINE),
    "two points": (row(segmentation=[[1, 2, 3, 4]]), square(2, VOID), OUTLINE),
    "nothing": (row(segmentation=[[]], bbox=None), whole_image(2), "they have no outline of three"),
    "outside": (
        row(segmentation=[[-9, 0, -1, 0, -1, 9]]),
        whole_image(2),
        "nothing of them lies in their image",
    ),
    "smaller than a pixel": (
        row(segmentation=[[9, 9, 9.2, 9, 9.2, 9.2]]),
        whole_image(2),
        "they are smaller than one",
    ),
    "no run": (
        row(segmentation={"size": [HEIGHT, WIDTH], "counts": [600]}),
        whole_image(2),
        "annotations mark no pixel",
    ),
    "no image": (row(image_id=7), whole_image(2), "are of images that the file does not list"),
}


@pytest.mark.parametrize("case", TOLD)
def test_an_annotation_without_a_pixel_is_told(tmp_path: Path, case: str) -> None:
    change, expected, message = TOLD[case]
    samples, (first, second) = opened(tmp_path, change)
    np.testing.assert_array_equal(first.semantic, expected)
    np.testing.assert_array_equal(second.semantic, square())
    note = samples.notes[0]
    assert "train.json: 1 annotations " in note and "such as annotation 10" in note
    assert message in note
    no_annotation = "images have no annotation: all of their pixels are background, such as 1.png"
    assert [no_annotation in line for line in samples.notes[1:]] == [True] * (case == "no image")


def test_a_fraction_and_an_object_under_others_are_told(tmp_path: Path) -> None:
    def change(rows: dict[str, Any]) -> None:
        corner = [[0, 0, 1, 0, 1, 1, 0, 1]]
        rows["annotations"] += [annotation(11, 1), annotation(12, 1, segmentation=corner)]

    samples, (first, _) = opened(tmp_path, change)
    assert len(np.unique(first.instance)) == 3
    fraction, covered = samples.notes
    assert fraction.endswith("(fractions of the image?), such as annotation 12")
    assert covered.endswith("mark no pixel: other objects cover them, such as annotation 10")


READ = {
    "numbers without brackets": row(segmentation=SQUARE),
    "points": row(segmentation=[[5, 4], [15, 4], [15, 14], [5, 14]]),
    "points of a part": row(segmentation=[[[5, 4], [15, 4], [15, 14], [5, 14]]]),
    "an empty part": row(segmentation=[[], SQUARE, [1, 1], [1, 1, 2, 2]]),
    "image as text": row(image_id="1"),
    "image as float": row(image_id=1.0),
    "category as text": row(category_id="1"),
    "prefix": lambda rows: rows["images"][0].update(file_name="images/1.png"),
    "no ending": lambda rows: rows["images"][0].update(file_name="1"),
    "backslashes": lambda rows: rows["images"][0].update(file_name="images\\1.png"),
}


@pytest.mark.parametrize("case", READ)
def test_read_as_it_is_meant(tmp_path: Path, case: str) -> None:
    samples, (first, _) = opened(tmp_path, READ[case])
    np.testing.assert_array_equal(first.semantic, square())
    assert first.instance.max() == 1 and samples.notes == ()


@pytest.mark.parametrize(
    ("encoding", "bom"), [("utf-8", codecs.BOM_UTF8), ("utf-16", b""), ("utf-16-le", b"")]
)
def test_any_unicode_is_read(tmp_path: Path, encoding: str, bom: bytes) -> None:
    samples = open_dataset("coco-json", write(tmp_path, content(), encoding, bom))
    np.testing.assert_array_equal(samples[0].semantic, square())


def test_names_of_screenshots_and_what_no_name_is(tmp_path: Path) -> None:
    rows, name = content(), "Shot at 10.00\u202fAM.png"
    rows["images"][0]["file_name"] = name
    write(tmp_path, rows)
    (tmp_path / "images" / "1.png").rename(tmp_path / "images" / name)
    assert len(open_dataset("coco-json", tmp_path)) == 2
    for name in ("a\n.png", "\ud800.png", "\0", " ", "x" * 501):
        rows["images"][0]["file_name"] = name
        with pytest.raises(DataError, match="file_name: expected text of 1 to 500 characters"):
            open_dataset("coco-json", write(tmp_path, rows))


def test_names_agree_whichever_system_wrote_them(tmp_path: Path) -> None:
    rows = content()
    rows["images"][0]["file_name"] = unicodedata.normalize("NFC", "caf\u00e9.png")
    write(tmp_path, rows)
    there = unicodedata.normalize("NFD", "caf\u00e9.png")
    (tmp_path / "images" / "1.png").rename(tmp_path / "images" / there)
    samples = open_dataset("coco-json", tmp_path)
    assert [samples[index].name for index in range(2)] == ["2", "caf\u00e9"]


@pytest.mark.parametrize("name", ["background", "Background", "_background_"])
def test_a_category_background_is_the_background(tmp_path: Path, name: str) -> None:
    samples, (first, _) = opened(tmp_path, lambda rows: rows["categories"][1].update(name=name))
    assert samples.classes.names == ("cell", name) and samples.classes.things == (0,)
    np.testing.assert_array_equal(first.semantic, square(1))


def test_a_category_that_is_no_thing_is_stuff(tmp_path: Path) -> None:
    samples, (first, _) = opened(tmp_path, lambda rows: rows["categories"][0].update(isthing=0))
    assert samples.classes.names == ("cell", "nucleus", "background")
    assert samples.classes.is_thing == (False, True, False)
    np.testing.assert_array_equal(first.semantic, square())
    assert not first.instance.any()


def test_percent_is_told(tmp_path: Path) -> None:
    """As Label Studio counts: 0 to 100 over the image, whatever its size."""
    rows = content()
    rows["annotations"] = [annotation(n, 1 + n % 2) for n in range(6)]
    for image, (height, width) in zip(rows["images"], [(300, 400), (200, 200)], strict=True):
        image.update(height=height, width=width)
    root = write(tmp_path, rows)
    (note,) = open_dataset("coco-json", root).notes
    assert "all coordinates of 6 annotations are from 0 to 100" in note
    rows["annotations"][3]["segmentation"] = [[0, 0, 101, 0, 101, 101]]
    assert open_dataset("coco-json", write(tmp_path, rows)).notes == ()


def test_a_category_that_only_groups_others_is_left_out(tmp_path: Path) -> None:
    def change(rows: dict[str, Any]) -> None:
        for category in rows["categories"]:
            category["supercategory"] = "cells"
        rows["categories"].insert(0, {"id": 0, "name": "cells", "supercategory": "none"})

    samples, _ = opened(tmp_path, change)
    assert samples.classes.names == ("cell", "nucleus", "background")
    assert "category 'cells' is left out" in samples.notes[0]


def test_crowds_only_are_told(tmp_path: Path) -> None:
    samples, (first, _) = opened(
        tmp_path, lambda rows: [r.update(iscrowd=1) for r in rows["annotations"]]
    )
    assert "all 2 objects are crowds (iscrowd: 1)" in samples.notes[0]
    np.testing.assert_array_equal(first.semantic, square(2, VOID))


def test_an_image_that_exif_turns_is_told(tmp_path: Path) -> None:
    write(tmp_path, content())
    exif = Image.Exif()
    exif[0x112] = 8
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / "1.png", exif=exif)
    message = r"declared with 30 x 20 pixels, the file has 20 x 30; .* EXIF orientation 8"
    with pytest.raises(DataError, match=message):
        open_dataset("coco-json", tmp_path)[0]


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (64, 200)])
def test_packed_runs_are_what_pycocotools_packs(size: tuple[int, int]) -> None:
    random = np.random.default_rng(size[0])
    for share in (0, 0.01, 0.5, 1):
        mask = np.asfortranarray(random.random(size) < share, dtype=np.uint8)
        packed = coco_mask.encode(mask)["counts"].decode()
        shape = outline({"size": list(size), "counts": packed})
        np.testing.assert_array_equal(shape.draw(*size), mask)
