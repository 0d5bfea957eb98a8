# SPDX-License-Identifier: BSD-3-Clause
"""examples/deploy: what runs an exported file on a device, without torch."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from repository import ROOT

from maskattn_kernels.segmentation import Checkpoint, Classes, SegmentationNetwork, export
from maskattn_kernels.segmentation.exporting import checking

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
EXAMPLES = ROOT / "examples" / "deploy"
HEIGHT, WIDTH = 32, 48


@pytest.fixture(scope="module")
def exported(tmp_path_factory: Any) -> Path:
    torch.manual_seed(0)
    network = SegmentationNetwork(2, [1], selector="none", width=4, depth=1).eval()
    classes = Classes(("a", "b"), (False, True), ((250, 0, 0), (0, 0, 250)), (0, 1))
    out = tmp_path_factory.mktemp("examples") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checking, "_SECONDS", 0.0)
        export(Checkpoint(network, classes, (HEIGHT, WIDTH)), out, (HEIGHT, WIDTH), batch=None)
    return out


def run(*words: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script where importing torch or this package is an error."""
    for name in ("torch", "maskattn_kernels"):
        (folder / f"{name}.py").write_text("raise ImportError('not on a device')")
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_video_is_labelled_without_torch(exported: Path, tmp_path: Path, runtime: str) -> None:
    pytest.importorskip(runtime, reason=f"{runtime} is not installed")
    film = cv2.VideoWriter(
        str(tmp_path / "film.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 25, (2 * WIDTH, 2 * HEIGHT)
    )
    for level in (40, 90, 140):
        film.write(np.full((2 * HEIGHT, 2 * WIDTH, 3), level, np.uint8))
    film.release()
    words = ["film.avi", "--out", "labelled.avi", "--runtime", runtime]
    done = run(EXAMPLES / "camera.py", exported, *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"3 frames, \d+\.\d ms each in the network\n", done.stdout)
    labelled = cv2.VideoCapture(str(tmp_path / "labelled.avi"))
    there, picture = labelled.read()
    assert there and picture.shape == (HEIGHT, WIDTH, 3)
    # A grey of 40 under red or blue: one of both channels is high, the other one low.
    blue, red = picture[..., 0].astype(int), picture[..., 2].astype(int)
    assert (abs(blue - red) > 60).mean() > 0.8


def test_a_triton_folder_declares_what_the_file_has(exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "made"
    done = run(EXAMPLES / "triton_folder.py", exported, folder, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    config = (folder / "config.pbtxt").read_text()
    declared = {
        name: (kind, json.loads(dims))
        for name, kind, dims in re.findall(
            r'name: "(\w+)" data_type: TYPE_(\w+) dims: (\[.*?\])', config
        )
    }
    graph = onnx.load(folder / "1" / "model.onnx").graph
    types = {"UINT8": onnx.TensorProto.UINT8, "FP32": onnx.TensorProto.FLOAT}
    assert [v.name for v in (*graph.input, *graph.output)] == list(declared)
    for value in (*graph.input, *graph.output):
        kind, dims = declared[value.name]
        tensor = value.type.tensor_type
        assert tensor.elem_type == types[kind], value.name
        assert [d.dim_value for d in tensor.shape.dim][1:] == dims, value.name
    assert run(EXAMPLES / "triton_folder.py", folder=tmp_path).returncode == 1
