# SPDX-License-Identifier: BSD-3-Clause
"""One run per folder, and nobody else's files in it are replaced."""

import multiprocessing
import os
from pathlib import Path

import pytest
from segmentation_runs import tiny_arguments

from maskattn_kernels import cli
from maskattn_kernels.segmentation.training import command as training
from maskattn_kernels.segmentation.training.options import ConfigError
from maskattn_kernels.segmentation.training.run_folder import MARK, claimed


def hold(folder: Path, pipe) -> None:
    with claimed(folder, resume=False):
        pipe.send("ready")
        pipe.recv()


@pytest.fixture
def other_process(tmp_path):
    """Has the folder ``run`` until its end."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=hold, args=(tmp_path / "run", there))
    process.start()
    assert here.poll(60) and here.recv() == "ready"
    yield process
    here.send("done")
    process.join()


def test_a_folder_in_use_is_refused_and_the_process_named(other_process, tmp_path, capsys):
    assert cli.main(["train", *tiny_arguments(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert f"run is in use by process {other_process.pid} on " in said and said.count("\n") == 1
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_a_killed_process_leaves_no_lock(other_process, tmp_path):
    other_process.kill()
    other_process.join()
    assert (tmp_path / "run" / ".lock").exists()
    training.main(tiny_arguments(tmp_path / "run", steps=1))
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize(
    "name",
    ["config.yaml", "train.csv", "validation.csv", "best/notes.txt", "tensorboard/a", "final"],
)
def test_files_of_somebody_else_are_not_replaced(name, tmp_path, capsys):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("my: own\n")
    assert cli.main(["train", *tiny_arguments(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    first = name.split("/")[0]
    assert f"out: {tmp_path / 'run'} holds {first}, which is not of a run" in said
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert [file.read_text() for file in files] == ["my: own\n"]


def test_a_log_beside_and_what_a_failed_run_left_are_no_hindrance(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "slurm-1.out").write_text("queued\n")
    (out / "config.yaml").write_text(f"{MARK}\nsteps: 1\n")  # of a run that ended before it saved
    (out / "train.csv").write_text("step,loss/loss\n1,0.5\n")
    training.main(tiny_arguments(out, steps=1))
    assert (out / "slurm-1.out").read_text() == "queued\n"
    assert (out / "config.yaml").read_text().startswith(MARK)


def test_a_state_of_another_folder_needs_a_free_one_too(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    training.main(tiny_arguments(first, steps=1))
    second.mkdir()
    (second / "config.yaml").write_text("my: own\n")
    more = ("--ckpt_path", str(first / "last.ckpt"))
    with pytest.raises(ConfigError, match=r"^out: .*second holds config.yaml, which is not of"):
        training.main(tiny_arguments(second, *more, steps=1))
    assert (second / "config.yaml").read_text() == "my: own\n"
    assert os.listdir(second) == ["config.yaml"]
