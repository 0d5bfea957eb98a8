# SPDX-License-Identifier: BSD-3-Clause
"""The start of training: what is learned from, what is left out, where, and what is waited for."""

from data_trees import folder
from segmentation_runs import tiny_arguments

from maskattn_kernels.segmentation.training import command as training


def test_a_run_says_what_it_learns_from(tmp_path, capsys):
    folder(tmp_path / "data", count=4, apart=True)
    data = ("--data", "folder", "--root", str(tmp_path / "data"), "--data.limit", "3")
    none = ("--data.options", "{}", "--data.val_options", "{}", "--data.batch_size", "2")
    out = tmp_path / "run"
    training.main(tiny_arguments(out, *data, *none, "--trainer.accelerator", "cpu", steps=2))
    said = capsys.readouterr().err.splitlines()
    waiting, *_ = said
    assert waiting == "reading the labels of up to 100 images of each split"
    told = [line for line in said if line.startswith("data: ")]
    assert told == [
        "data: train 3 of 4 images, val 4 images; 2 classes (1 of them things); 8% of the pixels "
        "are void; 1 to 1 objects in an image"
    ]
    assert f"run: 2 steps of 2 images on cpu, validation every 2, into {out}" in said


def test_generated_data_are_not_read_first(tmp_path, capsys):
    training.main(tiny_arguments(tmp_path / "run", "--log_every", "10", steps=1))
    said = capsys.readouterr().err
    assert "data: train 10 images, val 4 images; 18 classes (10 of them things)\n" in said
    assert "reading the labels" not in said
    assert "step 1/1  loss " in said  # before the first row of the log is due
