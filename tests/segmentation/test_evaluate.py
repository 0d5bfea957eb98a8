# SPDX-License-Identifier: BSD-3-Clause
"""`maskattn eval`: scores at both sizes, what it tells, samples that cannot be read."""

import json

import numpy as np
import pytest
import torch
from segmentation_runs import CLASSES, tiny_checkpoint

from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.sample import Sample
from maskattn_kernels.segmentation.scoring import command as evaluate


class Scenes:
    """Three labelled images of the classes of the checkpoint."""

    classes = CLASSES

    def __len__(self):
        return 3

    def __getitem__(self, index):
        image = np.full((20, 30, 3), 80 * index, dtype=np.uint8)
        return Sample(str(index), image, np.full((20, 30), index, dtype=np.uint8))


def test_evaluation_at_both_sizes(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path, task="semantic")
    head = checkpoint.network.unet.head
    with torch.no_grad():  # it calls everything road
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.0, 9.0, 0.0]))
    scores = evaluate.evaluate(checkpoint, Scenes(), batch_size=2)
    assert scores.keys() == {"network size", "original size"}
    for found in scores.values():
        assert found["classes"]["road"]["IoU"] == pytest.approx(100 / 3)
        assert found["mean"] == {"mIoU": pytest.approx(100 / 9)}
    table = evaluate.tables(scores, (32, 32), "fit").splitlines()
    assert table[0] == "fitted into 32 x 32" and table[3].split() == ["road", "33.3", "672"]
    assert table[1].split() == ["mIoU", "pixels"] and table[5].split() == ["mean", "11.1"]
    assert scores["original size"]["classes"]["car"]["pixels"] == 20 * 30


class OnlySky(Scenes):
    def __getitem__(self, index):
        return super().__getitem__(0)


def test_classes_that_are_only_predicted_are_told(tmp_path, monkeypatch, capsys):
    tiny_checkpoint(tmp_path / "checkpoint", task="semantic")
    monkeypatch.setattr(evaluate, "open_named", lambda *given: OnlySky())
    arguments = ["--checkpoint", str(tmp_path / "checkpoint"), "--data", "digit-scenes"]
    out = tmp_path / "scores.json"
    assert evaluate.main([*arguments, "--out", str(out)]) == 0
    strict = json.loads(out.read_text(), parse_constant=lambda text: pytest.fail(text))
    rows = strict["scores"]["original size"]["classes"]
    predicted = [name for name in ("road", "car") if rows[name]["IoU"] == 0]
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert predicted and len(told) == len(predicted)
    assert told[0].startswith(f"note: {predicted[0]}: no pixel is labelled so")


class SomeBroken(Scenes):
    def __getitem__(self, index):
        if index == 1:
            raise DataError("b.png: cannot be read")
        return super().__getitem__(index)


def test_bad_samples_stop_no_evaluation(tmp_path, monkeypatch, capsys):
    tiny_checkpoint(tmp_path / "checkpoint", task="semantic")
    monkeypatch.setattr(evaluate, "open_named", lambda *given: SomeBroken())
    arguments = ["--checkpoint", str(tmp_path / "checkpoint"), "--data", "digit-scenes"]
    assert evaluate.main([*arguments, "--out", str(tmp_path / "scores.json")]) == 1
    report = json.loads((tmp_path / "scores.json").read_text())
    assert report["images"] == 2 and report["failed"] == ["b.png: cannot be read"]
    assert "failed: b.png: cannot be read" in capsys.readouterr().err
    checkpoint = str(tmp_path / "checkpoint")
    with pytest.raises(DataError, match=r"^b\.png: cannot be read$"):
        evaluate.evaluate(checkpoint, SomeBroken())
    broken = SomeBroken()
    broken.__class__ = type("AllBroken", (Scenes,), {"__getitem__": lambda *a: SomeBroken()[1]})
    with pytest.raises(DataError, match="none of its 3 samples can be read"):
        evaluate.evaluate(checkpoint, broken, failed=lambda error: None)


def test_eval_command(tmp_path, capsys):
    from maskattn_kernels.segmentation.checkpoints import Checkpoint
    from maskattn_kernels.segmentation.data import open_dataset
    from maskattn_kernels.segmentation.model.network import SegmentationNetwork

    classes = open_dataset("digit-scenes", count=4).classes
    network = SegmentationNetwork(len(classes), classes.things, width=4, depth=2)
    Checkpoint(network, classes, size=32).save_pretrained(tmp_path)
    out = tmp_path / "scores.json"
    arguments = ["--data", "digit-scenes", "--set", "count=4", "--out", str(out)]
    assert evaluate.main(["--checkpoint", str(tmp_path), *arguments]) == 0
    assert "at original size" in capsys.readouterr().out
    report = json.loads(out.read_text())
    assert report["images"] == 4 and "PQ" in report["scores"]["network size"]["mean"]
    assert report["min_score"] == 0
    assert evaluate.main(["--checkpoint", str(tmp_path), *arguments, "--min_score", "1"]) == 0
    scores = json.loads(out.read_text())["scores"]["original size"]["mean"]
    assert scores["AP"] == scores["AP50"] == 0, "no object is as sure"
    tiny_checkpoint(tmp_path / "other")
    with pytest.raises(DataError, match="other classes: 'sky' and "):
        evaluate.main(["--checkpoint", str(tmp_path / "other"), *arguments])
