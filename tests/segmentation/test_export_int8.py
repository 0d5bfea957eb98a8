# SPDX-License-Identifier: BSD-3-Clause
"""Exports in int8: quantised where they should be, and scored before they are kept."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from maskattn_kernels import cli
from maskattn_kernels.segmentation import Checkpoint, SegmentationNetwork, export, open_dataset
from maskattn_kernels.segmentation.checkpoint_files import SHIPPED
from maskattn_kernels.segmentation.exporting import checking, command, int8
from maskattn_kernels.segmentation.exporting.int8 import LessAccurate

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
SIZE = (32, 32)


def made() -> Checkpoint:
    torch.manual_seed(0)
    classes = open_dataset("digit-scenes", split="val", count=1).classes
    network = SegmentationNetwork(
        len(classes), task="semantic", selector="topk", width=4, depth=1
    ).eval()
    return Checkpoint(network, classes, SIZE)


def test_convolutions_are_quantised_and_the_cost_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "_SECONDS", 0.0)
    data = open_dataset("digit-scenes", split="val", count=3)
    others = open_dataset("digit-scenes", split="train", count=4)
    told = export(
        *(made(), tmp_path / "out", SIZE),
        precision="int8",
        calibrate=[others[0], data[1].image, *(others[place] for place in (1, 2, 3))],
        data=data,
        max_drop=100.0,
    )
    assert sorted(told["mIoU"]) == ["fp32", "int8"]
    assert all(0 <= score <= 100 for score in told["mIoU"].values())
    # The image that is scored is not calibrated on, whatever its name is.
    assert told["int8_images"] == {"calibrated": 4, "decided": 2, "scored": 1}
    assert told["notes"][0] == "calibrate: 1 images are scored too, and were left out"
    assert told["checks"][0]["labels_equal"] > 0.5
    model = onnx.load(tmp_path / "out" / "model.onnx")
    exact, quantised = [], []
    for node in model.graph.node:
        if node.op_type == "Conv":
            (quantised if "DequantizeLinear" in node.input[1] else exact).append(node.input[1])
    assert len(quantised) > 8
    # The mask heads, whose logits choose the tokens, and the heads, whose logits choose the class.
    heads = [name for name in exact if "mask_head" in name or "query_head" in name]
    assert len(heads) == 4 and len(exact) == 7  # and the one that reads the image
    inputs = model.graph.input[0].type.tensor_type
    assert inputs.elem_type == onnx.TensorProto.UINT8
    assert {entry.key for entry in model.metadata_props} >= {"maskattn"}


def write_nothing(
    monkeypatch: pytest.MonkeyPatch, scores: dict[str, tuple[float, float]]
) -> list[list[str]]:
    """Scores before and after, by the name of the first image of a part; the parts as they come."""
    parts: list[list[str]] = []

    def score(checkpoint: Any, dataset: Any, folder: Any) -> float:
        parts.append([dataset[place].name for place in range(len(dataset))])
        return scores[parts[-1][0]][parts.count(parts[-1]) - 1]

    monkeypatch.setattr(int8, "_accuracy", score)
    monkeypatch.setattr(int8, "quantise", lambda *_: None)
    return parts


def test_the_images_that_decide_are_not_those_that_tell_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_dataset("digit-scenes", split="val", count=5)
    names = [data[place].name for place in range(5)]
    parts = write_nothing(monkeypatch, {names[0]: (70.0, 69.6), names[1]: (60.0, 40.0)})
    images = torch.zeros(7, 3, *SIZE, dtype=torch.uint8)
    told = int8.quantise_and_score(made(), tmp_path / "file", images, "nhwc", data, 0.5)
    decide, tell = names[::2], names[1::2]
    assert parts == [decide, tell, decide, tell]
    assert told["mIoU"] == {"fp32": 60.0, "int8": 40.0}
    assert told["int8_images"] == {"calibrated": 7, "decided": 3, "scored": 2}
    one = open_dataset("digit-scenes", split="val", count=1)
    with pytest.raises(ValueError, match=r"^data: expected two labelled images or more with int8"):
        int8.quantise_and_score(made(), tmp_path / "file", images, "nhwc", one, 0.5)


def test_a_loss_of_accuracy_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_nothing(monkeypatch, {"val-00000": (70.0, 69.4), "val-00001": (60.0, 60.0)})
    config = Path(command.__file__)
    monkeypatch.setattr(command, "write_onnx", lambda path, *_, **__: shutil.copy(config, path))
    data = open_dataset("digit-scenes", split="val", count=2)
    with pytest.raises(LessAccurate, match=r"got 0\.60 \(69\.40 in place of 70\.00\); nothing was"):
        export(
            *(made(), tmp_path / "out", SIZE),
            precision="int8",
            calibrate=SHIPPED / "nuclei",
            data=data,
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "calibrate: expected images with int8, got none"),
        (["--calibrate", "nowhere"], "data: expected labelled images with int8"),
        (["--calibrate", "nowhere", "--batch", "4"], "batch: expected 1 or dynamic with int8"),
    ],
)
def test_what_int8_asks_for_is_one_line(
    arguments: list[str], line: str, capsys: Any, tmp_path: Path
) -> None:
    out = ["--size", "32", "32", "--out", str(tmp_path / "out"), "--precision", "int8"]
    assert cli.main(["export", "nuclei", *out, *arguments]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
