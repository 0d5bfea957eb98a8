# SPDX-License-Identifier: BSD-3-Clause
"""Each published layout and own data: what is read, and what is said of data that is not right."""

import json
from pathlib import Path

import data_trees as trees
import numpy as np
import pytest
from PIL import Image

from maskattn_kernels.segmentation.data import DataError, open_dataset
from maskattn_kernels.segmentation.data import images as image_files
from maskattn_kernels.segmentation.data.digit_scenes import DigitScenes
from maskattn_kernels.segmentation.data.sample import VOID, Sample, SegmentationDataset

MAKE = {
    "coco": trees.coco,
    "ade20k": trees.ade20k,
    "cityscapes": trees.cityscapes,
    "bdd100k": trees.bdd100k,
    "folder": trees.folder,
    "coco-json": trees.coco_json,
}


def first(name: str, root: Path, **options: str) -> tuple[SegmentationDataset, Sample]:
    samples = open_dataset(name, root, "val", **options)
    return samples, samples[0]


def expected(left: int, right: int, corner: int = VOID) -> np.ndarray:
    return trees.grid(left, right, corner)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name", MAKE)
def test_every_layout(tmp_path: Path, name: str, split: str) -> None:
    MAKE[name](tmp_path)
    samples = open_dataset(name, tmp_path, split)
    assert isinstance(samples, SegmentationDataset) and len(samples) >= 1
    for index in range(len(samples)):
        sample = samples[index]
        assert sample.image.shape == (6, 8, 3) and sample.image.dtype == np.uint8
        assert sample.semantic.dtype == np.uint8 and sample.instance.dtype == np.int32
        objects = sample.instance > 0
        assert objects.any() and np.isin(sample.semantic[objects], samples.classes.things).all()
        assert set(np.unique(sample.semantic)) <= {*range(len(samples.classes)), VOID}
    classes = samples.classes
    sizes = {len(classes.names), len(classes.is_thing), len(classes.colors), len(classes.ids)}
    assert sizes == {len(classes)} == {len(set(classes.names))} == {len(set(classes.ids))}


def test_cityscapes_ids_are_mapped_by_its_table(tmp_path: Path) -> None:
    trees.cityscapes(tmp_path)
    samples, sample = first("cityscapes", tmp_path)
    semantic = expected(0, 13)
    semantic[0, -1] = VOID
    np.testing.assert_array_equal(sample.semantic, semantic)
    assert np.unique(sample.instance).tolist() == [0, 26001]
    assert sample.instance[0, 4] == 0 and sample.semantic[0, 4] == 13
    assert samples.classes.names[13] == "car" and len(samples.classes) == 19
    assert sample.name == "aachen_000000_000019"


@pytest.mark.parametrize("kind", ["ins_seg", "pan_seg"])
def test_bdd100k_objects(tmp_path: Path, kind: str) -> None:
    trees.bdd100k(tmp_path, kind)
    _, sample = first("bdd100k", tmp_path)
    semantic = expected(0, 13)
    semantic[0, 4:] = VOID
    np.testing.assert_array_equal(sample.semantic, semantic)
    assert np.unique(sample.instance).tolist() == [0, 258]


@pytest.mark.parametrize(
    ("objects", "number"), [("panoptic", 9 * 257), ("instances", 6), ("none", None)]
)
def test_ade20k_0_is_void(tmp_path: Path, objects: str, number: int | None) -> None:
    trees.ade20k(tmp_path, objects)
    samples, sample = first("ade20k", tmp_path)
    np.testing.assert_array_equal(sample.semantic, expected(0, 12))
    assert len(samples.classes) == 150 and len(samples.classes.things) == 100
    assert [samples.classes.names[n] for n in (0, 12, 149)] == ["wall", "person", "flag"]
    if number is None:
        assert sample.instance is None
    else:
        assert np.unique(sample.instance).tolist() == [0, number]


def test_coco_panoptic_has_stuff_and_void_crowds(tmp_path: Path) -> None:
    trees.coco(tmp_path)
    samples, sample = first("coco", tmp_path)
    assert samples.classes.ids == (1, 3, 187) and samples.classes.things == (0, 1)
    semantic = expected(2, 1)
    semantic[0, 4:] = VOID
    np.testing.assert_array_equal(sample.semantic, semantic)
    np.testing.assert_array_equal(sample.instance > 0, semantic == 1)


