# SPDX-License-Identifier: BSD-3-Clause
"""What is resumed must be the run that was stopped: anything else is one line, and no hang."""

import csv
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from segmentation_runs import tiny_arguments

from maskattn_kernels import cli
from maskattn_kernels.segmentation.checkpoints import Checkpoint, CheckpointError
from maskattn_kernels.segmentation.training import command as training
from maskattn_kernels.segmentation.training.csv_log import CSVLog, read_log
from maskattn_kernels.segmentation.training.module import SegmentationModule
from maskattn_kernels.segmentation.training.options import ConfigError

ACCUMULATED = ("--trainer.accumulate_grad_batches", "4")


def stop_at(monkeypatch, batch: int) -> None:
    before = SegmentationModule.training_step

    def interrupted(self, *arguments):
        if arguments[1] + 1 == batch:
            os.kill(os.getpid(), signal.SIGTERM)
        return before(self, *arguments)

    monkeypatch.setattr(SegmentationModule, "training_step", interrupted)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A run of 8 steps of 4 batches each, stopped after step 4."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 14)
        with pytest.raises(KeyboardInterrupt):
            training.main(tiny_arguments(out, *ACCUMULATED, steps=8))
    return out


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run of 4 steps that reached its end."""
    out = tmp_path_factory.mktemp("finished") / "run"
    training.main(tiny_arguments(out, steps=4))
    return out


def resume(out: Path, *more: str) -> int:
    return training.main(["--config", str(out / "config.yaml"), "--ckpt_path", "last", *more])


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("trainer.accumulate_grad_batches", "1", "has 4, got 1$"),  # never ended
        ("trainer.accumulate_grad_batches", "8", "has 4, got 8$"),
        ("trainer.precision", "64-true", 'has "32-true", got "64-true"$'),
        ("trainer.gradient_clip_val", "null", "has 1.0, got null$"),
        ("network.task", "semantic", 'has "panoptic", got "semantic"$'),
        ("steps", "16", r"has 8, got 16; .* is a new run: --init_from .*final --out ANOTHER$"),
    ],
)
def test_other_options_are_refused(option, value, says, stopped):
    with pytest.raises(ConfigError, match=rf"^{option}: the run to resume {says}") as caught:
        resume(stopped, f"--{option}", value)
    assert "\n" not in str(caught.value)


def test_the_task_may_be_left_open(stopped, tmp_path, capsys):
    out = shutil.copytree(stopped, tmp_path / "run")
    resume(stopped, "--out", str(out), "--network.task", "auto", "--trainer.deterministic", "true")
    assert f"resuming {out / 'last.ckpt'} after step 4 of 8, in {out}" in capsys.readouterr().err


def edited(path: Path, *place: str, value) -> None:
    state = torch.load(path, weights_only=True)
    part = state
    for name in place[:-1]:
        part = part[name]
    if value is None:
        del part[place[-1]]
    else:
        part[place[-1]] = value
    torch.save(state, path)


FIT = ("loops", "fit_loop")
BATCHES = (*FIT, "epoch_loop.batch_progress")
STEPS = (*FIT, "epoch_loop.automatic_optimization.optim_progress", "optimizer", "step", "total")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("global_step",), 10**9),
        (("global_step",), -1),
        (("global_step",), "four"),
        ((*BATCHES, "total", "ready"), 10**9),
        ((*BATCHES, "current", "ready"), 10**9),
        ((*BATCHES, "current", "completed"), -5),
        ((*BATCHES, "total", "ready"), 12),
        ((*STEPS, "completed"), 10**9),
        ((*FIT, "epoch_progress", "current", "completed"), 7),
        ((*FIT, "epoch_loop.state_dict", "_batches_that_stepped"), 99),
        ((*FIT, "epoch_loop.val_loop.batch_progress", "total", "ready"), -1),
        (BATCHES, None),
        (FIT, {}),
        (("loops",), {}),
        (("loops",), []),
        (("state_dict",), None),
        (("state_dict", "network.unet.head.bias"), torch.zeros(99)),
        (("state_dict", "network.unet.head.bias"), "zero"),
        (("state_dict", "network.unet.tail"), torch.zeros(1)),
        (("optimizer_states",), []),
        (("optimizer_states",), [{"state": {}, "param_groups": []}]),
        (("optimizer_states", 0, "state", 0, "momentum"), torch.zeros(1, 2)),
        (("lr_schedulers",), [{}, {}, {}]),
        (("callbacks",), {"SaveState": 3}),
        (("callbacks", "SaveState"), {}),
        (("run",), {"seed": 0}),
        (("scores",), {}),
    ],
)
def test_an_edited_state_is_one_line_with_its_name(place, value, stopped, tmp_path, capsys):
    out = shutil.copytree(stopped, tmp_path / "run")
    edited(out / "last.ckpt", *place, value=value)
    arguments = ["--config", str(stopped / "config.yaml"), "--ckpt_path", "last"]
    assert cli.main(["train", *arguments, "--out", str(out)]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"maskattn train: {out / 'last.ckpt'}: "), last
    assert len(last) < 400


def test_a_state_of_more_processes_is_refused(stopped, tmp_path):
    out = shutil.copytree(stopped, tmp_path / "run")
    edited(out / "last.ckpt", "run", "processes", value="2")
    with pytest.raises(ConfigError, match=r"^trainer.devices: .* has 2 processes, got 1; "):
        resume(stopped, "--out", str(out))


def test_a_finished_run_adds_nothing(finished, tmp_path, capsys):
    out = shutil.copytree(finished, tmp_path / "run")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    resume(finished, "--out", str(out))
    said = capsys.readouterr()
    assert "all 4 steps are done; to train on, start a new run with --init_from" in said.err
    assert said.out.startswith("mIoU ")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_run_killed_before_its_final_checkpoint_writes_it(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(out / "final")
    tables = {name: (out / name).read_text() for name in ("train.csv", "validation.csv")}
    resume(finished, "--out", str(out))
    assert {name: (out / name).read_text() for name in tables} == tables
    expected, got = (Checkpoint.from_pretrained(run / "final") for run in (finished, out))
    assert got.metrics == expected.metrics
    weights = got.network.state_dict()
    for name, tensor in expected.network.state_dict().items():
        assert torch.equal(weights[name], tensor), name


def test_a_moved_run_says_where_it_goes_on(stopped, tmp_path, capsys):
    """The config of a copy still names the folder of the original."""
    copy = shutil.copytree(stopped, tmp_path / "my copy")
    cure = f"to resume the run in {copy}, add --out '{copy}'"
    resume(copy, "--out", str(copy))  # and its config names the copy from now on
    assert "note: " not in capsys.readouterr().err
    shutil.copy(stopped / "config.yaml", copy)
    original = shutil.copytree(stopped, tmp_path / "kept")
    try:
        resume(copy)
        assert f"config.yaml names the folder {stopped}, and that" in capsys.readouterr().err
        (stopped / "last.ckpt").unlink()
        with pytest.raises(CheckpointError, match=rf"^ckpt_path: there is no .*last.ckpt; {cure}$"):
            resume(copy)
    finally:
        shutil.rmtree(stopped)
        original.rename(stopped)


def test_a_kill_between_saving_and_logging_loses_no_row(tmp_path, monkeypatch):
    out = tmp_path / "run"
    more = ("--save_every", "2", "--val_every", "100")
    training.main(tiny_arguments(tmp_path / "whole", *more, steps=6))
    with monkeypatch.context() as patch:
        logged = CSVLog.log_metrics

        def killed(self, metrics, step=None):
            if step == 3 and "loss/loss" in metrics:
                raise MemoryError
            logged(self, metrics, step)

        patch.setattr(CSVLog, "log_metrics", killed)
        with pytest.raises(MemoryError):
            training.main(tiny_arguments(out, *more, steps=6))
    assert [row["step"] for row in read_log(out / "train.csv")] == [1, 2, 3]
    resume(out)
    whole = (tmp_path / "whole" / "train.csv").read_text()
    assert [line.split(",")[0] for line in whole.splitlines()[1:]] == [*"123456"]
    assert read_log(out / "train.csv") == read_log(tmp_path / "whole" / "train.csv")


def test_rows_keep_their_form(tmp_path):
    log = CSVLog(tmp_path)
    log.log_metrics({"loss/loss": 1 / 3}, step=0)
    log.log_metrics({"loss/loss": 0.25}, step=1)
    log = CSVLog(tmp_path, resumed_at=1)
    log.log_metrics({"loss/loss": 0.5}, step=1)
    with open(tmp_path / "train.csv", newline="") as file:
        assert [*csv.reader(file)] == [["step", "loss/loss"], ["1", str(1 / 3)], ["2", "0.5"]]
