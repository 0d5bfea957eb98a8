# SPDX-License-Identifier: BSD-3-Clause
"""Runs on photographs of several shapes: crops to learn from, whole frames to score."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from segmentation_runs import tiny_arguments

from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.data import open_dataset
from maskattn_kernels.segmentation.model.cost import gflops_of, measure_cost
from maskattn_kernels.segmentation.model.network import SegmentationNetwork
from maskattn_kernels.segmentation.prediction.panels import attended_picture, draw_panel
from maskattn_kernels.segmentation.scoring import command as scoring
from maskattn_kernels.segmentation.training import command as training
from maskattn_kernels.segmentation.training.module import SegmentationModule
from maskattn_kernels.segmentation.training.options import ConfigError
from maskattn_kernels.segmentation.training.run_state import read_state

SHAPES = [(30, 44), (44, 30), (30, 44), (17, 61), (30, 44), (44, 30), (40, 40)]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """Discs on noise, in images of four shapes."""
    root = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for part in ("images", "masks", "instances"):
            (root / split / part).mkdir(parents=True)
        for number, (height, width) in enumerate(SHAPES):
            instance = np.zeros((height, width), np.uint16)
            ys, xs = np.indices((height, width))
            for disc in (1, 2, 3):
                y, x = random.integers(0, (height, width))
                instance[(ys - y) ** 2 + (xs - x) ** 2 < 30] = disc
            image = random.integers(0, 100, (height, width, 3)) + 120 * (instance > 0)[..., None]
            name = f"{split}-{number}.png"
            Image.fromarray(image.astype(np.uint8)).save(root / split / "images" / name)
            Image.fromarray((instance > 0).astype(np.uint8)).save(root / split / "masks" / name)
            Image.fromarray(instance).save(root / split / "instances" / name)
    (root / "classes.yaml").write_text(
        "classes:\n- {id: 0, name: ground}\n- {id: 1, name: disc, thing: true}\n"
    )
    return root


def arguments(out: Path, root: Path, kind: str, *more: str, steps: int = 4) -> list[str]:
    data = ["--data", "folder", "--root", str(root), "--data.options", "{}"]
    sizes = ["--data.val_options", "{}", "--data.size", "[24, 32]", "--data.frame", kind]
    return [*tiny_arguments(out, *data, *sizes, *more, steps=steps)]


@pytest.mark.parametrize("kind", ["fit", "own", "squeeze"])
def test_the_validation_of_a_training_is_what_eval_prints(kind, photographs, tmp_path) -> None:
    out = tmp_path / "run"
    training.main(arguments(out, photographs, kind, "--optimizer.ema", "0", steps=40))
    trained = Checkpoint.from_pretrained(out / "final")
    assert (trained.size, trained.frame) == ((24, 32), kind)
    dataset = open_dataset("folder", photographs, "val")
    scores = scoring.evaluate(trained, dataset, batch_size=3)
    assert trained.metrics["mIoU"] > 30
    for name, score in scores["network size"]["mean"].items():
        assert score == pytest.approx(trained.metrics[name], abs=0.2, nan_ok=True), name
    if kind == "own":
        np.testing.assert_equal(scores["original size"], scores["network size"])
    out = str(tmp_path / "scores.json")
    source = ["--data", "folder", "--root", str(photographs)]
    assert scoring.main(["--checkpoint", str(tmp_path / "run/final"), *source, "--out", out]) == 0
    report = json.loads(Path(out).read_text())
    assert (report["size"], report["frame"]) == ([24, 32], kind)


def test_a_stopped_run_on_crops_is_resumed_to_the_same_result(photographs, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole" / "run", tmp_path / "run"
    whole.parent.mkdir()
    training.main(arguments(whole, photographs, "own"))
    step = SegmentationModule.training_step

    def stopping(self, batch, batch_idx):
        assert batch["image"].shape[2:] == (24, 32)
        if batch_idx == 1:
            monkeypatch.undo()
            stop.signal = 2
        return step(self, batch, batch_idx)

    stop = training.StopRequest()
    monkeypatch.setattr(training, "StopRequest", lambda: stop)
    monkeypatch.setattr(SegmentationModule, "training_step", stopping)
    with pytest.raises(KeyboardInterrupt, match="step 2;"):
        training.main(arguments(out, photographs, "own"))
    more = ("--data.workers", "2")
    training.main(["--config", str(out / "config.yaml"), "--ckpt_path", "last", *more])
    expected = load_file(whole / "final" / "model.safetensors")
    for name, tensor in load_file(out / "final" / "model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name


def test_a_run_of_before_there_were_frames_squeezed(photographs, tmp_path) -> None:
    out = tmp_path / "run"
    training.main(arguments(out, photographs, "squeeze", steps=3))
    state = read_state(out / "last.ckpt")
    assert state["run"].pop("data.frame") == '"squeeze"'
    torch.save(state, out / "last.ckpt")
    config = ["--config", str(out / "config.yaml"), "--ckpt_path", "last"]
    with pytest.raises(
        ConfigError, match=r'^data\.frame: the run to resume has "squeeze", got "fi'
    ):
        training.main([*config, "--data.frame", "fit"])
    training.main(config)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--data.size", "0"], r"size: expected a whole number from 1 to 16384, or height and wid"),
        (["--data.size", "[32]"], r"^data\.size: expected int or \[height, width\], got \[32\]"),
        (["--data.size", "[32, 0]"], r"size: expected a whole number from 1 .* got \(32, 0\)"),
        (["--data.size", "32x48"], r"data\.size: expected int or .*, got 32x48"),
        (
            ["--data.frame", "stretch"],
            r"^data\.frame: expected 'fit', 'own', 'squeeze', got stretch",
        ),
    ],
)
def test_a_wrong_size_or_frame_is_one_line(options, says, tmp_path) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        training.main(tiny_arguments(tmp_path / "run", *options))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 310


def test_cost_and_attention_panels_of_rectangles() -> None:
    network = SegmentationNetwork(2, task="semantic", width=4, depth=2).eval()
    wide, high, square = (gflops_of(network, size) for size in ((32, 64), (64, 32), (32, 32)))
    assert wide == pytest.approx(high, rel=0.01) and wide > 1.9 * square
    cost = measure_cost(network, (32, 64), batch_size=2, seconds=0)
    assert cost.gflops == wide and cost.latency_ms > 0
    classes = open_dataset("digit-scenes", split="val", count=1).classes
    network = SegmentationNetwork(len(classes), task="semantic", width=4, depth=2)
    image = np.random.default_rng(0).integers(0, 256, (60, 120, 3), dtype=np.uint8)
    found = Checkpoint(network, classes, (32, 48)).segment(image, attended=True)
    assert found.frame_semantic.shape == (24, 48)
    shapes = {attended.mask.shape for attended in found.attended.values()}
    assert shapes == {(24, 48), (12, 24), (6, 12)}
    assert attended_picture(image, next(iter(found.attended.values()))).shape == image.shape
    assert draw_panel(found).width > 0
