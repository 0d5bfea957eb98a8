# SPDX-License-Identifier: BSD-3-Clause
"""Counts of the labels, weights of classes by them, and their way from the option to the loss."""

import numpy as np
import pytest
import torch
from segmentation_runs import tiny_arguments

from maskattn_kernels.segmentation.data.batches import Batches
from maskattn_kernels.segmentation.data.digit_scenes import DigitScenes
from maskattn_kernels.segmentation.data.label_counts import balanced_weights, class_pixels
from maskattn_kernels.segmentation.data.sample import VOID, Classes, Sample
from maskattn_kernels.segmentation.training import command as training
from maskattn_kernels.segmentation.training.csv_log import read_log
from maskattn_kernels.segmentation.training.module import SegmentationModule
from maskattn_kernels.segmentation.training.options import ConfigError, parse


class Labels:
    classes = Classes(("a", "b", "c"), (False,) * 3, ((0, 0, 9), (0, 9, 0), (9, 0, 0)), (0, 1, 2))
    maps = ([[0, 0, 1]], [[VOID, VOID]], [[1], [1]], None)

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, index: int) -> Sample:
        semantic = None if self.maps[index] is None else np.array(self.maps[index], dtype=np.uint8)
        return Sample(str(index), np.zeros((1, 1, 3), np.uint8), semantic)


def test_pixels_are_counted_by_image_and_class():
    assert class_pixels(Labels()).tolist() == [[2, 1, 0], [0, 0, 0], [0, 2, 0], [0, 0, 0]]
    assert class_pixels(Labels(), [2, 0]).tolist() == [[0, 2, 0], [2, 1, 0]]


def test_balanced_weights_keep_the_scale_of_the_loss():
    pixels = np.array([10_000, 100, 0, 1])
    weights = np.array(balanced_weights(pixels))
    assert (weights * pixels).sum() / pixels.sum() == pytest.approx(1)
    assert weights[1] / weights[0] == pytest.approx(10)
    assert weights[3] / weights[1] == pytest.approx(10)
    assert weights[2] == 1
    assert balanced_weights(np.zeros(2, dtype=np.int64)) == [1.0, 1.0]


def weights_in_use(monkeypatch, arguments: list[str]) -> torch.Tensor | None:
    """The weights in the loss of a run at its start."""
    found = []

    def note(self):
        found.append(self.loss.semantic.weights)
        raise InterruptedError

    monkeypatch.setattr(SegmentationModule, "on_train_start", note)
    with pytest.raises(InterruptedError):
        training.main(arguments)
    return found[0]


def test_balanced_weights_are_those_of_the_images_in_use(tmp_path, monkeypatch, capsys):
    more = ("--loss.class_weights", "balanced", "--data.limit", "3")
    got = weights_in_use(monkeypatch, tiny_arguments(tmp_path / "run", *more))
    used = Batches("digit-scenes", count=10, limit=3).labelled()
    expected = balanced_weights(class_pixels(DigitScenes("train", count=10), used).sum(0))
    torch.testing.assert_close(got, torch.tensor(expected))
    assert "counting the pixels of the classes of 3 images" in capsys.readouterr().err


def test_weights_one_by_one(tmp_path, monkeypatch):
    weights = [float(number) for number in range(18)]
    arguments = tiny_arguments(tmp_path / "run", "--loss.class_weights", str(weights))
    assert weights_in_use(monkeypatch, arguments).tolist() == weights
    assert weights_in_use(monkeypatch, tiny_arguments(tmp_path / "other")) is None


@pytest.mark.parametrize("given", ["[1, 2]", str([-1.0] * 18), "[]"])
def test_wrong_weights_are_one_line(given, tmp_path):
    with pytest.raises(
        ConfigError, match=r"^loss.class_weights: expected 18 numbers from 0, one a class, got \["
    ):
        training.main(tiny_arguments(tmp_path / "run", "--loss.class_weights", given))


def test_a_wrong_word_is_one_line():
    says = r"^loss.class_weights: expected 'none', 'balanced' or list\[float\], got equal$"
    with pytest.raises(ConfigError, match=says):
        parse(["--loss.class_weights", "equal"])


def test_a_run_with_every_loss(tmp_path):
    more = ("--loss.class_weights", "balanced", "--loss.hard", "0.7", "--loss.coarse_weight", "0.4")
    more += ("--loss.dice_weight", "0.5", "--loss.lovasz_weight", "0.5")
    training.main(tiny_arguments(tmp_path / "run", *more))
    rows = read_log(tmp_path / "run" / "train.csv")
    assert {"loss/dice", "loss/lovasz", "loss/coarse"} <= rows[0].keys()
