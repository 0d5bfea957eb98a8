# SPDX-License-Identifier: BSD-3-Clause
"""Own folders as users have them: any mask that says one thing, any fault named by its field."""

import json
import os
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import data_trees as trees
import numpy as np
import pytest
from PIL import Image

from maskattn_kernels.segmentation.data import DataError, open_dataset
from maskattn_kernels.segmentation.data.classes_file import read_classes
from maskattn_kernels.segmentation.data.command import main as check_data
from maskattn_kernels.segmentation.data.images import ImageFiles
from maskattn_kernels.segmentation.data.sample import VOID

IDS = trees.grid(0, 7, 255)
NUMBERS = trees.grid(0, 1, VOID)
COLORED = """
classes:
  - {id: 0, name: road, color: [128, 64, 128]}
  - {id: 7, name: car, color: [0, 0, 142]}
void: [255, [0, 0, 0]]
"""


def own(root: Path, mask: Image.Image, classes: str = trees.CLASSES_YAML) -> np.ndarray:
    """The labels of a folder of which all masks are this one."""
    trees.folder(root)
    (root / "classes.yaml").write_text(classes)
    for path in (root / "masks").iterdir():
        mask.save(path)
    return open_dataset("folder", root)[0].semantic


def in_colors(ids: np.ndarray = IDS) -> np.ndarray:
    colors = np.zeros((*ids.shape, 3), np.uint8)
    colors[ids == 0] = (128, 64, 128)
    colors[ids == 7] = (0, 0, 142)
    return colors


def opaque(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.concatenate([values, np.full_like(values[..., :1], 255)], axis=-1))


GREY = np.repeat(IDS[..., None], 3, axis=2)
SAVED = {
    "grey": Image.fromarray(IDS),
    "16 bit": Image.fromarray(IDS.astype(np.uint16)),
    "grey as RGB": Image.fromarray(GREY),
    "grey as RGBA": opaque(GREY),
    "grey with alpha": opaque(GREY[..., :1]),
}


@pytest.mark.parametrize("form", SAVED)
def test_ids_however_they_are_saved(tmp_path: Path, form: str) -> None:
    for classes in (trees.CLASSES_YAML, COLORED):
        np.testing.assert_array_equal(own(tmp_path, SAVED[form], classes), NUMBERS)


COLORS = {
    "RGB": Image.fromarray(in_colors()),
    "RGBA": opaque(in_colors()),
    "a palette in another order": Image.fromarray(in_colors()).quantize(3),
}


@pytest.mark.parametrize("form", COLORS)
def test_colours_of_classes_yaml(tmp_path: Path, form: str) -> None:
    np.testing.assert_array_equal(own(tmp_path, COLORS[form], COLORED), NUMBERS)


def test_colours_that_look_grey(tmp_path: Path) -> None:
    classes = "classes: [{name: a, color: [0, 0, 0]}, {name: b, color: [255, 255, 255]}]\nvoid: []"
    mask = Image.fromarray(np.repeat(trees.grid(0, 255, 255)[..., None], 3, axis=2))
    np.testing.assert_array_equal(own(tmp_path, mask, classes), trees.grid(0, 1, 1))


def palette_of_other_classes() -> Image.Image:
    mask = Image.fromarray(trees.grid(0, 7, 7)).convert("P")
    mask.putpalette([0, 0, 142] + [0] * 18 + [128, 64, 128])
    return mask


MASK_FAULTS = {
    "unknown colour": (
        Image.fromarray(in_colors() + np.uint8(1)),
        COLORED,
        r"unknown color \[1, 1, 1\]; give it to a class .*\(3 unknown colours\)",
    ),
    "no colours known": (
        Image.fromarray(in_colors()),
        "classes: [{name: road}, {id: 7, name: car}]",
        r"expected one number .* got 3 channels; save class ids, not colours, or give each "
        r"class its color in .*yaml",
    ),
    "transparent": (
        Image.fromarray(np.concatenate([GREY, IDS[..., None]], axis=-1)),
        COLORED,
        "a mask with transparent pixels; save it without alpha channel",
    ),
    "palette against ids": (
        palette_of_other_classes(),
        COLORED,
        "its numbers are ids of classes and its colours are those of others",
    ),
}


