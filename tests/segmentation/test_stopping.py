# SPDX-License-Identifier: BSD-3-Clause
"""SIGTERM and Ctrl-C: a run saves its state and says how to resume; a second signal ends it."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from repository import ROOT
from segmentation_runs import tiny_arguments, tiny_checkpoint, write_images

from maskattn_kernels import cli
from maskattn_kernels.common.signals import Terminated
from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.data.digit_scenes import DigitScenes
from maskattn_kernels.segmentation.model.network import SegmentationNetwork
from maskattn_kernels.segmentation.prediction.writing import Writer
from maskattn_kernels.segmentation.scoring.metrics import SegmentationMetrics
from maskattn_kernels.segmentation.training import command as training
from maskattn_kernels.segmentation.training.module import SegmentationModule
from maskattn_kernels.segmentation.training.run_state import read_state


def start(*arguments: str) -> subprocess.Popen:
    """The command in a process of its own, in a group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "maskattn_kernels.cli", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition, process: subprocess.Popen, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def interrupt(monkeypatch, kind: type, method: str, number: int, call: int = 1) -> None:
    """Send this process a signal inside the given call of a method."""
    before, calls = getattr(kind, method), []

    def interrupted(self, *arguments, **options):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return before(self, *arguments, **options)

    monkeypatch.setattr(kind, method, interrupted)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
def test_train_saves_and_says_how_to_resume(number, code, tmp_path, monkeypatch, capsys):
    out = tmp_path / "my runs" / "first"
    out.parent.mkdir()
    with monkeypatch.context() as patch:
        interrupt(patch, SegmentationModule, "training_step", number, call=2)
        assert cli.main(["train", *tiny_arguments(out, steps=9)]) == code
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("maskattn train: stopped after step 2; resume with: maskattn train ")
    assert read_state(out / "last.ckpt")["global_step"] == 2
    pasted = shlex.split(said.partition("resume with: ")[2])
    assert cli.main(pasted[1:]) == 0
    assert (out / "final").is_dir()


def test_train_as_a_function_raises(tmp_path, monkeypatch):
    interrupt(monkeypatch, SegmentationModule, "training_step", signal.SIGTERM)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated, match="stopped after step 1"):
        training.main(tiny_arguments(tmp_path / "run"))
    assert signal.getsignal(signal.SIGTERM) is before


def test_train_in_a_thread_needs_no_signals(tmp_path):
    codes = []

    def run() -> None:
        codes.append(cli.main(["train", *tiny_arguments(tmp_path / "run", steps=1)]))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert codes == [0]


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")],
    ids=["TERM", "INT"],
)
def test_eval_ends_in_one_line(number, code, word, tmp_path, monkeypatch, capsys):
    classes = DigitScenes("val", count=1).classes
    network = SegmentationNetwork(len(classes), classes.things, width=4, depth=2)
    Checkpoint(network, classes, size=32).save_pretrained(tmp_path / "trained")
    interrupt(monkeypatch, SegmentationMetrics, "update", number)
    more = ("--checkpoint", str(tmp_path / "trained"), "--out", str(tmp_path / "eval.json"))
    data = ("--data", "digit-scenes", "--set", "count=4")
    assert cli.main(["eval", *more, *data]) == code
    assert capsys.readouterr().err == f"maskattn eval: {word}\n"
    assert not (tmp_path / "eval.json").exists()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
def test_predict_keeps_what_is_done(number, code, tmp_path, monkeypatch, capsys):
    tiny_checkpoint(tmp_path / "trained")
    images = write_images(tmp_path / "images", 8)
    out = tmp_path / "out"
    interrupt(monkeypatch, Writer, "add", number, call=3)
    more = ("--checkpoint", str(tmp_path / "trained"), "--out", str(out), "--batch_size", "2")
    assert cli.main(["predict", str(images), *more, "--panels", "0"]) == code
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("maskattn predict: stopped after 2 images; their results are in")
    assert json.loads((out / "summary.json").read_text())["images"] == 2
    assert len(list((out / "labels").iterdir())) == 2


@pytest.mark.parametrize(
    ("library", "number", "code", "word"),
    [
        ("/torch/", signal.SIGTERM, 143, "terminated"),
        ("/PIL/", signal.SIGTERM, 143, "terminated"),
        ("/pycocotools/", signal.SIGINT, 130, "interrupted"),
    ],
)
def test_a_signal_while_it_starts_is_one_line(library, number, code, word, tmp_path):
    """When so much is imported that the first file of ``library`` is in memory."""
    process = start("train", *tiny_arguments(tmp_path / "run", steps=100_000))
    loaded = Path(f"/proc/{process.pid}/maps")
    wait_for(lambda: library in loaded.read_text(), process)
    process.send_signal(number)
    _, error = process.communicate(timeout=240)
    assert (process.returncode, error) == (code, f"maskattn train: {word}\n")


def test_a_second_signal_ends_at_once(tmp_path):
    out = tmp_path / "run"
    # One step of many batches: the first signal waits for its end.
    more = ("--trainer.accumulate_grad_batches", "100000", "--log_every", "1")
    process = start("train", *tiny_arguments(out, *more))
    wait_for(lambda: list(out.glob("tensorboard/*")), process)
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143
    assert error.splitlines()[-1] == "maskattn train: terminated"


@pytest.mark.parametrize("whole_group", [False, True], ids=["main", "group"])
def test_two_processes_stop_together(whole_group, tmp_path):
    """Only the first one speaks; with workers, which hear of the signal as well."""
    out = tmp_path / "run"
    more = ("--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu")
    workers = ("--data.workers", "1", "--save_every", "0", "--val_every", "100000")
    process = start("train", *tiny_arguments(out, *more, *workers, steps=100_000))
    wait_for(lambda: (out / "train.csv").exists(), process)
    if whole_group:
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=240)
    assert process.returncode == 143, error
    assert error.count("resume with: maskattn train") == 1
    state = read_state(out / "last.ckpt")
    assert f"stopped after step {state['global_step']}; " in error
    assert not Path(out / "final").exists()
