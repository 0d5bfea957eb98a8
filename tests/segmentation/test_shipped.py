# SPDX-License-Identifier: BSD-3-Clause
"""The trained networks that come with the package find what their cards say."""

from pathlib import Path

import pytest

from maskattn_kernels.cli import main
from maskattn_kernels.segmentation.checkpoint_files import SHIPPED, WEIGHTS, shipped_names
from maskattn_kernels.segmentation.checkpoints import Checkpoint, CheckpointError

#: Nuclei by the data set's labels of the picture.
LABELLED = {"fluorescence": 65, "stained": 75, "tissue": 97}


@pytest.mark.parametrize("name", shipped_names())
def test_each_is_small_and_has_a_card(name):
    assert (SHIPPED / name / WEIGHTS).stat().st_size <= 4 << 20
    card = (SHIPPED / name / "README.md").read_text(encoding="utf-8")
    for told in ("licence", "learned from", "Scores on", "Limits"):
        assert told in card


@pytest.mark.parametrize("picture", LABELLED)
def test_nuclei_are_found(picture):
    found = Checkpoint.from_pretrained("nuclei").segment(SHIPPED / "nuclei" / f"{picture}.jpg")
    assert abs(len(found.objects) - LABELLED[picture]) <= 0.2 * LABELLED[picture]
    assert {thing.name for thing in found.objects} == {"nucleus"}


def test_predict_takes_the_name(tmp_path, capsys):
    picture = SHIPPED / "nuclei" / "fluorescence.jpg"
    arguments = [str(picture), "--checkpoint", "nuclei", "--out", str(tmp_path / "out")]
    assert main(["predict", *arguments]) == 0
    assert (tmp_path / "out").is_dir()


def test_a_folder_of_the_name_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("nuclei").mkdir()
    with pytest.raises(CheckpointError, match=r"^nuclei: no model\.safetensors in this folder"):
        Checkpoint.from_pretrained("nuclei")


def test_a_name_that_is_nearly_right_is_told():
    with pytest.raises(CheckpointError, match=r"did you mean nuclei, which comes with the package"):
        Checkpoint.from_pretrained("nuclie")
