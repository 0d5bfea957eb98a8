# SPDX-License-Identifier: BSD-3-Clause
"""Changes of colours against loops over pixels, and the options that ask for them."""

import colorsys
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from maskattn_kernels.segmentation.data.augmentation import Augmentation, chosen_augmentation
from maskattn_kernels.segmentation.data.batches import Batches
from maskattn_kernels.segmentation.data.colors import Colors
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.training.options import parse, to_yaml

STILL = Colors(light=0.0)
ALL = {"light": 0.4, "gamma": 0.5, "saturation": 0.6, "hue": 0.1, "blur": 2.0, "noise": 8.0}


class Draws:
    """A generator that gives these numbers, from -1 to 1."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def random(self) -> float:
        return (self.values.pop(0) + 1) / 2


def image(height: int = 6, width: int = 7) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def rounded(value: float) -> int:
    return round(min(max(value, 0.0), 255.0))


@pytest.mark.parametrize("gamma", [0.0, 0.8])
def test_levels(gamma):
    pixels, mean = image(), float(image().mean(dtype=np.float32))
    draws = Draws(0.5, -0.25, *([0.75] if gamma else []))
    got = Colors(light=0.4, gamma=gamma)(pixels, draws)
    for before, after in zip(pixels.ravel(), got.ravel(), strict=True):
        level = 255 * (before / 255) ** math.exp(0.75 * gamma)
        assert after == rounded(1.2 * (mean + 0.9 * (level - mean)))
    assert not draws.values, "all draws are used"


@pytest.mark.parametrize(("saturation", "hue"), [(0.5, 0.0), (0.0, 0.3), (0.5, 0.5), (1.0, 0.1)])
def test_saturation_and_hue(saturation, hue):
    pixels = image()
    got = Colors(light=0.0, saturation=saturation, hue=hue)(pixels, Draws(0, 0, -0.8, 0.6))
    for before, after in zip(pixels.reshape(-1, 3), got.reshape(-1, 3), strict=True):
        r, g, b = (float(level) for level in before)
        y = 0.299 * r + 0.587 * g + 0.114 * b
        i = 0.596 * r - 0.274 * g - 0.322 * b
        q = 0.211 * r - 0.523 * g + 0.312 * b
        turned = complex(i, q) * (1 - 0.8 * saturation)
        turned *= complex(math.cos(1.2 * math.pi * hue), math.sin(1.2 * math.pi * hue))
        matrix = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
        expected = np.linalg.solve(matrix, [y, turned.real, turned.imag])
        np.testing.assert_allclose(after, [rounded(level) for level in expected], atol=1)


def test_grey_stays_grey_and_a_full_turn_is_none():
    grey = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    changed = Colors(light=0.0, saturation=0.9, hue=0.4)(grey, Draws(0, 0, 0.9, 0.9))
    np.testing.assert_array_equal(changed, grey)
    colored = image()
    np.testing.assert_array_equal(Colors(0.0, hue=0.5)(colored, Draws(0, 0, 0, 0)), colored)


def test_hue_turns_the_way_that_colour_wheels_do():
    """Half of the wheel away from red lie greens and blues."""
    red = np.full((1, 1, 3), [200, 60, 60], np.uint8)
    turned = Colors(0.0, hue=0.5)(red, Draws(0, 0, 0, 1.0))[0, 0] / 255
    hue = colorsys.rgb_to_hsv(*turned)[0]
    assert 0.4 < hue < 0.6


def test_no_saturation_is_the_luma():
    got = Colors(light=0.0, saturation=1.0)(image(), Draws(0, 0, -1.0, 0)).astype(int)
    luma = image() @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(got, np.repeat(luma[..., None], 3, axis=2), atol=1)


def test_blur_and_noise():
    rng = np.random.default_rng
    pixels = image(64, 64)
    blurred = [Colors(0.0, blur=3.0)(pixels, rng(seed)) for seed in range(20)]
    spread = [b.std() for b in blurred]
    assert max(spread) > 0.9 * pixels.std() and min(spread) < 0.3 * pixels.std()
    assert all(abs(b.mean() - pixels.mean()) < 1.5 for b in blurred)
    flat = np.full((64, 64, 3), 128, np.uint8)
    deviations = [Colors(0.0, noise=20.0)(flat, rng(seed)).std() for seed in range(50)]
    assert 0 <= min(deviations) < 3 and 17 < max(deviations) < 21


def test_a_change_of_zero_leaves_the_draws_of_the_others():
    pixels = image()
    for name in ("gamma", "saturation", "blur", "noise"):
        first, second = np.random.default_rng(3), np.random.default_rng(3)
        Colors(**{name: 0.0})(pixels, first)
        Colors()(pixels, second)
        assert first.random() == second.random()
    np.testing.assert_array_equal(STILL(pixels, np.random.default_rng(0)), pixels)


def test_training_images_change_by_seed_epoch_and_index_alone():
    def first(start: int, **options) -> torch.Tensor:
        batches = Batches("digit-scenes", count=4, batch_size=4, size=32, augment=ALL, **options)
        loaded = next(iter(batches.train_loader(batches=3, start=start)))
        return loaded["image"][loaded["index"].argsort()]

    assert torch.equal(first(0), first(0, workers=2))
    assert not torch.equal(first(0), first(1)), "another epoch"
    assert not torch.equal(first(0), first(0, seed=1))


def test_what_is_not_said_is_as_usual():
    usual = Augmentation((0.8, 1.0), mirror=False, colors=Colors(light=0.1))
    asked = chosen_augmentation({"hue": 0.1, "zoom": [0.5, 2]}, usual)
    assert asked == Augmentation((0.5, 2.0), False, Colors(light=0.1, hue=0.1))
    assert chosen_augmentation(True, usual) == usual
    assert chosen_augmentation({}, usual) == usual
    assert chosen_augmentation(ALL, usual).colors == Colors(**ALL)
    still = chosen_augmentation(False, usual)
    assert still == Augmentation((1.0, 1.0), False, STILL)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"sharpness": 1}, r"unknown option 'sharpness'; known: zoom, mirror, light, gamma, sat"),
        ({"hue": 0.6}, r"expected a number from 0 to 0.5 for hue, got 0.6$"),
        ({"light": -1}, r"expected a number from 0 to 1 for light, got -1$"),
        ({"noise": "much"}, r"expected a number from 0 to 255 for noise, got 'much'$"),
        ({"blur": True}, r"expected a number from 0 to 20 for blur, got True$"),
        ({"blur": math.nan}, r"expected a number from 0 to 20 for blur, got nan$"),
        ({"mirror": 1}, r"expected true or false for mirror, got 1$"),
        ({"zoom": 2}, r"expected the least and the largest, from 0.1 to 10, for zoom, got 2$"),
        ({"zoom": [2, 1]}, r"expected the least and .* for zoom, got \[2, 1\]$"),
        ({"zoom": ["a", 1]}, r"expected the least and .* for zoom, got \['a', 1\]$"),
    ],
)
def test_wrong_options_are_one_line(asked, says):
    with pytest.raises(DataError, match=rf"^augment: {says}"):
        Batches("digit-scenes", augment=asked).open()


def test_the_option_of_the_command(tmp_path: Path):
    given = '{"hue": 0.1, "zoom": [0.5, 2.0], "mirror": false}'
    config = parse(["--data.augment", given])
    assert config.data.augment == {"hue": 0.1, "zoom": [0.5, 2.0], "mirror": False}
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert parse(["--config", str(tmp_path / "again.yaml")]).data.augment == config.data.augment
    assert parse([]).data.augment is True
    assert parse(["--data.augment", "false"]).data.augment is False
    assert parse(["--data.augment.hue", "0.1"]).data.augment == {"hue": 0.1}