def test_coco_instances_lie_on_background_the_smaller_on_top(tmp_path: Path) -> None:
    trees.coco(tmp_path)
    samples, sample = first("coco", tmp_path, labels="instances")
    assert samples.classes.names == ("person", "car", "background")
    semantic = np.full((6, 8), 2)
    semantic[:, :4] = 1
    semantic[:2, :2] = 0
    semantic[:, 6:] = VOID
    np.testing.assert_array_equal(sample.semantic, semantic)
    assert [(sample.instance == n).sum() for n in (1, 2)] == [20, 4]


@pytest.mark.parametrize("name", ["folder", "coco-json"])
def test_own_data_is_split_once_and_for_all(tmp_path: Path, name: str) -> None:
    MAKE[name](tmp_path, 10)
    names = []
    for split in ("train", "val", "train"):
        samples = open_dataset(name, tmp_path, split)
        names.append({samples[index].name for index in range(len(samples))})
    assert len(names[0]) == 8 and len(names[1]) == 2
    assert not names[0] & names[1] and names[0] == names[2]


def test_folder_with_splits_palette_masks_and_plain_names(tmp_path: Path) -> None:
    trees.folder(tmp_path, 1, apart=True)
    (tmp_path / "classes.yaml").write_text("classes: [road, car]\nvoid: []\n")
    mask = Image.fromarray(trees.grid(0, 1, 1)).convert("P")
    mask.putpalette([0, 0, 0, 200, 0, 0])
    mask.save(tmp_path / "val" / "masks" / "0.png")
    samples, sample = first("folder", tmp_path)
    np.testing.assert_array_equal(sample.semantic, expected(0, 1, 1))
    assert samples.classes.names == ("road", "car") and samples.classes.things == ()


