# SPDX-License-Identifier: BSD-3-Clause
"""What `maskattn predict` leaves is read back by our readers, pycocotools and panoptic tools."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from repository import ROOT
from segmentation_runs import CLASSES, measure_quickly, tiny_checkpoint, write_images

from maskattn_kernels.common.atomic import WriteError
from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.data import open_dataset
from maskattn_kernels.segmentation.data.coco_panoptic import CocoPanoptic
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.prediction import coco_files
from maskattn_kernels.segmentation.prediction import command as predict


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    measure_quickly(monkeypatch)


def seeing(folder: Path, task: str = "panoptic", centers: bool = True, **classes) -> Checkpoint:
    """A network that finds cars on the red half of an image, and road elsewhere."""
    checkpoint = tiny_checkpoint(folder, task=task)
    checkpoint.classes = replace(CLASSES, **classes)
    forward = checkpoint.network.forward

    def by_color(image: torch.Tensor, masks: object = None):
        outputs = forward(image)
        red = (image[:, 0] > image[:, 2]).float()
        semantic = torch.stack([torch.zeros_like(red), 9 - 9 * red, 9 * red], dim=1)
        if outputs.center is None:
            return outputs._replace(semantic=semantic)
        center = torch.zeros_like(outputs.center)
        if centers:
            height = center.shape[2]
            center[:, :, height // 4, 4], center[:, :, height * 3 // 4, 4] = 0.9, 0.8
        return outputs._replace(semantic=semantic, center=center, offset=outputs.offset * 0)

    checkpoint.network.forward = by_color  # type: ignore[method-assign]
    return checkpoint


def half_red(folder: Path, count: int = 6, ending: str = "png") -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.zeros((24, 40, 3), np.uint8)
        pixels[:, : 12 + number, 0] = 200
        pixels[:, 12 + number :, 2] = 200
        Image.fromarray(pixels).save(folder / f"street {number}.{ending}", quality=95)
    return folder


def check_as_panopticapi(out: Path, classes) -> list[dict]:
    """The rules of panopticapi's evaluation and converters; returns the annotations."""
    content = json.loads((out / "panoptic.json").read_text())
    categories = {row["id"]: row for row in content["categories"]}
    images = {row["id"]: row for row in content["images"]}
    assert list(categories) == list(classes.ids)
    assert all(isinstance(key, int) for key in (*categories, *images))
    for row in content["annotations"]:
        assert images[row["image_id"]]["file_name"].startswith(Path(row["file_name"]).stem)
        picture = Image.open(out / "panoptic" / row["file_name"])
        assert picture.mode == "RGB"
        assert picture.size == (images[row["image_id"]]["width"], 24)
        red, green, blue = np.moveaxis(np.asarray(picture, dtype=np.uint32), -1, 0)
        ids, areas = np.unique(red + 256 * green + 256**2 * blue, return_counts=True)
        there = dict(zip(ids.tolist(), areas.tolist(), strict=True))
        there.pop(0, None)
        assert there == {segment["id"]: segment["area"] for segment in row["segments_info"]}
        assert all(segment["category_id"] in categories for segment in row["segments_info"])
    return content["annotations"]


@pytest.mark.parametrize(("task", "centers"), [("semantic", True), ("panoptic", False)])
def test_things_without_objects_are_a_segment_of_their_class(task, centers, tmp_path):
    images, out = half_red(tmp_path / "images"), tmp_path / "out"
    checkpoint = seeing(tmp_path / "checkpoint", task, centers)
    predict.predict(images, checkpoint, out, panels=0)
    for row in check_as_panopticapi(out, CLASSES):
        labels = np.asarray(Image.open(out / "labels" / row["file_name"]))
        areas = {segment["category_id"]: segment["area"] for segment in row["segments_info"]}
        assert areas == {2: (labels == 2).sum(), 7: (labels == 7).sum()} and 0 not in areas.values()
        assert all("score" not in s and s["iscrowd"] == 0 for s in row["segments_info"])
    read = CocoPanoptic(out / "panoptic.json", images, out / "panoptic")
    for sample in read:
        found = checkpoint.segment(images / f"{sample.name}.png")
        np.testing.assert_array_equal(sample.semantic, found.semantic)


