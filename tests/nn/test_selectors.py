# SPDX-License-Identifier: BSD-3-Clause
"""RandomSelector: the right count, repeatable, and what a checkpoint brings back."""

import pytest
import torch

from maskattn_kernels.nn import RandomSelector, Selector

SHAPES = [(1, 1), (1, 7), (5, 3), (16, 16), (37, 53)]


def draw(selector: RandomSelector, *shape: int) -> torch.Tensor:
    return selector(torch.empty(shape)).mask


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.25, 0.5, 1.0])
def test_selects_exactly_the_fraction(size, keep):
    mask = draw(RandomSelector(keep, seed=3), 4, 2, *size)
    assert mask.dtype == torch.bool
    assert mask.shape == (4, *size)
    assert mask.sum((1, 2)).tolist() == [round(keep * size[0] * size[1])] * 4


def test_the_same_again_in_any_mode_and_dtype():
    selector = RandomSelector(0.3, seed=5)
    first = draw(selector, 2, 4, 9, 9)
    torch.rand(10)  # the global generator does not come in
    assert torch.equal(first, draw(selector, 2, 4, 9, 9))
    assert torch.equal(first, draw(selector.eval(), 2, 4, 9, 9))
    assert torch.equal(first, selector(torch.empty(2, 8, 9, 9, dtype=torch.bfloat16)).mask)


def test_an_image_draws_the_same_in_a_batch_of_any_size():
    selector = RandomSelector(0.3, seed=5)
    assert torch.equal(draw(selector, 3, 1, 8, 8)[:1], draw(selector, 1, 1, 8, 8))


def test_images_and_seeds_differ():
    a, b = draw(RandomSelector(0.5, seed=1), 2, 1, 16, 16)
    other = draw(RandomSelector(0.5, seed=2), 2, 1, 16, 16)[0]
    for one, two in ((a, b), (a, other)):
        # Independent draws of half of 256 tokens agree on about half.
        assert 96 <= (one == two).sum() <= 160


def test_scattered_evenly():
    masks = draw(RandomSelector(0.25, seed=0), 64, 1, 16, 16).float()
    quadrants = masks.view(64, 2, 8, 2, 8).mean((0, 2, 4))
    assert (quadrants - 0.25).abs().max() < 0.02  # 4096 draws each: one sigma is 0.007
    assert (masks.mean(0) - 0.25).abs().max() < 0.25  # 64 draws each: one sigma is 0.054


def test_checkpoint_brings_the_mask_back():
    saved = RandomSelector(0.4, seed=2**32 - 1)
    loaded = RandomSelector(0.4, seed=1)
    assert not torch.equal(draw(saved, 2, 1, 8, 8), draw(loaded, 2, 1, 8, 8))
    loaded.load_state_dict(saved.state_dict())
    assert loaded.seed == 2**32 - 1
    assert torch.equal(draw(saved, 2, 1, 8, 8), draw(loaded, 2, 1, 8, 8))


def test_empty_batch_and_no_pixels():
    assert draw(RandomSelector(0.5), 0, 3, 4, 4).shape == (0, 4, 4)
    assert draw(RandomSelector(0.5), 2, 3, 0, 4).shape == (2, 0, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"keep": "half"}, TypeError, "keep: expected a number from 0 to 1, got str"),
        ({"keep": True}, TypeError, "keep: .* got bool"),
        ({"keep": 1.5}, ValueError, "keep: .* got 1.5"),
        ({"keep": float("nan")}, ValueError, "keep: .* got nan"),
        ({"keep": 0.5, "seed": 1.0}, TypeError, "seed: .* got float"),
        ({"keep": 0.5, "seed": -1}, ValueError, "seed: .* got -1"),
    ],
)
def test_bad_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        RandomSelector(**arguments)


def test_base_class_asks_for_forward():
    with pytest.raises(NotImplementedError, match=r"Selector\.forward"):
        Selector()(torch.empty(1, 1, 1, 1))
