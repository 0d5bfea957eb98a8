# SPDX-License-Identifier: BSD-3-Clause
"""Errors of loading processes are those of reading in this process: one line, with the file."""

import subprocess
import sys
import traceback

import pytest
from data_trees import folder
from segmentation_runs import tiny_arguments
from torch.utils.data import Dataset

from maskattn_kernels import cli
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.loading import Loader


class Own(Exception):
    """Needs two arguments, so that pickle cannot make it again."""

    def __init__(self, file, reason):
        super().__init__(f"{file}: {reason}")


class Raises(Dataset):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 2:
            raise self.error
        return index


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (DataError("a.png: cut off"), DataError, "a.png: cut off"),
        (OSError(28, "No space left on device", "b.png"), OSError, "[Errno 28] No space left"),
        (MemoryError(), MemoryError, ""),
        (KeyError("name"), KeyError, "'name'"),
        (Own("c.png", "odd"), RuntimeError, "Own: c.png: odd"),
    ],
)
def test_an_error_comes_as_it_was(error, kind, text):
    loader = Loader(Raises(error), 2, list, batch_size=1)
    read = []
    with pytest.raises(kind) as caught:
        read.extend(loader)
    assert read == [[0], [1]]
    assert str(caught.value).startswith(text) and "Traceback" not in str(caught.value)
    assert "__getitem__" in "".join(traceback.format_exception(caught.value))


def test_a_process_ends_while_its_loader_is_in_use():
    """As after an error whose traceback still holds the iterator, when loading processes wait."""
    code = """
from maskattn_kernels.segmentation.data.loading import Loader
loader = Loader(list(range(99)), 2, list, batch_size=1)
batches = iter(loader)
print(next(batches))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "[0]\n"), done.stderr


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize(
    ("split", "bad"), [("train", "masks"), ("val", "masks"), ("val", "images")]
)
def test_a_bad_file_is_one_line_from_every_loader(split, bad, workers, tmp_path, capsys):
    folder(tmp_path / "data", count=4, apart=True)
    path = next((tmp_path / "data" / split / bad).iterdir())
    out = tmp_path / "run"
    data = ("--data", "folder", "--root", str(tmp_path / "data"))
    more = ("--data.workers", workers, "--data.batch_size", "2", "--network.task", "semantic")
    argv = [*tiny_arguments(out, *data, *more), "--data.options", "{}", "--data.val_options", "{}"]

    def spoiled(batches):  # in place of the look at the labels before training
        path.write_bytes(path.read_bytes()[:-40])
        return {}

    with pytest.MonkeyPatch.context() as patch:
        judged = "maskattn_kernels.segmentation.training.building._judge_labels"
        patch.setattr(judged, spoiled)
        assert cli.main(["train", *argv]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"maskattn train: {path}: ") and len(last) < 300