def remove(path: Path) -> None:
    path.rename(path.with_name(f"{path.name}.away"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


FAULTS = {
    "no root": (lambda root: remove(root / "masks"), r"masks: no such folder; expected the layout"),
    "no classes": (lambda root: remove(root / "classes.yaml"), r"classes\.yaml: no such file"),
    "no images": (
        lambda root: [p.unlink() for p in (root / "images").iterdir()],
        r"images: no images there \(files ending in \.jpg",
    ),
    "no match": (
        lambda root: [p.rename(p.with_stem(f"{p.stem}_mask")) for p in (root / "masks").iterdir()],
        r"masks: no mask for any of 5 images; expected '0' .* there are '0_mask' and others",
    ),
    "one unmatched": (
        lambda root: (root / "masks" / "3.png").unlink(),
        r"masks: no mask for 1 of 5 images, such as '3'; add them or remove the images",
    ),
    "twins": (
        lambda root: trees.photo(root / "images" / "3.png"),
        r"images: two files named 3: 3\.jpg and 3\.png",
    ),
    "unknown id": (
        lambda root: trees.save(root / "masks" / "3.png", trees.grid(0, 9, 8)),
        r"3\.png: unknown id 8, 9; add it to classes or to void in .*classes\.yaml",
    ),
    "colours": (
        lambda root: trees.save(root / "masks" / "3.png", np.full((6, 8, 3), (9, 8, 7), np.uint8)),
        r"3\.png: unknown color \[9, 8, 7\]; give it to a class as `color:` or add it to void in",
    ),
    "other size": (
        lambda root: trees.photo(root / "images" / "3.jpg", 12, 16),
        r"3\.png: labels of 8 x 6 pixels for an image of 16 x 12; save them at the size",
    ),
    "other size of instances": (
        lambda root: trees.save(root / "instances" / "3.png", np.zeros((3, 4), np.uint8)),
        r"instances/3\.png: labels of 4 x 3 pixels for an image of 8 x 6",
    ),
    "truncated mask": (lambda root: truncate(root / "masks" / "3.png"), r"3\.png: cannot be read"),
    "truncated": (lambda root: truncate(root / "images" / "3.jpg"), r"3\.jpg: (cannot be|not an)"),
    "no image": (
        lambda root: (root / "images" / "3.jpg").write_text("hello"),
        r"3\.jpg: not an image that can be read; remove it or save it again",
    ),
    "bad yaml": (
        lambda root: (root / "classes.yaml").write_text("classes: [a"),
        r"classes\.yaml: cannot be read as YAML",
    ),
    "no list": (
        lambda root: (root / "classes.yaml").write_text("names: [a]"),
        r"classes\.yaml: expected a list `classes` of 1 to 255 entries",
    ),
    "bad entry": (
        lambda root: (root / "classes.yaml").write_text("classes: [{id: -1, name: a}]"),
        r"classes\.yaml: classes, entry 1: id: expected a whole number from 0 to 65535, got -1",
    ),
    "id twice": (
        lambda root: (root / "classes.yaml").write_text("classes: [{id: 9, name: a}]\nvoid: [9]"),
        r"classes\.yaml: id 9 is in classes and in void; expected it in one",
    ),
}


def read_all(name: str, root: Path) -> None:
    for split in ("train", "val"):
        samples = open_dataset(name, root, split)
        for index in range(len(samples)):
            samples[index]


@pytest.mark.parametrize("fault", FAULTS)
def test_folder_faults_are_one_clear_line(tmp_path: Path, fault: str) -> None:
    trees.folder(tmp_path)
    spoil, message = FAULTS[fault]
    spoil(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        read_all("folder", tmp_path)
    assert "\n" not in str(caught.value)


def test_absurd_images_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees.folder(tmp_path)
    monkeypatch.setattr(image_files, "MAX_PIXELS", 47)
    with pytest.raises(DataError, match=r"8 x 6 pixels; expected at most"):
        read_all("folder", tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # Pillow's own limit
    with pytest.raises(DataError, match=r"absurdly many pixels"):
        read_all("folder", tmp_path)


@pytest.mark.parametrize("name", MAKE)
def test_a_missing_root_names_the_layout(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder; expected the layout .*[*]"):
        open_dataset(name, tmp_path / "nowhere")


LAYOUT_FAULTS = {
    "train ids for label ids": (
        "cityscapes",
        lambda r: trees.save(next(r.rglob("*_labelIds.png")), trees.grid(0, 200, 0)),
        r"labelIds\.png: unknown id 200; expected labelIds from 0 to 33",
    ),
    "empty cityscapes": (
        "cityscapes",
        lambda r: [p.unlink() for p in r.rglob("*_leftImg8bit.png")],
        r"no images; expected CITY/\*_leftImg8bit\.png",
    ),
    "full ade20k": (
        "ade20k",
        lambda r: trees.save(r / "annotations/training/t_1.png", trees.grid(0, 151, 0)),
        r"t_1\.png: unknown id 151; expected 0 \(void\) to 150",
    ),
    "label ids for bdd100k": (
        "bdd100k",
        lambda r: trees.save(r / "labels/sem_seg/masks/val/0a-1.png", trees.grid(26, 0, 0)),
        r"0a-1\.png: unknown id 26; expected trainIds from 0 to 18, or 255",
    ),
    "bitmask in grey": (
        "bdd100k",
        lambda r: trees.save(r / "labels/ins_seg/bitmasks/val/0a-1.png", trees.grid(1, 1, 1)),
        r"0a-1\.png: expected a bitmask of 4 channels",
    ),
    "unknown segment": (
        "coco",
        lambda r: trees.photo(r / "annotations/panoptic_val2017/000000000139.png"),
        r"139\.png: unknown id 5066061; neither a segment nor a category",
    ),
    "missing images": (
        "coco",
        lambda r: remove(r / "val2017/000000000139.jpg"),
        r"val2017: 1 of 1 images of panoptic_val2017\.json are not there, such as 0+139\.jpg",
    ),
    "no json": (
        "coco-json",
        lambda r: (r / "annotations.json").write_text("{"),
        r"annotations\.json: cannot be read as JSON",
    ),
    "json of another kind": (
        "coco-json",
        lambda r: (r / "annotations.json").write_text("[]"),
        r"annotations\.json: expected a list of objects named 'images'",
    ),
}


@pytest.mark.parametrize("fault", LAYOUT_FAULTS)
def test_layout_faults(tmp_path: Path, fault: str) -> None:
    name, spoil, message = LAYOUT_FAULTS[fault]
    MAKE[name](tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError, match=message):
        read_all(name, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_id": 99}, r"annotation 1 has the unknown category 99; add it to categories"),
        ({"segmentation": {"size": [2, 2], "counts": [1, 3]}}, r"annotation 1 is of 2 x 2 pixels"),
        ({"segmentation": ["nonsense"]}, r"annotation 1: a segmentation that cannot be read"),
    ],
)
def test_annotation_faults(tmp_path: Path, change: dict, message: str) -> None:
    trees.coco_json(tmp_path)
    path = tmp_path / "annotations.json"
    content = json.loads(path.read_text())
    content["annotations"][0] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        read_all("coco-json", tmp_path)


def test_images_without_labels_are_a_folder_or_one_file(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg"):
        Image.new("RGB", (20, 10)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    images = image_files.ImageFiles(tmp_path, DigitScenes.classes)
    assert [images[i].name for i in range(len(images))] == ["a", "b"]
    one = image_files.ImageFiles(tmp_path / "b.png", DigitScenes.classes)
    assert len(one) == 1 and one[0].name == "b"
    assert one[0].image.shape == (10, 20, 3) and one[0].semantic is None