@pytest.mark.parametrize("case", MASK_FAULTS)
def test_masks_that_say_nothing_clear(tmp_path: Path, case: str) -> None:
    mask, classes, message = MASK_FAULTS[case]
    with pytest.raises(DataError, match=rf"masks/.*\.png: {message}"):
        own(tmp_path, mask, classes)


def test_objects_saved_as_rgb(tmp_path: Path) -> None:
    trees.folder(tmp_path)
    for path in (tmp_path / "instances").iterdir():
        trees.save(path, np.repeat(trees.grid(0, 9, 0)[..., None], 3, axis=2))
    assert set(np.unique(open_dataset("folder", tmp_path)[0].instance)) == {0, 9}


CLASS_FAULTS = {
    "no as a name": ("classes: [{name: no}]", "entry 1: name: expected text, got False, .*quotes"),
    "number as a name": (
        "classes: [a, {name: 5}]",
        "entry 2: name: expected text, got 5, .*quotes",
    ),
    "date as a name": ("classes: [{name: 2024-01-01}]", "entry 1: name: expected text"),
    "no name": ("classes: [{id: 3}]", "entry 1: name: expected text, got None"),
    "blank name": ("classes: ['  ']", "entry 1: name: expected text"),
    "entry as a number": ("classes: [5]", r"entry 1: expected \{id: 1, name: car, .*, got 5"),
    "thing as a number": (
        "classes: [{name: a, thing: 1}]",
        "entry 1: thing: expected true or false, got 1",
    ),
    "isthing": (
        "classes: [{name: a, isthing: true}]",
        "entry 1: unknown key 'isthing'; did you mean thing",
    ),
    "colour": ("classes: [{name: a, colour: [1, 2, 3]}]", "'colour'; did you mean color"),
    "far key": ("classes: [{name: a, xyz: 3}]", "'xyz'; expected id, name, thing, color"),
    "octal": ("classes: [{name: a, id: 010}]", "entry 1: id: expected a whole .*, got '010'"),
    "hexadecimal": ("classes: [{name: a, id: 0x1F}]", "entry 1: id: expected .*, got '0x1F'"),
    "large id": ("classes: [{name: a, id: 70000}]", "entry 1: id: expected .*, got 70000"),
    "id as text": ("classes: [{name: a, id: '3'}]", "entry 1: id: expected .*, got '3'"),
    "color": ("classes: [{name: a, color: [1, 2]}]", r"entry 1: color: expected \[red, green"),
    "color too light": ("classes: [{name: a, color: [1, 2, 256]}]", "entry 1: color: expected"),
    "viod": ("classes: [a]\nviod: [255]", "unknown key 'viod'; did you mean void"),
    "void as a number": ("classes: [a]\nvoid: 255", r"void: expected a list of ids, .*got 255"),
    "octal void": ("classes: [a]\nvoid: [010]", "void: expected a list of ids"),
    "YOLO": ("names: {0: a}\nnc: 1", "`classes` of 1 to 255 entries .*`names:` is a key of YOLO"),
    "mapping": ("classes: {0: a}", "expected a list `classes` .* got {0: 'a'}"),
    "twice": ("classes: [a, b, ' a']", "name 'a' appears twice"),
    "twice in other forms": (
        "classes: [caf\u00e9, cafe\u0301]",
        "name 'caf\u00e9' appears twice",
    ),
    "id twice": ("classes: [{name: a, id: 1}, b]", "id 1 appears twice"),
    "color twice": (
        "classes: [{name: a, color: [1, 1, 1]}, {name: b, color: [1, 1, 1]}]",
        r"color \[1, 1, 1\] appears twice",
    ),
    "key twice": ("classes: [a]\nclasses: [b]", "the key 'classes' appears twice"),
    "field twice": ("classes: [{name: a, name: b}]", "the key 'name' appears twice"),
    "python": ("classes: [!!python/object:os.system a]", "cannot be read as YAML"),
    "deep": ("[" * 50_000, "cannot be read as YAML"),
}