@pytest.mark.parametrize("ids", [(1, 2, 7), (10, 200, 0), (1, 300, 65000)])
def test_predictions_are_a_data_set(ids, tmp_path, capsys):
    images, out = half_red(tmp_path / "images", ending="jpg"), tmp_path / "out"
    checkpoint = seeing(tmp_path / "checkpoint", ids=ids, names=("Himmel", "дорога", 'a "car"'))
    predict.predict(images, checkpoint, out, panels=0)
    seen = set()
    for split in ("train", "val"):
        for sample in open_dataset("folder", out, split):
            found = checkpoint.segment(images / f"{sample.name}.jpg")
            seen.add(sample.name)
            np.testing.assert_array_equal(sample.semantic, found.semantic)
            np.testing.assert_array_equal(sample.instance, found.instance)
            assert len(found.objects) == 2
    assert len(seen) == 6
    classes = open_dataset("folder", out).classes
    assert (classes.names, classes.ids) == (checkpoint.classes.names, ids)
    assert (classes.is_thing, classes.colors) == (CLASSES.is_thing, CLASSES.colors)
    assert Image.open(out / "instances" / "street 0.png").mode == "I;16"
    for sample in open_dataset("coco-json", out, "val"):
        found = checkpoint.segment(images / f"{sample.name}.jpg")
        np.testing.assert_array_equal(sample.instance > 0, found.instance > 0)
        assert len(np.unique(sample.instance)) == 3
    check_as_panopticapi(out, checkpoint.classes)


def test_pycocotools_reads_the_objects(tmp_path, capsys):
    images, out = half_red(tmp_path / "images", ending="jpg"), tmp_path / "out"
    checkpoint = seeing(tmp_path / "checkpoint")
    predict.predict(images, checkpoint, out, panels=0)
    content = json.loads((out / "annotations.json").read_text())
    assert content["categories"] == [{"id": 7, "name": "car", "isthing": 1, "color": [0, 0, 142]}]
    coco = COCO(str(out / "annotations.json"))
    assert [row["file_name"] for row in coco.dataset["images"]] == sorted(
        path.name for path in images.iterdir()
    )
    assert sorted(coco.anns) == list(range(1, 13))
    for row in coco.loadAnns(coco.getAnnIds()):
        name = Path(coco.imgs[row["image_id"]]["file_name"])
        found = checkpoint.segment(images / name)
        mask = coco.annToMask(row).astype(bool)
        (number,) = np.unique(found.instance[mask])
        np.testing.assert_array_equal(mask, found.instance == number)
        assert row["area"] == mask.sum() and row["iscrowd"] == 0 and row["category_id"] == 7
        assert row["score"] == pytest.approx(found.objects[number - 1].score)
        x, y, width, height = row["bbox"]
        assert mask[y : y + height, x : x + width].sum() == row["area"]
    results = coco.loadRes([dict(row) for row in content["annotations"]])
    assert len(results.anns) == 12


def test_predict_needs_no_package_of_training(tmp_path):
    write_images(tmp_path / "images", 1)
    tiny_checkpoint(tmp_path / "checkpoint")
    hidden = "pycocotools yaml jsonargparse torchmetrics pytorch_lightning skimage sklearn".split()
    script = f"""
import sys
sys.modules.update(dict.fromkeys({hidden}))
from maskattn_kernels.segmentation import predict
predict("images", "checkpoint", "out", panels=1)
"""
    paths = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "PYTHONPATH": paths}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "out" / "annotations.json").exists()


