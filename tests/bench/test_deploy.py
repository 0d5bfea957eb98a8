# SPDX-License-Identifier: BSD-3-Clause
"""bench/deploy.py: files are checked before they are timed, and every ratio has its contestants."""

import importlib.util
from pathlib import Path

import pytest
import torch
from repository import ROOT

from maskattn_kernels.segmentation.exporting import checking

for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(package, reason="the extras onnx and openvino are not installed")


@pytest.fixture(scope="module")
def script():
    path = ROOT / "bench" / "deploy.py"
    spec = importlib.util.spec_from_file_location("bench_deploy", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_contestants_are_checked_and_timed(script, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(checking, "_SECONDS", 0.0)
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    calls = script.contestants(tmp_path, image, width=4, depth=1)
    rows = script.measure(calls, rounds=2)
    assert [row["name"] for row in rows] == list(calls) and len(calls) == 10
    assert all(0 < row["least_wall_ms"] <= row["wall_ms"] for row in rows)
    named = {name for pair in script.RATIOS.values() for names in pair for name in names}
    assert named - set(calls) == {"torch, compiled"}
    assert all(ratio > 0 for ratio in script.ratios(rows, "wall").values())


def test_ratios_are_of_the_best(script) -> None:
    named = {name for pair in script.RATIOS.values() for names in pair for name in names}
    times = dict.fromkeys(named, 10.0) | {"openvino, dense": 60.0, "onnxruntime, dense": 80.0}
    rows = [{"name": name, "cpu_ms": times[name] / (name == "torch" or 0.5)} for name in named]
    assert script.ratios(rows, "cpu")["best dense export / our best"] == 12.0
