# SPDX-License-Identifier: BSD-3-Clause
"""A run that was stopped, wherever, can be resumed to the very result of one that was not."""

import multiprocessing
import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from segmentation_runs import FRM, tiny_arguments

from maskattn_kernels.common import atomic
from maskattn_kernels.common.atomic import WriteError, replace_file
from maskattn_kernels.segmentation.checkpoints import CheckpointError
from maskattn_kernels.segmentation.training import command as training
from maskattn_kernels.segmentation.training.csv_log import read_log
from maskattn_kernels.segmentation.training.module import SegmentationModule
from maskattn_kernels.segmentation.training.options import ConfigError
from maskattn_kernels.segmentation.training.run_state import SafeStateIO, read_state

STEPS = 8  # the data set is 2.5 batches, validation is every 3 steps


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "run"
    training.main(tiny_arguments(out, steps=STEPS))
    return out


def press_ctrl_c(monkeypatch, during: str, call: int) -> None:
    """Send SIGINT to this process inside the given call of a step of the module."""
    step, calls = getattr(SegmentationModule, during), []

    def interrupted(self, batch, batch_idx):
        calls.append(batch_idx)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(SegmentationModule, during, interrupted)


@pytest.mark.parametrize(
    ("during", "call", "stopped_at"),
    [
        ("training_step", 1, 1),
        ("training_step", 3, 3),  # a validation is due: it comes first
        ("training_step", 5, 5),
        ("validation_step", 1, 3),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_result(
    during, call, stopped_at, unbroken, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        press_ctrl_c(patch, during, call)
        with pytest.raises(KeyboardInterrupt, match=f"step {stopped_at}; resume with: maskattn"):
            training.main(tiny_arguments(out, steps=STEPS))
    assert read_state(out / "last.ckpt")["global_step"] == stopped_at
    training.main(["--config", str(out / "config.yaml"), "--ckpt_path", "last"])
    expected = load_file(unbroken / "final" / "model.safetensors")
    got = load_file(out / "final" / "model.safetensors")
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, got[name]), name
    for table in ("train.csv", "validation.csv"):
        assert read_log(out / table) == read_log(unbroken / table)
    best = load_file(unbroken / "best" / "model.safetensors")
    for name, tensor in load_file(out / "best" / "model.safetensors").items():
        assert torch.equal(tensor, best[name]), name


def test_gradients_are_never_saved_half_accumulated(unbroken, tmp_path, monkeypatch):
    more = ("--trainer.accumulate_grad_batches", "3")
    whole, out = tmp_path / "whole" / "run", tmp_path / "run"
    (tmp_path / "whole").mkdir()
    training.main(tiny_arguments(whole, *more))
    with monkeypatch.context() as patch:
        press_ctrl_c(patch, "training_step", 4)
        with pytest.raises(KeyboardInterrupt, match="step 2;"):
            training.main(tiny_arguments(out, *more))
    training.main(["--config", str(out / "config.yaml"), "--ckpt_path", "last"])
    expected = load_file(whole / "final" / "model.safetensors")
    for name, tensor in load_file(out / "final" / "model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name


LOSSES = """--loss.class_weights balanced --loss.hard 0.7 --loss.dice_weight 1
--loss.lovasz_weight 1 --loss.coarse_weight 0.4""".split()
IMAGES = "--data.balance true --data.augment.saturation 0.5 --data.augment.noise 9".split()
RECIPE = (*LOSSES, *IMAGES, "--patience", "3", "--optimizer.ema", "0.5")


@pytest.mark.parametrize(
    "more",
    [
        RECIPE,
        (*FRM, "--network.selector", "gumbel-topk"),
        (*FRM, "--network.selector", "random", "--keep.schedule", "drawn"),
    ],
    ids=["recipe", "frm", "frm-random"],
)
def test_any_run_goes_on_to_the_same_result(more, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole" / "run", tmp_path / "run"
    (tmp_path / "whole").mkdir()
    training.main(tiny_arguments(whole, *more, steps=STEPS))
    with monkeypatch.context() as patch:
        press_ctrl_c(patch, "training_step", 5)
        with pytest.raises(KeyboardInterrupt, match="step 5;"):
            training.main(tiny_arguments(out, *more, steps=STEPS))
    training.main(["--config", str(out / "config.yaml"), "--ckpt_path", "last"])
    for name in ("final", "best"):
        expected = load_file(whole / name / "model.safetensors")
        for key, tensor in load_file(out / name / "model.safetensors").items():
            assert torch.equal(tensor, expected[key]), key
    assert read_log(out / "train.csv") == read_log(whole / "train.csv")


def test_ctrl_c_at_the_last_step_changes_nothing(unbroken, tmp_path, monkeypatch):
    out = tmp_path / "run"
    press_ctrl_c(monkeypatch, "training_step", STEPS)
    training.main(tiny_arguments(out, steps=STEPS))
    assert read_log(out / "validation.csv") == read_log(unbroken / "validation.csv")


def test_a_resumed_run_must_be_the_same_run(unbroken):
    config = ["--config", str(unbroken / "config.yaml"), "--ckpt_path", "last"]
    with pytest.raises(ConfigError, match=r"^optimizer.lr: .* has 0.001, got 0.5$"):
        training.main([*config, "--optimizer.lr", "0.5"])
    with pytest.raises(ConfigError, match=r"holds a run; resume it with --ckpt_path last"):
        training.main(config[:2])


def test_hostile_state_is_refused_and_not_run(tmp_path, unbroken):
    class Bomb:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'exploded'}",))

    out = tmp_path / "run"
    out.mkdir()
    torch.save({"loops": Bomb()}, out / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"it holds code or objects that are not loaded$"):
        training.main(tiny_arguments(out, "--ckpt_path", "last"))
    assert not (tmp_path / "exploded").exists()
    (out / "last.ckpt").write_bytes((unbroken / "last.ckpt").read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"damaged or cut off$"):
        training.main(tiny_arguments(out, "--ckpt_path", "last"))


def save_and_be_killed(path: Path) -> None:
    """To be run in a process of its own: it is ended when all is written but not yet in place."""
    atomic.os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
    SafeStateIO().save_checkpoint({"loops": {}, "step": 2}, path)


def test_killed_in_mid_save_the_state_before_is_still_good(tmp_path):
    path = tmp_path / "last.ckpt"
    SafeStateIO().save_checkpoint({"loops": {}, "step": 1}, path)
    process = multiprocessing.get_context("fork").Process(target=save_and_be_killed, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2, "the kill came in mid-save"
    assert read_state(path)["step"] == 1
    SafeStateIO().save_checkpoint({"loops": {}, "step": 3}, path)
    assert read_state(path)["step"] == 3 and len(list(tmp_path.iterdir())) == 1


def test_a_disk_that_is_full_leaves_the_file_before(tmp_path):
    path = tmp_path / "last.ckpt"
    replace_file(path, lambda temporary: temporary.write_text("before"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(WriteError, match=r"^cannot write .*; the one from before is still"):
            replace_file(path, lambda temporary: temporary.write_bytes(bytes(2000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