def test_folders_of_folders(tmp_path):
    for place in ("", "aachen", "bonn/north", "bonn/.hidden"):
        half_red(tmp_path / "images" / "val" / place / "x", 2)
    source, out = tmp_path / "images" / "val", tmp_path / "out"
    checkpoint = seeing(tmp_path / "checkpoint")
    with pytest.raises(DataError, match=r"val: no images there .*; .*3 folders not looked into"):
        predict.predict(source, checkpoint, out, panels=0)
    (source / "bonn" / "notes.txt").touch()
    summary = predict.predict(source, checkpoint, out, panels=2, recursive=True)
    names = [f"{p}x/street {n}" for p in ("aachen/", "bonn/north/", "") for n in (0, 1)]
    for folder in ("labels", "instances", "panoptic"):
        found = sorted((out / folder).rglob("*.png"))
        assert [p.relative_to(out / folder).with_suffix("").as_posix() for p in found] == names
    assert summary["images"] == 6 and not summary["notes"] and not summary["failed"]
    content = json.loads((out / "annotations.json").read_text())
    assert [row["file_name"] for row in content["images"]] == [f"{name}.png" for name in names]
    assert all((out / "images" / row["file_name"]).is_file() for row in content["images"])
    assert not predict.predict(source, checkpoint, out, panels=2, recursive=True)["notes"]


def test_a_folder_whose_name_is_a_number_is_no_camera(tmp_path, monkeypatch):
    write_images(tmp_path / "2024", 2)
    monkeypatch.chdir(tmp_path)
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint")
    assert predict.predict("2024", checkpoint, tmp_path / "out", panels=0)["images"] == 2


def test_files_of_a_data_set_are_not_replaced(tmp_path):
    images = write_images(tmp_path / "own" / "images", 2)
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint")
    for name in ("classes.yaml", "annotations.json"):
        (tmp_path / "own" / name).write_text("mine")
        with pytest.raises(DataError, match=rf"out: .*own holds {name}, which no .* has written"):
            predict.predict(images, checkpoint, tmp_path / "own", panels=0)
        assert (tmp_path / "own" / name).read_text() == "mine"
        (tmp_path / "own" / name).unlink()
    predict.predict(images, checkpoint, tmp_path / "own", panels=0)
    assert not any(path.is_symlink() for path in images.iterdir()) and len([*images.iterdir()]) == 2


def test_files_of_an_earlier_run_are_told(tmp_path, capsys):
    images, out = write_images(tmp_path / "images", 3), tmp_path / "out"
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint")
    assert not predict.predict(images, checkpoint, out, panels=0)["notes"]
    assert not predict.predict(images, checkpoint, out, panels=0)["notes"]
    (images / "01.png").unlink()
    (note,) = predict.predict(images, checkpoint, out, panels=0)["notes"]
    assert note.startswith(f"{out}: 4 files of an earlier run are still there, such as ")
    assert "01.png; remove the folder before" in note


def test_a_full_disk_leaves_no_half_written_file(tmp_path, monkeypatch):
    images, out = write_images(tmp_path / "images", 5), tmp_path / "out"
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint")
    save, calls = Image.Image.save, []

    def full_after_seven(self, path, **options):
        calls.append(path)
        if len(calls) > 7:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device", str(path))
        save(self, path, **options)

    monkeypatch.setattr(Image.Image, "save", full_after_seven)
    with pytest.raises(WriteError, match=r"^cannot write .*: No space left on device$"):
        predict.predict(images, checkpoint, out, panels=0)
    pictures = [path for path in out.rglob("*") if path.is_file() and path.suffix != ".json"]
    for path in pictures:
        if path.suffix == ".png":
            Image.open(path).load()
    assert not [path for path in pictures if path.name.endswith(".part")]
    rows = json.loads((out / "panoptic.json").read_text())["annotations"]
    assert [row["file_name"] for row in rows] == ["00.png", "01.png"]


def test_rows_are_not_kept_in_memory(tmp_path):
    writer = coco_files.PanopticWriter(tmp_path / "p.json", CLASSES)
    labels = np.zeros((2, 2), np.uint8)
    for number in range(3000):
        writer.add(number, "a", "a.png", labels, labels)
    parts = [path for path in tmp_path.iterdir() if path.name.startswith(".p.json")]
    assert sum(path.stat().st_size for path in parts) > 100_000
    writer.close()
    assert len(json.loads((tmp_path / "p.json").read_text())["images"]) == 3000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p", "p.json"]
