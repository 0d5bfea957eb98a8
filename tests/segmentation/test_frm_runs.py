# SPDX-License-Identifier: BSD-3-Clause
"""Runs of an FRMNet, from the training to label files, and inputs that are extreme or wrong."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from segmentation_runs import CLASSES, FRM, measure_quickly, tiny_arguments, write_images

from maskattn_kernels import cli
from maskattn_kernels.segmentation import predict
from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.model.network import TASKS, SegmentationNetwork
from maskattn_kernels.segmentation.scoring import command as scoring
from maskattn_kernels.segmentation.training import command as training

SCORES = {
    "semantic": {"mIoU"},
    "instance": {"mIoU", "AP", "AP50"},
    "panoptic": {"mIoU", "PQ", "SQ", "RQ", "AP", "AP50"},
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_from_training_to_label_files(task, tmp_path, monkeypatch):
    run = tmp_path / "run"
    arguments = (*FRM, "--network.task", task, "--network.selector", "gumbel-topk")
    training.main(tiny_arguments(run, *arguments, steps=3))
    report = tmp_path / "eval.json"
    data = ("--data", "digit-scenes", "--set", "count=3", "--keep", "0.5")
    best = str(run / "best")
    assert scoring.main(["--checkpoint", best, *data, "--out", str(report)]) == 0
    scored = json.loads(report.read_text())
    assert scored["keep"] == 0.5
    assert SCORES[task] <= set(scored["scores"]["network size"]["mean"])
    measure_quickly(monkeypatch)
    out = tmp_path / "out"
    summary = predict(write_images(tmp_path / "images", 3), best, out, panels=2)
    assert summary["images"] == 3 and not summary["failed"]
    assert len(list((out / "labels").glob("*.png"))) == 3
    assert (out / "instances").is_dir() == (task != "semantic")
    panels = sorted((out / "panels").glob("*.png"))
    assert len(panels) == 2
    # A row of input and prediction, and one in which the block attends: more than the image alone.
    assert Image.open(panels[0]).height > 24


def checkpoint(**options) -> Checkpoint:
    torch.manual_seed(0)
    sizes = {"preset": "tiny", "dim": 24, "num_heads": 3, "width": 12}
    network = SegmentationNetwork(3, [2], arch="frm", **{**sizes, **options})
    return Checkpoint(network.eval(), CLASSES, size=32, frame="own")


@pytest.mark.parametrize("selector", ["none", "random", "topk", "local", "entropy"])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (16, 16), (17, 3), (1, 70)])
def test_images_smaller_than_a_place_of_the_grid(size, selector):
    """One token at least: its query finds nothing but itself."""
    photograph = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    found = checkpoint(selector=selector).segment(photograph)
    assert found.semantic.shape == size
    assert set(np.unique(found.semantic)) <= {0, 1, 2}


@pytest.mark.parametrize("unselected", ["zero", "mean"])
def test_no_token_selected(unselected):
    """Random masks may be empty; the others keep a token."""
    made = checkpoint(selector="random", keep=0.0, unselected=unselected)
    photograph = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    outputs = made.network(torch.from_numpy(photograph).permute(2, 0, 1)[None])
    assert outputs.semantic.isfinite().all()
    assert all(not s.mask.any() for s in outputs.selections.values())
    outputs.semantic.square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in made.network.parameters())
    assert made.segment(photograph).semantic.shape == (40, 50)


def test_a_run_with_no_token_selected(tmp_path):
    none = ("--network.selector", "random", "--network.keep", "0")
    training.main(tiny_arguments(tmp_path / "run", *FRM, *none, steps=2))
    assert Checkpoint.from_pretrained(tmp_path / "run" / "final").network.config["keep"] == 0.0


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (
            ("--network.task", "semantic", "--loss.contrastive_weight", "1"),
            r"loss.contrastive_weight: expected 0 or 0.05, its default, for .* semantic, .* 1",
        ),
        (("--network.grid", "12"), r"grid: expected a multiple or a divisor of each .*, got 12"),
        (("--network.keep", "2"), r"keep: expected .* got 2"),
        (("--network.bottleneck", "8"), r"bottleneck: expected None, as FRMNet has .* got 8"),
        (("--loss.pixel_weight", "-1"), r"loss.pixel_weight: expected .* got -1"),
    ],
)
def test_options_that_cannot_be_are_one_line(more, says, tmp_path, capsys):
    assert cli.main(["train", *tiny_arguments(tmp_path / "run", *FRM, *more)]) == 2
    error = capsys.readouterr().err
    last = error.strip().splitlines()[-1]
    assert last.startswith("maskattn train: ")
    assert re.search(says, last), last
