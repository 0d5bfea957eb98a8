# SPDX-License-Identifier: BSD-3-Clause
"""``--tiles``, ``--overlap`` and ``--hybrid`` of predict and eval."""

import json

import numpy as np
import pytest
from segmentation_runs import CLASSES, measure_quickly, tiny_checkpoint, write_images

from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.sample import Sample
from maskattn_kernels.segmentation.prediction import command as prediction
from maskattn_kernels.segmentation.scoring import command as scoring
from maskattn_kernels.segmentation.scoring.steps import hybrid_steps


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    measure_quickly(monkeypatch)


class Noise:
    """Four labelled images of noise."""

    classes = CLASSES

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Sample:
        random = np.random.default_rng(index)
        image = random.integers(0, 256, (70, 90, 3), dtype=np.uint8)
        return Sample(str(index), image, random.integers(0, 3, (70, 90), dtype=np.uint8))


def test_predict_in_tiles(tmp_path, capsys) -> None:
    tiny_checkpoint(tmp_path / "checkpoint")
    images = write_images(tmp_path / "images", 2, height=70, width=90)
    given = [str(images), "--checkpoint", str(tmp_path / "checkpoint")]
    out = tmp_path / "out"
    tiled = [*given, "--tiles", "32x40", "--overlap", "0.5", "--out", str(out)]
    assert prediction.main(tiled) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["tiles"]["computed"] == summary["tiles"]["of"] == 2 * 4 * 4
    assert summary["size"] == [32, 40]
    assert "32 of 32 tiles computed (100%)" in capsys.readouterr().out
    assert prediction.main([*given, "--hybrid", "0.25", "--out", str(out)]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert 0 < summary["tiles"]["computed"] == round(summary["tiles"]["of"] / 4)
    assert prediction.main([*given, "--out", str(out)]) == 0
    assert json.loads((out / "summary.json").read_text())["tiles"] == {"computed": 0, "of": 0}


def test_tiles_larger_than_every_image_end_predict_in_one_line(tmp_path) -> None:
    tiny_checkpoint(tmp_path / "checkpoint")
    images = write_images(tmp_path / "images", 1)
    given = [
        str(images),
        "--checkpoint",
        str(tmp_path / "checkpoint"),
        "--out",
        str(tmp_path / "o"),
    ]
    with pytest.raises(
        DataError, match=r"^00: 40 x 24 pixels, which lie within one tile of 64 x 64"
    ):
        prediction.main([*given, "--tiles", "64"])


@pytest.mark.parametrize("command", [prediction.main, scoring.main])
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--tiles", "x"], "argument --tiles: expected a side such as 256, or 192x256, got 'x'"),
        (["--tiles", "-3"], "argument --tiles: expected "),
        (["--overlap", "2"], "argument --overlap: expected a number from 0 to 1, got '2'"),
        (["--hybrid", "most"], "argument --hybrid: expected a number from 0 to 1, got 'most'"),
    ],
)
def test_wrong_words_are_one_line(command, words, says, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        command(words)
    assert says in capsys.readouterr().err


def test_steps_from_a_low_resolution_to_all_tiles(tmp_path) -> None:
    checkpoint = tiny_checkpoint(tmp_path, task="semantic")
    seen: list[str] = []
    steps = hybrid_steps(
        checkpoint,
        Noise(),
        [0.25, 0.5],
        tiles=(32, 32),
        each=lambda step, found: seen.append(step),
        batch_size=2,
    )
    names = [step.name for step in steps]
    assert names == [
        "whole at low resolution",
        "hybrid, 25% of the tiles",
        "hybrid, 50% of the tiles",
        "all tiles",
    ]
    assert seen == [name for name in names for _ in range(4)]
    assert [step.share for step in steps] == pytest.approx([0.0, 0.25, 0.5, 1.0], abs=0.05)
    costs = [step.gflops for step in steps]
    assert 0 < costs[0] < costs[1] < costs[2] < costs[0] + costs[3]
    assert all(step.milliseconds > 0 and 0 <= step.scores["mIoU"] <= 100 for step in steps)


def test_eval_prints_the_steps(tmp_path, monkeypatch, capsys) -> None:
    tiny_checkpoint(tmp_path / "checkpoint", task="semantic")
    monkeypatch.setattr(scoring, "open_named", lambda *given: Noise())
    out = tmp_path / "scores.json"
    given = [
        "--checkpoint",
        str(tmp_path / "checkpoint"),
        "--data",
        "digit-scenes",
        "--out",
        str(out),
    ]
    assert scoring.main([*given, "--hybrid", "0.1,0.5"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].split() == ["mIoU", "tiles", "ms", "GFLOPs"]
    assert rows[4].startswith("all tiles") and rows[4].split()[3] == "100%"
    report = json.loads(out.read_text())
    assert [step["name"] for step in report["steps"]][1] == "hybrid, 10% of the tiles"
    assert scoring.main([*given, "--tiles", "32"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("at original size") and "fitted" not in printed
    assert json.loads(out.read_text())["tiles"] == [32, 32]
