# SPDX-License-Identifier: BSD-3-Clause
"""``maskattn report``: all ways to run a checkpoint, measured and compared."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from segmentation_runs import CLASSES, tiny_checkpoint

from maskattn_kernels import cli
from maskattn_kernels.models import fast_bfloat16
from maskattn_kernels.segmentation import Checkpoint, Sample, evaluate, report
from maskattn_kernels.segmentation.data.frame import frame_size
from maskattn_kernels.segmentation.exporting import checking
from maskattn_kernels.segmentation.reporting import candidates, measuring
from maskattn_kernels.segmentation.reporting.choice import on_front, recommended
from maskattn_kernels.segmentation.reporting.images import usual_sizes
from maskattn_kernels.segmentation.reporting.measuring import Subject, race
from maskattn_kernels.segmentation.reporting.memory import ProgramEnded, peak_of_program

SIZE = (24, 40)  # of the images, and so not of the square that the network is trained on


class Scenes:
    """Labelled images of noise; those of another seed are others."""

    classes = CLASSES

    def __init__(self, seed: int = 0, count: int = 3) -> None:
        self.seed, self.count = seed, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        random = np.random.default_rng(10 * self.seed + index)
        image = random.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        labels = random.integers(0, len(CLASSES), SIZE).astype(np.uint8)
        return Sample(str(index), image, labels)


@pytest.fixture(autouse=True)
def short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "_SECONDS", 0.0)
    monkeypatch.setattr(measuring, "_SECONDS", 0.0)


@pytest.fixture
def no_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is not measured: a process that imports torch takes seconds."""
    monkeypatch.setattr(measuring, "peak_of_program", lambda words: 100 << 20)


def in_torch(checkpoint: Checkpoint, out: Path, **more: Any) -> dict[str, Any]:
    return report(checkpoint, Scenes(), out, precision=["fp32"], runtime=["torch"], **more)


def named(row: dict[str, Any]) -> tuple[str, str]:
    return row["runtime"], row["precision"]