@pytest.mark.parametrize("case", CLASS_FAULTS)
def test_faults_of_classes_yaml_name_the_field(tmp_path: Path, case: str) -> None:
    text, message = CLASS_FAULTS[case]
    path = tmp_path / "classes.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=rf"classes\.yaml: .*{message}") as caught:
        read_classes(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_classes_yaml_in_any_unicode(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "classes.yaml"
    path.write_text("classes: [stra\u00dfe]", encoding=encoding)
    assert read_classes(path).classes.names == ("stra\u00dfe",)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le"])
def test_other_encodings_are_told_of_utf_8(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "classes.yaml"
    path.write_text("classes: [stra\u00dfe]", encoding=encoding)
    with pytest.raises(DataError, match=r"classes\.yaml: cannot be read \(.*\); save it as UTF-8"):
        read_classes(path)


@pytest.mark.parametrize("key", ["classes", "void"])
def test_aliases_make_no_long_message(tmp_path: Path, key: str) -> None:
    """Nine levels of nine aliases are 400 bytes, and four hundred million entries to print."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    lines += ["classes: [*a9]" if key == "classes" else "classes: [a]\nvoid: *a9"]
    (tmp_path / "classes.yaml").write_text("\n".join(lines))
    start = time.monotonic()
    with pytest.raises(DataError) as caught:
        read_classes(tmp_path / "classes.yaml")
    assert len(str(caught.value)) < 400 and time.monotonic() - start < 10


def test_255_is_a_class_where_the_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "classes.yaml"
    path.write_text("classes: [{id: 0, name: a}, {id: 255, name: b}]")
    assert read_classes(path).classes.void_ids == ()


def test_what_is_passed_over_is_told(tmp_path: Path) -> None:
    trees.folder(tmp_path)
    images = tmp_path / "images"
    for name in ("a.xcf", "b.xcf", "notes.txt", "Thumbs.db", ".hidden.xcf"):
        (images / name).write_bytes(b"")
    (images / "more").mkdir()
    (images / "4.jpg").rename(images / "4.xcf")
    notes = open_dataset("folder", tmp_path).notes
    assert notes[0].endswith(
        "images: 4 files passed over (3 .xcf, 1 .txt) and 1 folders not looked into, such as 'more'"
    )
    assert notes[1].endswith("masks: 1 have no image, such as '4'")
    assert ImageFiles(images, open_dataset("folder", tmp_path).classes).notes == notes[:1]
    for path in images.glob("*.jpg"):
        path.unlink()
    with pytest.raises(DataError, match=r"no images there .*4 files passed over \(3 \.xcf"):
        open_dataset("folder", tmp_path)


def test_a_good_folder_has_no_notes(tmp_path: Path) -> None:
    trees.folder(tmp_path)
    assert open_dataset("folder", tmp_path).notes == ()


@pytest.mark.parametrize("ending", ["JFIF", "jpe", "gif", "avif", "jp2", "ppm"])
def test_more_endings_are_images(tmp_path: Path, ending: str) -> None:
    if f".{ending}".lower() not in Image.registered_extensions():
        pytest.skip(f"this Pillow does not read {ending}")
    trees.folder(tmp_path)
    for path in (tmp_path / "images").iterdir():
        Image.new("RGB", (8, 6)).save(path.with_suffix(f".{ending}"))
        path.unlink()
    assert open_dataset("folder", tmp_path)[0].image.shape == (6, 8, 3)


def test_names_agree_whichever_system_wrote_them(tmp_path: Path) -> None:
    trees.folder(tmp_path)
    for folder, form in (("images", "NFD"), ("masks", "NFC"), ("instances", "NFD")):
        path = next((tmp_path / folder).glob("3.*"))
        path.rename(path.with_stem(unicodedata.normalize(form, "caf\u00e9")))
    for split in ("train", "val"):
        samples = open_dataset("folder", tmp_path, split)
        names = [samples[index].name for index in range(len(samples))]
        if "caf\u00e9" in names:
            return
    pytest.fail("no sample of that name")


def test_names_that_are_no_unicode(tmp_path: Path) -> None:
    """Zips of other systems leave such names behind."""
    trees.folder(tmp_path, 2)
    for folder in ("images", "masks", "instances"):
        for path in (tmp_path / folder).iterdir():
            path.rename(path.with_stem(f"{path.stem}-\udce9"))
    arguments = ["--data", "folder", "--root", str(tmp_path), "--out", str(tmp_path / "out")]
    assert check_data(arguments) == 0


def voc(root: Path) -> None:
    for name in ("JPEGImages", "SegmentationClass"):
        (root / name).mkdir()


def labelme(root: Path) -> None:
    (root / "a.json").write_text(json.dumps({"shapes": [], "imagePath": "a.jpg"}))


def label_studio(root: Path) -> None:
    (root / "project.json").write_text(json.dumps([{"id": 1, "data": {}, "annotations": []}]))


def yolo(root: Path) -> None:
    (root / "images" / "train").mkdir(parents=True)
    (root / "labels" / "train").mkdir(parents=True)
    (root / "labels" / "train" / "a.txt").write_text("0 .1 .1 .2 .2")


def cvat_xml(root: Path) -> None:
    (root / "annotations.xml").write_text("<annotations/>")


def supervisely(root: Path) -> None:
    (root / "ds0" / "ann").mkdir(parents=True)
    (root / "meta.json").write_text(json.dumps({"classes": []}))


def roboflow_masks(root: Path) -> None:
    (root / "train").mkdir()
    (root / "train" / "_classes.csv").write_text("Pixel Value, Class\n0, background\n")


def datumaro(root: Path) -> None:
    (root / "annotations").mkdir()
    (root / "annotations" / "train.json").write_text(json.dumps({"items": [], "categories": {}}))
    (root / "annotations" / "val.json").write_text(json.dumps({"items": [], "categories": {}}))


def coco_of_other_names(root: Path) -> None:
    trees.coco_json(root)
    for name in ("first.json", "second.json"):
        (root / name).write_bytes((root / "annotations.json").read_bytes())
    (root / "annotations.json").unlink()


FOREIGN = {
    "voc": (voc, "rename JPEGImages to images .*labelmap"),
    "labelme": (labelme, r"labelme2coco\.py, and use --data coco-json"),
    "label studio": (label_studio, "export the project as COCO with images"),
    "cvat": (cvat_xml, "CVAT.*export the task as COCO 1"),
    "supervisely": (supervisely, "Supervisely.*export the project as COCO"),
    "roboflow": (roboflow_masks, "Roboflow.*export the version as COCO"),
    "datumaro": (datumaro, "Datumaro.*export the project as COCO"),
    "yolo": (yolo, "YOLO.*export the project as COCO"),
    "folder": (trees.folder, "this is the layout of own folders: use --data folder"),
    "coco": (trees.coco_json, "there is a COCO JSON: use --data coco-json"),
}


@pytest.mark.parametrize("tool", FOREIGN)
def test_layouts_of_other_tools_are_named(tmp_path: Path, tool: str) -> None:
    make, message = FOREIGN[tool]
    make(tmp_path)
    for name in {"folder", "coco-json"} - {"coco-json" if tool == "coco" else tool}:
        with pytest.raises(DataError, match=f"expected .*; .*{message}"):
            open_dataset(name, tmp_path)


def test_coco_that_coco_json_does_not_read(tmp_path: Path) -> None:
    coco_of_other_names(tmp_path / "own")
    with pytest.raises(DataError, match=r"rename them to train\.json and val\.json"):
        open_dataset("coco-json", tmp_path / "own")
    trees.coco(tmp_path / "coco")
    with pytest.raises(DataError, match=r"--set labels=instances can read: use --data coco$"):
        open_dataset("coco-json", tmp_path / "coco")


def test_names_that_the_terminal_cannot_show(tmp_path: Path) -> None:
    """As on Windows, where the output that goes to a file has 8 bits a letter."""
    trees.folder(tmp_path)
    file = tmp_path / "classes.yaml"
    file.write_text(file.read_text().replace("car", "\u043c\u044f\u0447"), encoding="utf-8")
    code = "import sys; from maskattn_kernels.cli import main; sys.exit(main(sys.argv[1:]))"
    words = ["check-data", "--data", "folder", "--root", str(tmp_path), "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**os.environ, "PYTHONIOENCODING": "cp1252"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert rb"\u043c\u044f\u0447" in done.stdout


def test_a_line_break_in_a_name_makes_no_second_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trees.folder(tmp_path)
    (tmp_path / "images" / "1.jpg").write_bytes(b"no image")
    for folder in ("images", "masks", "instances"):
        path = next((tmp_path / folder).glob("1.*"))
        path.rename(path.with_stem("a\nb"))
    assert check_data(["--data", "folder", "--root", str(tmp_path), "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "a b.jpg: not an image" in line
