# SPDX-License-Identifier: BSD-3-Clause
"""`check-data`, `eval` and `train` take the same words for a data set."""

import pytest
from segmentation_runs import tiny_checkpoint

from maskattn_kernels import cli
from maskattn_kernels.segmentation.data import arguments, batches
from maskattn_kernels.segmentation.data.errors import DataError

COMMANDS = {
    "check-data": [],
    "eval": ["--checkpoint", "{folder}/checkpoint"],
    "train": ["--out", "{folder}/run"],
}


@pytest.fixture(params=COMMANDS)
def command(request, tmp_path):
    """A command that gets as far as its data."""
    tiny_checkpoint(tmp_path / "checkpoint")
    more = [word.format(folder=tmp_path) for word in COMMANDS[request.param]]
    return [request.param, *more]


def test_words_mean_the_same(command, monkeypatch, capsys):
    opened = []

    def open_dataset(name, root, split, **options):
        opened.append((name, str(root), options))
        raise DataError("seen")

    for module in (arguments, batches):
        monkeypatch.setattr(module, "open_dataset", open_dataset)
    words = ["--data", "coco", "--root", "own", "--set", "labels=instances", "--set", "year=2014"]
    assert cli.main([*command, *words, "--set", "crowds=no"]) == 2
    expected = ("coco", "own", {"labels": "instances", "year": 2014, "crowds": False})
    assert set(map(repr, opened)) == {repr(expected)}
    assert capsys.readouterr().err == f"maskattn {command[0]}: seen\n"
