# SPDX-License-Identifier: BSD-3-Clause
"""NaN and infinity: a run stops before it saves them, and no score that is NaN is the best."""

import json
import math

import pytest
import torch
from segmentation_runs import tiny_arguments, tiny_checkpoint

from maskattn_kernels import cli
from maskattn_kernels.segmentation.checkpoints import Checkpoint, CheckpointError
from maskattn_kernels.segmentation.training import command as training
from maskattn_kernels.segmentation.training.csv_log import read_log
from maskattn_kernels.segmentation.training.finite import Diverged
from maskattn_kernels.segmentation.training.module import SegmentationModule
from maskattn_kernels.segmentation.training.run_state import read_state


def poison_step(monkeypatch, step: int, value: float) -> None:
    """From this step on the loss is ``value``, and so the weights get NaN."""
    before = SegmentationModule.training_step

    def poisoned(self, batch, batch_idx):
        loss = before(self, batch, batch_idx)
        return loss * value if batch_idx + 1 >= step else loss

    monkeypatch.setattr(SegmentationModule, "training_step", poisoned)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run(value, tmp_path, monkeypatch, capsys):
    poison_step(monkeypatch, 5, value)
    out = tmp_path / "run"
    more = ("--save_every", "2", "--log_every", "4")
    assert cli.main(["train", *tiny_arguments(out, *more, steps=12)]) == 1
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith("maskattn train: step 5: the loss is not finite; train again with")
    assert "optimizer.lr (now 0.001) and optimizer.muon_lr (now 0.02)" in last
    # The next save and validation were due at step 6, the next row of the log at step 8.
    state = read_state(out / "last.ckpt")
    assert state["global_step"] == 4
    assert all(tensor.isfinite().all() for tensor in state["state_dict"].values())
    Checkpoint.from_pretrained(out / "best")
    assert not (out / "final").exists()


def test_weights_that_are_not_finite_are_not_saved(tmp_path, monkeypatch):
    """Gradients of the last step can be NaN though its loss is not."""
    before = SegmentationModule.training_step

    def poisoned(self, batch, batch_idx):
        loss = before(self, batch, batch_idx)
        if batch_idx + 1 == 4:
            loss.register_hook(lambda gradient: gradient * math.nan)
        return loss

    monkeypatch.setattr(SegmentationModule, "training_step", poisoned)
    with pytest.raises(Diverged, match=r"^step 4: a weight is not fin"):
        training.main(tiny_arguments(tmp_path / "run"))
    assert not (tmp_path / "run" / "final").exists()
    assert read_state(tmp_path / "run" / "last.ckpt")["global_step"] == 3


def scores_of_validations(monkeypatch, *validations: dict[str, float]) -> None:
    """Let the validations of a run have these scores."""
    each = iter(validations)
    monkeypatch.setattr(
        "maskattn_kernels.segmentation.scoring.metrics.SegmentationMetrics.compute",
        lambda self: dict(next(each)),
    )


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([(30.0, math.nan), (90.0, math.nan), (80.0, math.nan)], 90.0),  # no object in validation
        ([(90.0, math.nan), (20.0, 5.0), (30.0, math.nan)], 20.0),  # the main score, once it is
        ([(math.nan, math.nan), (10.0, math.nan), (math.nan, math.nan)], 10.0),
        ([(50.0, 9.0), (60.0, math.nan), (70.0, 8.0)], 50.0),
    ],
)
def test_a_score_that_is_nan_neither_wins_nor_blocks(scores, best, tmp_path, monkeypatch):
    rows = [{"mIoU": a, "PQ": b, "SQ": b, "RQ": b, "AP": b, "AP50": b} for a, b in scores]
    scores_of_validations(monkeypatch, *rows)
    out = tmp_path / "run"
    training.main(tiny_arguments(out, "--val_every", "1", steps=3))
    assert Checkpoint.from_pretrained(out / "best").metrics["mIoU"] == best
    assert len(read_log(out / "validation.csv")) == 3


def test_saved_scores_are_json(tmp_path):
    def no_constants(text):
        raise AssertionError(f"{text} is not JSON")

    saved = tiny_checkpoint(tmp_path / "trained")
    saved.metrics = {"mIoU": 3.0, "AP": math.nan}
    saved.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert json.loads(text, parse_constant=no_constants)["metrics"] == {"mIoU": 3.0, "AP": None}
    assert math.isnan(Checkpoint.from_pretrained(tmp_path).metrics["AP"])


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_weights_of_a_file_that_are_not_finite_are_refused(value, tmp_path, capsys):
    checkpoint = tiny_checkpoint(tmp_path)
    with torch.no_grad():
        checkpoint.network.unet.head.bias[1] = value
    checkpoint.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"model.safetensors: unet.head.bias holds NaN or"):
        Checkpoint.from_pretrained(tmp_path)
    more = ["--checkpoint", str(tmp_path), "--data", "digit-scenes"]
    assert cli.main(["eval", *more]) == 2
    assert "unet.head.bias" in capsys.readouterr().err
