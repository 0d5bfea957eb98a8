# SPDX-License-Identifier: BSD-3-Clause
"""A run ends early when no validation was better for as long as --patience says."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from repository import ROOT
from safetensors.torch import load_file
from segmentation_runs import tiny_arguments

from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.training import command as training
from maskattn_kernels.segmentation.training.csv_log import read_log
from maskattn_kernels.segmentation.training.module import SegmentationModule
from maskattn_kernels.segmentation.training.options import ConfigError, parse
from maskattn_kernels.segmentation.training.run_state import read_state

SCORES = [3.0, 5.0, 4.0, 5.0, 6.0, 1.0, 2.0]  # validations after steps 1, 2, ..
EACH_STEP = ("--val_every", "1", "--patience", "2")


@pytest.fixture
def scored(monkeypatch):
    """Validations give SCORES by their step."""
    compute = SegmentationModule.on_validation_epoch_end

    def given(self):
        compute(self)
        self.scores["PQ"] = SCORES[self.trainer.global_step - 1]

    monkeypatch.setattr(SegmentationModule, "on_validation_epoch_end", given)


def steps_validated(out: Path) -> list[int]:
    return [int(row["step"]) for row in read_log(out / "validation.csv")]


@pytest.mark.usefixtures("scored")
def test_a_run_ends_after_validations_that_were_not_better(tmp_path, capsys):
    out = tmp_path / "run"
    training.main(tiny_arguments(out, *EACH_STEP, steps=7))
    assert steps_validated(out) == [1, 2, 3, 4], "an equal score is not a better one"
    assert "no better score in 2 validations: the run ends (--patience)" in capsys.readouterr().err
    assert Checkpoint.from_pretrained(out / "best").metrics["PQ"] == 5
    assert Checkpoint.from_pretrained(out / "final").metrics["PQ"] == 5
    assert read_state(out / "last.ckpt")["global_step"] == 4


@pytest.mark.usefixtures("scored")
def test_a_run_that_ended_early_is_not_resumed_but_with_more_patience(tmp_path, capsys):
    out, whole = tmp_path / "run", tmp_path / "whole"
    training.main(tiny_arguments(out, *EACH_STEP, steps=7))
    resume = ["--config", str(out / "config.yaml"), "--ckpt_path", "last"]
    capsys.readouterr()
    training.main(resume)
    assert "run: ended after step 4, by --patience; to train on, resume" in capsys.readouterr().err
    training.main([*resume, "--patience", "0"])
    training.main(tiny_arguments(whole, "--val_every", "1", steps=7))
    expected = load_file(whole / "final" / "model.safetensors")
    for name, tensor in load_file(out / "final" / "model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.usefixtures("scored")
def test_the_count_goes_on_in_a_resumed_run(tmp_path, monkeypatch):
    out = tmp_path / "run"
    step = SegmentationModule.training_step

    def stopped(self, batch, batch_idx):
        if batch_idx == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(SegmentationModule, "training_step", stopped)
        with pytest.raises(KeyboardInterrupt, match="stopped after step 3"):
            training.main(tiny_arguments(out, *EACH_STEP, steps=7))
    training.main(["--config", str(out / "config.yaml"), "--ckpt_path", "last"])
    assert steps_validated(out) == [1, 2, 3, 4]


@pytest.mark.usefixtures("scored")
def test_killed_before_the_last_checkpoint_it_is_written_on_resume(tmp_path, monkeypatch):
    out = tmp_path / "run"
    saved = training.save_network

    def killed(trainer, module, folder):
        raise InterruptedError if folder.name == "final" else saved(trainer, module, folder)

    with monkeypatch.context() as patch:
        patch.setattr(training, "save_network", killed)
        with pytest.raises(InterruptedError):
            training.main(tiny_arguments(out, *EACH_STEP, steps=7))
    training.main(["--config", str(out / "config.yaml"), "--ckpt_path", "last"])
    assert steps_validated(out) == [1, 2, 3, 4]
    state = read_state(out / "last.ckpt")
    assert state["global_step"] == 4
    for name, tensor in load_file(out / "final" / "model.safetensors").items():
        assert torch.equal(tensor, state["state_dict"][f"average.{name}"]), name


def test_two_processes_end_together(tmp_path):
    out = tmp_path / "run"
    # Learning rates of 0: every validation gives the score of the first.
    still = ("--optimizer.lr", "0", "--optimizer.muon_lr", "0", "--data.batch_size", "2")
    two = ("--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp")
    arguments = tiny_arguments(out, *EACH_STEP, *still, *two, "--optimizer.ema", "0", steps=7)
    done = subprocess.run(
        [sys.executable, "-m", "maskattn_kernels.cli", "train", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the run ends (--patience)") == 1
    assert len(steps_validated(out)) < 7 and (out / "final").is_dir()


def test_bad_patience():
    with pytest.raises(ConfigError, match=r"^patience: expected a whole number from 0, got -1$"):
        parse(["--patience", "-1"])
