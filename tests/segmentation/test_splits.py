# SPDX-License-Identifier: BSD-3-Clause
"""Own data in two parts: by a hash of names that never moves an image, or by folders of both."""

import json
from pathlib import Path

import data_trees as trees
import pytest

from maskattn_kernels.segmentation.data import DataError, open_dataset
from maskattn_kernels.segmentation.data.splits import share_out

NAMES = [f"frame-{number:03d}" for number in range(100)]


def split_of(names: list[str]) -> dict[str, str]:
    shares = {split: share_out(names, split, Path("x")) for split in ("train", "val")}
    assert sorted(shares["train"] + shares["val"]) == sorted(names)
    return {name: split for split, share in shares.items() for name in share}


def test_an_image_that_comes_or_goes_moves_no_other() -> None:
    whole = split_of(NAMES)
    for count in range(20, 100):
        part = split_of(NAMES[:count])
        assert part.items() <= whole.items()
    for gone in NAMES:
        assert split_of([name for name in NAMES if name != gone]).items() <= whole.items()
    assert 10 <= list(whole.values()).count("val") <= 30


def test_small_sets_have_both_parts() -> None:
    for count in range(2, 12):
        for start in range(80):
            parts = set(split_of(NAMES[start : start + count]).values())
            assert parts == {"train", "val"}
    with pytest.raises(DataError, match="one image only"):
        share_out(NAMES[:1], "train", Path("x"))


def names_of(name: str, root: Path) -> list[set[str]]:
    sets = [open_dataset(name, root, split) for split in ("train", "val")]
    return [{samples[n].name for n in range(len(samples))} for samples in sets]


@pytest.mark.parametrize("other", ["val", "valid", "validation"])
def test_folders_may_be_called_otherwise(tmp_path: Path, other: str) -> None:
    trees.folder(tmp_path, 2, apart=True)
    (tmp_path / "val").rename(tmp_path / other)
    (tmp_path / other / "images" / "1.jpg").unlink()
    assert names_of("folder", tmp_path) == [{"0", "1"}, {"0"}]


@pytest.mark.parametrize(("gone", "there"), [("val", "train"), ("train", "val")])
@pytest.mark.parametrize("beside", [False, True])
def test_one_folder_alone_is_refused(tmp_path: Path, gone: str, there: str, beside: bool) -> None:
    """A folder for one split alone leaves open which images are for the other."""
    trees.folder(tmp_path, 3, apart=True)
    (tmp_path / gone).rename(tmp_path / "elsewhere")
    if beside:
        trees.folder(tmp_path, 3)
    message = rf"there is {there} and nothing for {gone}; add {gone}, or leave both out"
    for split in ("train", "val"):
        with pytest.raises(DataError, match=message):
            open_dataset("folder", tmp_path, split)


def coco_rows(*names: str) -> str:
    rows = {"images": [{"id": n, "file_name": name} for n, name in enumerate(names)]}
    box = [[1, 1, 5, 1, 5, 5]]
    rows["annotations"] = [
        {"id": n, "image_id": n, "category_id": 1, "segmentation": box} for n in range(len(names))
    ]
    return json.dumps({**rows, "categories": [{"id": 1, "name": "cell"}]})


LAYOUTS = {
    "ours": ("{}.json", "{}"),
    "ours in annotations": ("annotations/{}.json", "images"),
    "Datumaro": ("annotations/instances_{}.json", "images/{}"),
    "Roboflow": ("{}/_annotations.coco.json", "{}"),
}


@pytest.mark.parametrize(("train", "val"), [("train", "valid"), ("Train", "Validation")])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_coco_in_the_layouts_of_tools(tmp_path: Path, layout: str, train: str, val: str) -> None:
    form, images = LAYOUTS[layout]
    for split, name in ((train, "a"), (val, "b")):
        trees.photo(tmp_path / images.format(split) / f"{name}.png")
        path = tmp_path / form.format(split)
        path.parent.mkdir(exist_ok=True)
        path.write_text(coco_rows(f"{name}.png"))
    assert names_of("coco-json", tmp_path) == [{"a"}, {"b"}]
    trees.photo(tmp_path / images.format(train) / "new.png")
    notes = open_dataset("coco-json", tmp_path, "train").notes
    assert [line.endswith("are not in it, such as 'new.png'") for line in notes] == (
        [] if images == "images" else [True]
    )
    (tmp_path / form.format(val)).unlink()
    with pytest.raises(DataError, match="nothing for val"):
        open_dataset("coco-json", tmp_path, "train")


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("annotations.json", "images"),
        ("annotations/instances_default.json", "images"),
        ("annotations/instances_default.json", "images/default"),
        ("_annotations.coco.json", "."),
        ("result.json", "images"),  # Label Studio
        ("labels_my-project.json", "."),
    ],
)
def test_coco_without_splits(tmp_path: Path, file: str, images: str) -> None:
    names = [f"{letter}.png" for letter in "abcdefgh"]
    for name in names:
        trees.photo(tmp_path / images / name)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(coco_rows(*names))
    assert open_dataset("coco-json", tmp_path).notes == ()
    (tmp_path / images / "._a.png").write_bytes(b"of macOS")
    trees.photo(tmp_path / images / "new.png")
    (note,) = open_dataset("coco-json", tmp_path).notes
    assert "1 images of" in note and note.endswith("are not in it, such as 'new.png'")
    train, val = names_of("coco-json", tmp_path)
    assert len(train) + len(val) == 8 and val and not train & val