def test_a_report_of_all_runtimes_and_precisions(tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    checkpoint = tiny_checkpoint(tmp_path / "saved", task="semantic", selector="topk")
    out = tmp_path / "out"
    told = report(tmp_path / "saved", Scenes(), out, calibrate=Scenes(seed=1), budget_ms=1e6)
    assert json.loads((out / "report.json").read_text()) == told
    rows = {named(row): row for row in told["rows"]}
    assert len(rows) == 9 and {tuple(row["size"]) for row in told["rows"]} == {(19, 32)}
    lower = () if fast_bfloat16(torch.device("cpu")) else ("bf16",)
    reasons = {name for name, row in rows.items() if row["reason"] is not None}
    assert reasons == {("torch", "int8"), ("onnxruntime", "bf16")} | {
        name for name in rows if name[1] in lower
    }
    # The frames are those of `evaluate`, which fits images into the square of the training.
    right = evaluate(checkpoint, Scenes(), device="cpu")["original size"]["mean"]["mIoU"]
    assert rows["torch", "fp32"]["scores"]["mIoU"] == right
    for runtime in ("onnxruntime", "openvino"):
        assert rows[runtime, "fp32"]["scores"]["mIoU"] == pytest.approx(right, abs=0.1)
        # A process with the runtime alone has no torch in it.
        assert rows[runtime, "fp32"]["peak_memory_mb"] < rows["torch", "fp32"]["peak_memory_mb"]
    measured = [row for row in told["rows"] if row["reason"] is None]
    for fact in ("ms", "processor_ms", "images_per_second"):
        assert all(row[fact] > 0 for row in measured), fact
    assert all(row["peak_memory_mb"] > 20 and row["file_mb"] > 0 for row in measured)
    best = max(round(row["scores"]["mIoU"], 1) for row in measured)
    assert round(told["recommended"]["scores"]["mIoU"], 1) == best
    assert told["recommended"] in told["rows"] and "For 1e+06 ms an image take" in told["sentence"]
    files = sorted(path.name for path in (out / "files").iterdir())
    assert files == ["19x32-fp32", "19x32-int8"]
    check_texts(out, told, len(measured))


def check_texts(out: Path, told: dict[str, Any], measured: int) -> None:
    text = (out / "report.md").read_text()
    assert told["sentence"] in text and "- int8 by torch: int8 is of files" in text
    assert text.count("| 19x32 |") == measured
    with (out / "report.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["runtime"], line["precision"]) for line in lines] == [
        named(row) for row in told["rows"]
    ]
    assert float(lines[0]["mIoU"]) == told["rows"][0]["scores"]["mIoU"]
    assert Image.open(out / "report.png").size[0] > 500


def test_a_stopped_report_is_resumed(
    no_programs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, out, scored = tiny_checkpoint(tmp_path / "saved"), tmp_path / "out", []
    whole = Subject.scores

    def scores(self: Subject, candidate: Any, progress: Any) -> dict[str, float]:
        scored.append(candidate.keep)
        if len(scored) == 2:
            raise KeyboardInterrupt
        return whole(self, candidate, progress)

    monkeypatch.setattr(Subject, "scores", scores)
    with pytest.raises(KeyboardInterrupt, match=r"^stopped; 1 rows are in .* same command resumes"):
        in_torch(checkpoint, out, keep=[0.1, 0.5])
    assert not (out / "report.json").exists()
    told = in_torch(checkpoint, out, keep=[0.1, 0.5])
    assert scored == [0.1, 0.5, 0.5] and [row["keep"] for row in told["rows"]] == [0.1, 0.5]
    again = in_torch(checkpoint, out, keep=[0.1, 0.5], budget_ms=1e6)
    assert scored == [0.1, 0.5, 0.5] and again["rows"] == told["rows"]  # times too
    more = in_torch(checkpoint, out, keep=[0.1, 1])
    assert scored == [0.1, 0.5, 0.5, 1] and more["rows"][0]["scores"] == told["rows"][0]["scores"]
    assert all(row["ms"] > 0 for row in more["rows"])
    with pytest.raises(
        ValueError, match=r"^out: expected a new folder or the same .* images 3, now"
    ):
        report(checkpoint, Scenes(count=2), out, precision=["fp32"], runtime=["torch"])
    (tmp_path / "saved" / "more").mkdir()
    with pytest.raises(ValueError, match=r"^out: expected a new folder or one of a report, got"):
        in_torch(checkpoint, tmp_path / "saved")


def test_a_runtime_that_is_missing_is_a_reason_or_an_error(
    no_programs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "saved")
    for package in ("onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, package, None)
    told = report(checkpoint, Scenes(), tmp_path / "out", precision=["fp32"])
    reasons = {row["runtime"]: row["reason"] for row in told["rows"]}
    assert reasons["torch"] is None and told["recommended"]["runtime"] == "torch"
    assert "pip install 'maskattn_kernels[openvino]'" in reasons["openvino"]
    for options, named_by in (({"runtime": ["openvino"]}, "runtime"), ({}, "precision")):
        with pytest.raises(ValueError, match=rf"^{named_by}: .* cannot be used: \w+ is not inst"):
            report(
                checkpoint, Scenes(), tmp_path / "b", precision=["int8"], calibrate="x", **options
            )
    assert not (tmp_path / "b").exists()


def test_an_export_that_fails_is_a_reason(no_programs: None, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    checkpoint = tiny_checkpoint(tmp_path / "saved", selector="threshold")
    told = report(checkpoint, Scenes(), tmp_path / "out", precision=["fp32"])
    reasons = {row["runtime"]: row["reason"] for row in told["rows"]}
    assert reasons.pop("torch") is None
    assert all("selector: expected one that keeps a fixed" in why for why in reasons.values())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--precision", "fp8"], "--precision: expected some of fp32,fp16,bf16,int8, got 'fp8'"),
        (["--runtime", "tensorrt"], "--runtime: expected some of torch,onnxruntime,openvino"),
        (
            ["--precision", "bf16", "--runtime", "onnxruntime"],
            "runtime: onnxruntime cannot be used: ONNX Runtime has no convolution in bfloat16",
        ),
        (["--precision", "int8", "--runtime", "torch"], "cannot be used: int8 is of files"),
        (["--size", "96x"], "--size: expected a side such as 256, or 192x256, got '96x'"),
        (["--budget_ms", "0"], "--budget_ms: expected milliseconds above 0, got '0'"),
        (["--keep", "2"], "--keep: expected a number from 0 to 1, got '2'"),
        (["--selector", "topk", "--runtime", "torch"], "checkpoint and data have other classes"),
    ],
)
def test_wrong_arguments_are_one_line(
    arguments: list[str], line: str, capsys: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    data = ["--data", "digit-scenes", "--set", "count=2"]
    try:
        code = cli.main(["report", "nuclei", *data, "--out", str(out), *arguments])
    except SystemExit as stop:
        code = int(str(stop.code))
    error = capsys.readouterr().err
    assert code == 2 and line in error and error.count("\n") == 1
    assert not out.exists()


def test_int8_without_images_to_calibrate_on(no_programs: None, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    checkpoint = tiny_checkpoint(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"^calibrate: expected images with int8, got none$"):
        report(checkpoint, Scenes(), tmp_path / "a", precision=["int8"])
    with pytest.raises(ValueError, match=r"^calibrate: expected images that are not scored, got 3"):
        report(checkpoint, Scenes(), tmp_path / "b", calibrate=Scenes())


def row(ms: float, score: float | None, memory: float | None = None) -> dict[str, Any]:
    way = {"keep": None, "size": [96, 128], "precision": "fp32", "runtime": "torch"}
    return way | {"ms": ms, "scores": {"PQ": score}, "peak_memory_mb": memory, "file_mb": 2.0}


def test_the_front_is_what_no_row_beats() -> None:
    rows = [row(5, 60), row(5, 61), row(9, 61), row(12, 70), row(20, 69), row(2, None)]
    front = on_front(rows, "PQ")
    assert [(r["ms"], r["scores"]["PQ"]) for r in front] == [(2, None), (5, 61), (12, 70)]
    assert on_front([], "PQ") == []


@pytest.mark.parametrize(
    ("budget", "ms", "sentence"),
    [
        (100, 12, "For 100 ms an image take at 96 x 128 in fp32 by torch: PQ 70.0, 12.0 ms, a fil"),
        (12, 12, "For 12 ms an image take"),
        (11.9, 8, "For 11.9 ms an image take"),  # 61.0 in place of 61.04: equal, and faster
        (1, 5, "Nothing takes at most 1 ms an image; the fastest, at 96 x 128 in fp32 by torch, "),
        (None, 10, "The fastest within 0.5 points of the best PQ (70.0) is at 96 x 128"),
    ],
)
def test_one_row_is_recommended(budget: float | None, ms: float, sentence: str) -> None:
    rows = [row(20, 69.9), row(12, 70), row(10, 69.5), row(9, 61.04), row(8, 61.0), row(5, 50)]
    if budget == 11.9:
        rows.remove(row(10, 69.5))
    chosen, told = recommended(rows, "PQ", budget)
    assert chosen is not None and chosen["ms"] == ms and told.startswith(sentence)
    assert told.endswith("file of 2.0 MB.")


def test_nothing_measured_and_nothing_scored() -> None:
    assert recommended([], "PQ", 5) == (None, "Nothing could be measured.")
    chosen, told = recommended([row(3, None, 90.4)], "PQ", 5)
    assert chosen is not None and told.endswith(
        "by torch: 3.0 ms, 90 MB of memory, a file of 2.0 MB."
    )


def test_the_race_takes_turns_and_leaves_out_first_calls() -> None:
    calls: list[tuple[str, int]] = []

    def call(name: str) -> Any:
        return lambda number: calls.append((name, number))

    shown: list[int] = []
    times = race({name: call(name) for name in "abc"}, 2, shown.append)
    assert shown == [1, 2, 3, 4, 5] and {t["rounds"] for t in times.values()} == {5}
    assert calls[:6] == [(name, 0) for name in "aabbcc"]
    assert calls[6:12] == [(name, 1) for name in "bbccaa"]  # another begins
    assert all(t["ms"] >= 0 and t["images_per_second"] > 0 for t in times.values())


def test_memory_is_that_of_a_program_alone() -> None:
    """Also where this process is larger: what getrusage tells begins with it."""
    here = torch.ones(100 << 20, dtype=torch.uint8)
    small, large = (
        peak_of_program([sys.executable, "-c", f"b = b'1' * {n}; print('ready'); input()"])
        for n in (1, 64 << 20)
    )
    if small is None or large is None:
        pytest.skip("this system does not tell")
    # Pages of the interpreter itself differ from run to run by some tens of KiB.
    assert small < len(here) and (63 << 20) <= large - small < (70 << 20)
    with pytest.raises(ProgramEnded, match=r"^its process ended with 3: no memory$"):
        peak_of_program(
            [sys.executable, "-c", "import sys; print('no memory', file=sys.stderr); sys.exit(3)"]
        )


def test_sizes_are_those_that_evaluate_shows_to_the_network(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path)  # 32 x 32
    wide, tall = (48, 64), (64, 32)
    assert usual_sizes(checkpoint, [wide, wide]) == [(24, 32)]
    assert usual_sizes(checkpoint, [wide, tall]) == [(32, 32)]
    checkpoint.frame = "squeeze"
    assert usual_sizes(checkpoint, [wide, tall]) == [(32, 32)]
    checkpoint.frame = "own"
    assert usual_sizes(checkpoint, [wide, wide]) == [wide]
    assert usual_sizes(checkpoint, [wide, tall]) == [None, (32, 32)]


@pytest.mark.parametrize(
    "image", [(24, 40), (360, 480), (101, 333), (333, 101), (37, 41), (50, 50)]
)
def test_fitting_into_the_usual_size_gives_the_frames_of_the_training(
    image: tuple[int, int], tmp_path: Path
) -> None:
    checkpoint = tiny_checkpoint(tmp_path)
    (size,) = usual_sizes(checkpoint, [image])
    assert size is not None
    assert frame_size(*image, size, "fit") == frame_size(*image, checkpoint.size, "fit")


def test_own_sizes_are_scored_as_evaluate_does_and_only_in_torch(
    no_programs: None, tmp_path: Path
) -> None:
    class Mixed(Scenes):
        def __getitem__(self, index: int) -> Sample:
            sample, side = super().__getitem__(index), 16 + 8 * index
            return Sample(sample.name, sample.image[:, :side], sample.semantic[:, :side])

    checkpoint = tiny_checkpoint(tmp_path / "saved", task="semantic")
    checkpoint.frame = "own"
    told = report(checkpoint, Mixed(), tmp_path / "out", precision=["fp32"], size=[None])
    right = evaluate(checkpoint, Mixed(), device="cpu")["original size"]["mean"]["mIoU"]
    rows = {r["runtime"]: r for r in told["rows"]}
    assert rows["torch"]["scores"]["mIoU"] == right and rows["torch"]["size"] is None
    assert (
        rows["openvino"]["reason"] is not None and "own" in (tmp_path / "out/report.md").read_text()
    )


def test_the_command_prints_the_table_and_the_sentence(
    no_programs: None, tmp_path: Path, capsys: Any
) -> None:
    from maskattn_kernels.segmentation import SegmentationNetwork, open_dataset

    classes = open_dataset("digit-scenes", split="val", count=1).classes
    network = SegmentationNetwork(len(classes), task="semantic", width=4, depth=1)
    Checkpoint(network, classes, 32).save_pretrained(tmp_path / "saved")
    words = ["--data", "digit-scenes", "--set", "count=5", "--limit", "2", "--runtime", "torch"]
    out = tmp_path / "out"
    given = ["report", str(tmp_path / "saved"), *words, "--keep", "0.1,1", "--size", "16,32x32"]
    assert cli.main([*given, "--precision", "fp32", "--budget_ms", "1e6", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    told = json.loads((out / "report.json").read_text())
    assert told["settings"]["images"] == 2 and len(told["rows"]) == 4
    assert [tuple(r["size"]) for r in told["rows"]] == [(16, 16), (32, 32)] * 2
    assert told["sentence"] in printed and f"written: {out / 'report.md'}" in printed
    assert printed.splitlines()[0].split()[:5] == ["keep", "size", "precision", "runtime", "mIoU"]


def test_bfloat16_where_the_processor_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "fast_bfloat16", lambda device: False)
    why = "this processor does not multiply bfloat16"
    assert candidates.obstacle("torch", "bf16") == why
    with pytest.raises(ValueError, match=rf"^precision: bf16 cannot be used: {why}$"):
        candidates.check_named(["torch"], ["fp32", "bf16"])
