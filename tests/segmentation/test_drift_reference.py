# SPDX-License-Identifier: BSD-3-Clause
"""Drift told by commands: training keeps what is usual, `predict` and `eval` compare with it."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageFilter
from segmentation_runs import tiny_arguments, tiny_checkpoint, write_images

from maskattn_kernels.segmentation.checkpoints import Checkpoint, CheckpointError
from maskattn_kernels.segmentation.data.batches import Batches
from maskattn_kernels.segmentation.data.digit_scenes import DigitScenes
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.drift import Drift, Reference
from maskattn_kernels.segmentation.model.measures import STATISTICS
from maskattn_kernels.segmentation.prediction.command import main as predict_main
from maskattn_kernels.segmentation.scoring.command import main as eval_main
from maskattn_kernels.segmentation.scoring.evaluation import evaluate
from maskattn_kernels.segmentation.training import reference as reference_module
from maskattn_kernels.segmentation.training.command import main as train_main

COUNTS = ("--data.options={count: 24}", "--data.val_options={count: 40}")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on digit scenes, validated after each."""
    out = tmp_path_factory.mktemp("run") / "out"
    assert train_main(tiny_arguments(out, *COUNTS, "--val_every=1", steps=2)) == 0
    return out


def scenes(folder: Path, split: str, count: int, change=lambda image: image) -> Path:
    """Digit scenes as files."""
    folder.mkdir(parents=True)
    data = DigitScenes(split, count=count)
    for number in range(count):
        change(Image.fromarray(data[number].image)).save(folder / f"{number:02d}.png")
    return folder


def drift_of(run: Path, images: Path, out: Path, *more: str) -> dict:
    words = ["--checkpoint", str(run / "best"), "--out", str(out), "--panels", "0", *more]
    assert predict_main([str(images), *words]) == 0
    return json.loads((out / "summary.json").read_text())["drift"]


def test_training_keeps_what_is_usual_in_both_checkpoints(run: Path) -> None:
    for name in ("best", "final"):
        checkpoint = Checkpoint.from_pretrained(run / name)
        assert checkpoint.reference.images == 40 and list(checkpoint.metrics)
        rows = []
        for split, count in (("val", 40), ("train", 24)):
            images = [DigitScenes(split, count=count)[index] for index in range(count)]
            found = checkpoint.segment(images, measured=True)
            rows.append([one.measured.statistics for one in found])
        expected = Reference.of(*rows)
        assert checkpoint.reference.limits == pytest.approx(expected.limits, rel=1e-3)
        for statistic, quantiles in expected.quantiles.items():
            assert checkpoint.reference.quantiles[statistic] == pytest.approx(quantiles, rel=1e-3)


def test_of_large_sets_some_images_are_enough(run: Path, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(reference_module, "IMAGES", 10)
    out = tmp_path / "out"
    seen = []
    whole = Checkpoint.segment_stream

    def counted(self, images, **options):
        reads = list(images)
        seen.append(len(reads))
        return whole(self, reads, **options)

    monkeypatch.setattr(Checkpoint, "segment_stream", counted)
    train_main(tiny_arguments(out, *COUNTS, steps=1))
    assert Checkpoint.from_pretrained(out / "best").reference.images == 10
    assert seen == [10, 10]  # best and final are the same network


def test_predict_is_silent_on_usual_images_and_warns_of_others(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, count in (("val", 40), ("train", 24)):
        found = drift_of(run, scenes(tmp_path / split, split, count), tmp_path / "out")
        assert not found["drifted"] and found["images"] == count
        printed = capsys.readouterr()
        assert f"{found['unusual']} of {count} images look unusual" in printed.out
        assert "warning" not in printed.err
    changes = {
        "darker": lambda image: image.point(lambda level: level // 4),
        "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(12)),
    }
    for word, change in changes.items():
        images = scenes(tmp_path / word, "val", 20, change)
        found = drift_of(run, images, tmp_path / "out")
        assert found["drifted"] and found["why"][word] >= 18
        first = found["unusual_images"][0]
        assert first["name"] == "00" and word in first["why"]
        (line,) = (s for s in capsys.readouterr().err.splitlines() if s.startswith("warning: "))
        assert "of 20 images do not look like the training data (" in line
        assert f"{word}: {found['why'][word]}" in line


def test_eval_tells_it_too(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", "digit-scenes", "--checkpoint", str(run / "best")]
    for textures in ("plain", "shifted"):
        out = tmp_path / f"{textures}.json"
        options = ["--set", "count=40", "--set", f"textures={textures}", "--out", str(out)]
        assert eval_main([*words, *options]) == 0
        found = json.loads(out.read_text())["drift"]
        assert found["images"] == 40
        assert ("warning: " in capsys.readouterr().err) == found["drifted"]
        if textures == "plain":
            assert not found["drifted"]
    checkpoint = Checkpoint.from_pretrained(run / "best")

    class Dark(DigitScenes):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return type(sample)(sample.name, sample.image // 4, sample.semantic, sample.instance)

    drift = Drift(checkpoint.reference)
    evaluate(checkpoint, Dark("val", count=12), measured=True, each=drift.add)
    assert drift.report()["drifted"]


def test_tiles_are_not_compared_with_whole_frames(run: Path, tmp_path: Path) -> None:
    images = scenes(tmp_path / "images", "val", 2)
    assert drift_of(run, images, tmp_path / "out", "--tiles", "32") is None
    assert drift_of(run, images, tmp_path / "out", "--hybrid", "0.5") is None


def test_a_checkpoint_without_a_reference_says_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As those of before have none."""
    saved = tiny_checkpoint(tmp_path / "best")
    described = saved.description()
    assert described["reference"] is None and Checkpoint.from_pretrained(tmp_path / "best")
    assert drift_of(tmp_path, write_images(tmp_path / "images", 3), tmp_path / "out") is None
    printed = capsys.readouterr()
    assert "unusual" not in printed.out and "warning" not in printed.err


def test_a_reference_is_saved_and_a_wrong_one_refused(tmp_path: Path, monkeypatch) -> None:
    row = dict.fromkeys(STATISTICS, 1.5)
    saved = tiny_checkpoint(tmp_path / "best")
    saved.reference = Reference.of([row] * 9, [])
    saved.save_pretrained(tmp_path / "best")
    loaded = Checkpoint.from_pretrained(tmp_path / "best")
    assert loaded.reference == saved.reference and loaded.metrics == saved.metrics
    described = {**saved.description(), "reference": {"images": 3}}
    monkeypatch.setattr(Checkpoint, "description", lambda self: described)
    saved.save_pretrained(tmp_path / "best")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not saved by save_pretrained"):
        Checkpoint.from_pretrained(tmp_path / "best")


def test_images_that_cannot_be_read_do_not_stop_the_end_of_a_run(run: Path, monkeypatch) -> None:
    batches = Batches("digit-scenes", count=6, val_options={"count": 8})
    whole = DigitScenes.__getitem__

    def sometimes(self, index):
        if index == 3:
            raise DataError("scene: cannot be read")
        return whole(self, index)

    monkeypatch.setattr(DigitScenes, "__getitem__", sometimes)
    reference_module.keep_reference(run, batches, torch.device("cpu"))
    assert Checkpoint.from_pretrained(run / "final").reference.images == 7
