# SPDX-License-Identifier: BSD-3-Clause
"""`maskattn check-data`: what it prints and writes, its exit codes; COCO's formats and back."""

import json
from pathlib import Path

import data_trees as trees
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from maskattn_kernels.segmentation.data.coco_format import (
    ids_from_rgb,
    labels_from_segments,
)
from maskattn_kernels.segmentation.data.coco_panoptic import CocoPanoptic
from maskattn_kernels.segmentation.data.command import main
from maskattn_kernels.segmentation.data.digit_scenes import DigitScenes
from maskattn_kernels.segmentation.data.run_lengths import outlines
from maskattn_kernels.segmentation.data.sample import VOID
from maskattn_kernels.segmentation.prediction.coco_files import PanopticWriter


def test_a_good_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trees.folder(tmp_path, 5)
    out = tmp_path / "sheets"
    assert main(["--data", "folder", "--root", str(tmp_path), "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:7] == [
        "folder: 2 classes, 1 things, 1 stuff",
        "train: 4 images",
        "  size      8 x 6",
        "  objects   1 to 1, mean 1.0",
        "  void      8.3% of the pixels",
        "  class  kind    pixels  images",
        "  road   stuff   54.55%       4  ########################",
    ]
    assert "  car    thing   45.45%       4  ####################" in lines
    for split, columns in (("train", 4), ("val", 1)):
        sheet = Image.open(out / f"folder-{split}.png")
        assert sheet.width == 256 * columns and sheet.height > 512


def test_a_generated_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--data",
        "digit-scenes",
        "--images",
        "5",
        "--samples",
        "0",
        "--set",
        "textures=shifted",
    ]
    assert main([*arguments, "--out", str(tmp_path / "none")]) == 0
    assert "train: 2048 images (5 of them read)" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


def test_faults_are_lines_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trees.folder(tmp_path, 30)
    for number in range(30):
        trees.save(tmp_path / "masks" / f"{number}.png", trees.grid(0, 9, 0))
    assert main(["--data", "folder", "--root", str(tmp_path), "--out", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11 and lines[-1] == "maskattn check-data: and 20 more faults"
    assert "unknown id 9; add it to classes" in lines[0]
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["folder", "--root", "nowhere"], "nowhere: no such folder; expected the layout"),
        (["folder"], "root: folder needs the folder of its files"),
        (
            ["digit-scenes", "--set", "colour=1"],
            "unknown option 'colour' for digit-scenes; known: ",
        ),
    ],
)
def test_unusable_data(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]


def test_one_split(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", "digit-scenes", "--split", "val", "--samples", "0", "--images", "2"]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "digit-scenes: 18 classes, 10 things, 8 stuff",
        "val: 256 images (2 of them read)",
    ]
    assert not any(line.startswith("train") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "voc"], "argument --data: invalid choice: 'voc' (choose from"),
        (["--data", "folder", "--images", "x"], "expected a whole number from 0, got 'x'"),
        (["--data", "folder", "--set", "legend"], "--set: expected KEY=VALUE, got 'legend'"),
        (["folder", "--root", "own"], "argument name: expected --data folder"),
        ([], "required: --data"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]


def test_panoptic_is_read_as_it_was_written(tmp_path: Path) -> None:
    scenes = DigitScenes("val", count=3)
    writer = PanopticWriter(tmp_path / "panoptic.json", scenes.classes)
    for index in range(3):
        scene = scenes[index]
        semantic = scene.semantic.copy()
        semantic[:4] = VOID
        name = f"{scene.name}.png"
        writer.add(index, scene.name, name, semantic, scene.instance, scores=[0.5] * 9)
        Image.fromarray(scene.image).save(tmp_path / name)
    writer.close()
    again = CocoPanoptic(tmp_path / "panoptic.json", tmp_path, tmp_path / "panoptic")
    assert again.classes.names == scenes.classes.names
    assert again.classes.things == scenes.classes.things
    for index in range(3):
        scene, read = scenes[index], again[index]
        assert (read.semantic[:4] == VOID).all() and (read.instance[:4] == 0).all()
        np.testing.assert_array_equal(read.semantic[4:], scene.semantic[4:])
        pairs = np.unique(np.stack([read.instance[4:], scene.instance[4:]]).reshape(2, -1), axis=1)
        assert len(pairs[0]) == len(set(pairs[0])) == len(set(pairs[1])), "objects one to one"


def test_segments_say_what_the_picture_shows(tmp_path: Path) -> None:
    scene = DigitScenes("val")[0]
    writer = PanopticWriter(tmp_path / "p.json", DigitScenes.classes)
    scores = list(np.arange(9) / 10)
    writer.add(1, "a", "a.jpg", scene.semantic, scene.instance, scores)
    writer.close()
    content = json.loads((tmp_path / "p.json").read_text())
    ids = ids_from_rgb(np.asarray(Image.open(tmp_path / "p" / "a.png")))
    segments = content["annotations"][0]["segments_info"]
    assert {s["id"] for s in segments} == set(np.unique(ids)) - {0}
    for segment in segments:
        rows, columns = np.nonzero(ids == segment["id"])
        assert segment["area"] == len(rows)
        x, y, width, height = segment["bbox"]
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width - 1, y + height - 1) == (columns.max(), rows.max())
        assert ("score" in segment) == DigitScenes.classes.is_thing[segment["category_id"]]
    semantic, _, unseen = labels_from_segments(ids, segments, DigitScenes.classes)
    np.testing.assert_array_equal(semantic, scene.semantic)
    assert not unseen


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 1), (40, 60), (300, 200)])
def test_run_lengths_are_those_of_pycocotools(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(sum(shape))
    instance = random.integers(0, 4, shape)
    instance[: shape[0] // 2] = 7 if shape[0] > 2 else instance[:1]  # long runs beside short ones
    seen = []
    for outline in outlines(instance):
        mask = instance == outline.number
        seen.append(outline.number)
        theirs = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        assert outline.segmentation["counts"] == theirs["counts"].decode()
        assert outline.segmentation["size"] == theirs["size"] == list(shape)
        assert outline.area == coco_mask.area(theirs)
        assert outline.bbox == coco_mask.toBbox(theirs).tolist()
    assert seen == sorted(set(np.unique(instance)) - {0})
