# SPDX-License-Identifier: BSD-3-Clause
"""The script of the GPU, walked through without one: what each step would be given to do."""

import json
import sys
from pathlib import Path

import pytest
from repository import ROOT

sys.path.insert(0, str(ROOT / "tools"))
check = pytest.importorskip("gpu_check", reason="needs the source tree")

FITS = {
    "torch": "2.12.0+cu130", "cuda": "13.0", "gpu": "a GPU", "driver": "13.0", "nvcc": "13.0",
}  # fmt: skip
CPU_ONLY = ("test_cuda_twin", "test_cuda_kernels", "test_cuda_packing", "test_layering")


def test_rehearsal_of_every_step(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    pytest.importorskip("xdist")
    assert check.main(["--rehearse", "--out", str(tmp_path), "--commit", "abc"]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["commit"] == "abc" and summary["rehearsal"] and summary["torch"]
    steps = {step["step"]: step for step in summary["steps"]}
    assert list(steps) == check.DEFAULT.split(",")
    assert {step["status"] for step in steps.values()} == {0}
    assert steps["sweep"]["collected"] == 2 * 600
    assert steps["cases"]["collected"] > 6 * 79
    for name in ("gpu", "rest", "fa4", "cute", "memcheck", "racecheck"):
        assert steps[name]["collected"] > 0
    log = (tmp_path / "log.txt").read_text()
    selected = [line for line in log.splitlines() if "::test_" in line]
    assert len(selected) == sum(step.get("collected", 0) for step in steps.values())
    assert all("cuda" in line.partition("[")[2] for line in selected)
    assert not any(name in line for line in selected for name in CPU_ONLY)
    assert "27 measurements" in log and "bench: 1 calls" in log
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.txt", "summary.json"]


def test_a_step_that_is_cut_says_what_it_has_seen() -> None:
    text = "warning: s\n..s.F                [  3%]\n..E"
    assert check.progress(text) == {"failed": 1, "errors": 1, "passed": 5, "skipped": 1}
    assert check.progress("written: x") == {}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, ""),
        ({"driver": "13.2", "nvcc": "13.1"}, ""),
        ({"torch": "2.10.1"}, "torch: expected 2.11 or later, got 2.10.1"),
        ({"cuda": None}, "torch: expected one that is built with CUDA"),
        ({"driver": "12.8"}, "driver: expected CUDA 13.0 as torch, got 12.8"),
        ({"gpu": ...}, "GPU: expected one that torch 2.12.0+cu130 sees, got none"),
        ({"error": "No module named 'torch'"}, "torch: expected one that can be imported"),
    ],
)
def test_versions_that_do_not_fit_are_refused(change: dict, why: str) -> None:
    found = {name: value for name, value in {**FITS, **change}.items() if value is not ...}
    assert check.misfit(found).startswith(why) and bool(check.misfit(found)) == bool(why)


@pytest.mark.parametrize(
    ("nvcc", "why"),
    [("13.1", ""), ("12.9", "nvcc: expected CUDA 13.0 as torch, got 12.9"), (..., "got none")],
)
def test_an_nvcc_that_does_not_fit_builds_nothing(nvcc: str, why: str) -> None:
    found = {name: value for name, value in {**FITS, "nvcc": nvcc}.items() if value is not ...}
    assert why in check.nvcc_misfit(found) and bool(check.nvcc_misfit(found)) == bool(why)


def test_without_a_gpu_it_says_so(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(check, "versions", lambda: {"torch": "2.12.0", "cuda": None})
    assert check.main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("gpu_check: torch: expected one that is built with")


def test_a_step_that_runs_too_long_is_ended(tmp_path: Path) -> None:
    step = check.Step("slow", 1, [], [])
    sleep = [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"]
    result = check.run(step, sleep, 1, tmp_path / "slow.log")
    assert result["status"] == 124
