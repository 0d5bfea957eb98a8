# SPDX-License-Identifier: BSD-3-Clause
"""Labels from which nothing can be learned are faults before training; odd ones are notes."""

from collections.abc import Callable, Sequence
from pathlib import Path

import data_trees as trees
import numpy as np
import pytest
from PIL import Image

from maskattn_kernels.segmentation.data import DataError, open_dataset
from maskattn_kernels.segmentation.data.command import main
from maskattn_kernels.segmentation.data.findings import Findings, shared_images, survey
from maskattn_kernels.segmentation.data.judge import differing, judge
from maskattn_kernels.segmentation.data.sample import VOID, Classes, Sample
from maskattn_kernels.segmentation.training.command import main as train

COLORS = ((0, 0, 9), (9, 0, 0), (0, 9, 0))
CLASSES = Classes(("sea", "land", "ship"), (False, False, True), COLORS, (0, 1, 2))


def counted(*pixels: int, void: int = 0, objects: Sequence[int] = (1,)) -> Findings:
    found = Findings(total=4, read=4, objects=list(objects))
    found.pixels[: len(pixels)] = pixels
    found.pixels[VOID] = void
    return found


FAULTS = {
    "void only": ({"train": counted(void=9)}, r"train: every pixel is void; .* sea, land, ship"),
    "void only in val": (
        {"train": counted(5, 5), "val": counted(void=9)},
        "val: every pixel is void",
    ),
    "one class and void": (
        {"train": counted(5, void=9)},
        r"train: only 'sea' has pixels, all others are void; .*are land, ship, .*`void: \[\]`",
    ),
    "one class": (
        {"train": counted(0, 5), "val": counted(5, 5)},
        "train: only 'land' has pixels; expected pixels of sea, ship too",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults(case: str) -> None:
    splits, message = FAULTS[case]
    with pytest.raises(AssertionError, match=message):
        assert not judge(splits, CLASSES)[0], judge(splits, CLASSES)[0][0]


def test_a_single_declared_class_is_a_fault() -> None:
    alone = Classes(("sea",), (False,), COLORS[:1], (0,))
    (fault,), _ = judge({"train": counted(5, void=5)}, alone)
    assert "'sea' is the only class" in fault and "void now" in fault


NOTES = {
    "nothing": ({"train": counted(5, 5, 5), "val": counted(5, 5, 5)}, []),
    "a class nowhere": (
        {"train": counted(5, 5), "val": counted(5, 5)},
        ["no pixel of 1 of 3 classes in all 8 images: ship"],
    ),
    "a class in val only": (
        {"train": counted(5, 5), "val": counted(5, 5, 5)},
        ["train has no pixel of ship, which val has"],
    ),
    "a class in train only": (
        {"train": counted(5, 5, 5), "val": counted(5, 5)},
        ["val has no pixel of ship, which train has"],
    ),
    "one class in val": (
        {"train": counted(5, 5, 5), "val": counted(5)},
        ["val has no pixel of land, ship", "val: only 'sea' has pixels"],
    ),
    "no objects": (
        {"train": counted(5, 5, 5, objects=()), "val": counted(5, 5, 5, objects=())},
        ["no labels of objects, so those of ship cannot be told apart"],
    ),
}


@pytest.mark.parametrize("case", NOTES)
def test_notes(case: str) -> None:
    splits, expected = NOTES[case]
    faults, notes = judge(splits, CLASSES)
    assert not faults and len(notes) == len(expected)
    assert all(note.startswith(begin) for note, begin in zip(notes, expected, strict=True))


def test_what_is_known_of_some_images_is_said_of_them() -> None:
    part = counted(5, 5)
    part.total = 900
    assert "in the 4 of 900 images that were read" in judge({"train": part}, CLASSES)[1][0]


class Labels:
    """Samples of constant labels."""

    classes = CLASSES

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers = numbers
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Sample:
        self.asked.append(index)
        values = np.full((2, 2), self.numbers[index], dtype=np.uint8)
        return Sample(str(index), np.zeros((2, 2, 3), np.uint8), values, values.astype(np.int32))


class PartlyOf0And255(Labels):
    """As two people save the same masks: one writes 1, the other 255."""

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        semantic = np.array([[0, VOID if self.numbers[index] else 1]], dtype=np.uint8)
        return Sample(sample.name, np.zeros((1, 2, 3), np.uint8), semantic)


def test_a_part_of_the_masks_of_0_and_255_is_told() -> None:
    notes = survey({"train": PartlyOf0And255([0, 0, 1, 0, 1])}, 0).notes
    assert notes[0].startswith("train: 2 images show only 'sea' and void, such as '2'; if their vo")
    few = survey({"train": PartlyOf0And255([0] * 50 + [1] * 2)}, 0).notes
    assert not any("void" in note for note in few)


def test_it_is_told_how_far_the_reading_is() -> None:
    told: list[str] = []
    survey({"train": Labels([0, 1] * 5)}, 4, progress=told.append)
    assert told == [f"train: {done} of 4 images read" for done in range(1, 5)]


def test_a_rare_class_is_no_fault() -> None:
    """Only where everything was read is a set said to have one class."""
    rare = Labels([0] * 777 + [1] + [0] * 222)
    assert not survey({"train": rare}, 10).faults
    same = Labels([0] * 1000)
    assert survey({"train": same}, 10).faults and sorted(same.asked) == list(range(1000))
    mixed = Labels([0, 1] * 500)
    assert not survey({"train": mixed}, 9).faults and len(mixed.asked) == 9


def test_only_the_images_in_use_are_judged() -> None:
    labels = Labels([0] * 50 + [1] * 50)
    assert survey({"train": labels}, 0, {"train": range(50)}).faults
    assert not survey({"train": labels}, 0).faults


def test_classes_that_differ_are_named() -> None:
    other = Classes(("sea", "ship", "quay"), (False, True, False), COLORS, (0, 1, 2))
    (fault,) = differing(CLASSES, other)
    assert "(only in train: 'land'; only in val: 'quay')" in fault
    swapped = Classes(("land", "sea", "ship"), (False, False, True), COLORS, (0, 1, 2))
    assert "order are not the same" in differing(CLASSES, swapped)[0]
    assert not differing(CLASSES, CLASSES)


def test_images_that_both_splits_have(tmp_path: Path) -> None:
    content = {"a": b"x" * 9000, "b": b"y" * 9000, "c": b"x" * 8999 + b"y", "d": b"z" * 70}
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    for name in ("e", "f"):
        (tmp_path / name).write_bytes(content["a"])
    files = {name: tmp_path / name for name in "abcdef"}
    val = {"other": files["e"], "c": files["c"], "f": files["f"]}
    names, twins = shared_images({name: files[name] for name in "abcd"}, val)
    assert names == "1 names are in train and in val, such as 'c'"
    assert twins.startswith("3 images of val are in train too, such as ")
    assert not shared_images({"b": files["b"]}, {"a": files["a"]})


def test_images_that_exif_turns_are_told(tmp_path: Path) -> None:
    """With orientation 3 the size stays, so that labels of the stored pixels fit and are wrong."""
    trees.folder(tmp_path, 5)
    assert not survey({"train": open_dataset("folder", tmp_path)}, 0).notes
    exif = Image.Exif()
    exif[0x112] = 3
    for path in (tmp_path / "images").iterdir():
        Image.new("RGB", (8, 6)).save(path, exif=exif)
    sets = {split: open_dataset("folder", tmp_path, split) for split in ("train", "val")}
    (note,) = [note for note in survey(sets, 0).notes if "EXIF" in note]
    assert note.startswith("5 of the images read are turned by their EXIF orientation, such as ")


def masks_of_0_and_255(root: Path) -> None:
    for path in (root / "masks").iterdir():
        trees.save(path, trees.grid(0, 255, 255))


def masks_of_void(root: Path) -> None:
    for path in (root / "masks").iterdir():
        trees.save(path, trees.grid(255, 255, 255))


def masks_of_road(root: Path) -> None:
    for path in (root / "masks").iterdir():
        trees.save(path, trees.grid(0, 0, 0))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (masks_of_0_and_255, "train: only 'road' has pixels, all others are void"),
        (masks_of_void, "train: every pixel is void"),
        (masks_of_road, "train: only 'road' has pixels; expected pixels of car too"),
    ],
)
def test_neither_command_goes_on(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
    message: str,
) -> None:
    trees.folder(tmp_path / "own", 10)
    spoil(tmp_path / "own")
    data = ["--data", "folder", "--root", str(tmp_path / "own")]
    assert main([*data, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err.splitlines()[0]
    network = ["--network.width", "4", "--network.depth", "2", "--data.size", "32"]
    with pytest.raises(DataError, match=message):
        train([*data, *network, "--steps", "1", "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_both_commands_tell_notes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trees.folder(tmp_path / "own", 10)
    path = tmp_path / "own" / "classes.yaml"
    path.write_text(path.read_text().replace("void:", "  - {id: 9, name: quay}\nvoid:"))
    data = ["--data", "folder", "--root", str(tmp_path / "own")]
    note = "note: no pixel of 1 of 3 classes in all 10 images: quay"
    assert main([*data, "--out", str(tmp_path)]) == 0
    assert note in capsys.readouterr().out.splitlines()
    network = ["--network.width", "4", "--network.depth", "2", "--data.size", "32"]
    train([*data, *network, "--steps", "1", "--out", str(tmp_path / "run")])
    assert note in capsys.readouterr().err.splitlines()
