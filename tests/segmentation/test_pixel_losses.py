# SPDX-License-Identifier: BSD-3-Clause
"""Losses of the class of each pixel against loops over pixels and classes."""

import math

import pytest
import torch
from scenes import CLASSES, THINGS, scenes

from maskattn_kernels.segmentation.data.sample import VOID
from maskattn_kernels.segmentation.model.losses import SegmentationLoss
from maskattn_kernels.segmentation.model.network import SegmentationNetwork
from maskattn_kernels.segmentation.model.pixel_losses import (
    CoarseLoss,
    DiceLoss,
    LovaszLoss,
    SemanticLoss,
)

WEIGHTS = [0.5, 2.0, 0.0, 7.0]


def case(seed: int = 0, size: tuple[int, int] = (7, 9)) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of four classes in float64 and labels: void here and there, class 3 in no image, a
    second image all void but for one pixel, a third all void."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 4, *size, generator=generator, dtype=torch.float64) * 2
    labels = torch.randint(0, 3, (3, *size), generator=generator)
    labels[0, 2:4] = VOID
    labels[1:] = VOID
    labels[1, 1, 1] = 2
    return logits, labels


def pixels(logits: torch.Tensor, labels: torch.Tensor) -> list[tuple[list[float], int]]:
    """The probabilities and the class of each labelled pixel of an image."""
    flat = logits.softmax(0).flatten(1).t().tolist()
    return [(p, c) for p, c in zip(flat, labels.flatten().tolist(), strict=True) if c != VOID]


def semantic_by_a_loop(logits, labels, weights=None, hard=0.0) -> float:
    means = []
    for image, classes in zip(logits, labels, strict=True):
        losses = sorted(
            ((-math.log(p[c]), c) for p, c in pixels(image, classes)), key=lambda pair: -pair[0]
        )
        least = -(-len(losses) // 16)
        if hard:
            hardest = [pair for pair in losses if pair[0] > -math.log(hard)]
            losses = hardest if len(hardest) > least else losses[:least]
        total = sum(loss * (weights[c] if weights else 1.0) for loss, c in losses)
        means.append(total / max(len(losses), 1))
    return sum(means) / len(means)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("hard", [0.0, 1e-6, 0.1, 0.7, 0.999])
def test_cross_entropy_with_weights_of_hard_pixels(weights, hard):
    logits, labels = case()
    got = SemanticLoss(weights, hard)(logits, labels)
    expected = semantic_by_a_loop(logits, labels, weights, hard)
    assert got.item() == pytest.approx(expected, rel=1e-5)


def test_plain_cross_entropy_is_unchanged_by_a_weight_of_1():
    logits, labels = case()
    assert SemanticLoss([1.0] * 4)(logits, labels) == SemanticLoss()(logits, labels)


def test_equal_losses_are_all_hard():
    labels = torch.zeros(1, 8, 8, dtype=torch.int64)
    logits = torch.zeros(1, 4, 8, 8, requires_grad=True)
    SemanticLoss(hard=0.01)(logits, labels).backward()
    assert (logits.grad != 0).all(), "no pixel is preferred by its place"


def test_only_hard_pixels_have_a_gradient():
    logits, labels = case()
    logits = logits.float().requires_grad_()
    SemanticLoss(hard=0.3)(logits, labels).backward()
    probability = logits.softmax(1).gather(1, labels.clamp_max(3).unsqueeze(1)).squeeze(1)
    learned = (logits.grad != 0).any(1)
    assert torch.equal(learned[0], (probability[0] < 0.3) & (labels[0] != VOID))
    assert learned[1].sum() == 1, "the hardest sixteenth of one pixel is this pixel"


def dice_by_a_loop(logits, labels) -> float:
    means = []
    for image, classes in zip(logits, labels, strict=True):
        known = pixels(image, classes)
        losses = []
        for number in {c for _, c in known}:
            common = sum(p[number] for p, c in known if c == number)
            both = sum(p[number] for p, _ in known) + sum(c == number for _, c in known)
            losses.append(1 - (2 * common + 1) / (both + 1))
        means.append(sum(losses) / max(len(losses), 1))
    return sum(means) / len(means)


def lovasz_by_a_loop(logits, labels) -> float:
    """Sum over thresholds of the Jaccard loss of the set of larger errors: the definition."""
    means = []
    for image, classes in zip(logits, labels, strict=True):
        known = pixels(image, classes)
        losses = []
        for number in {c for _, c in known}:
            errors = [(1 - p[number] if c == number else p[number], c == number) for p, c in known]
            errors.sort(reverse=True, key=lambda pair: pair[0])
            own = sum(c == number for _, c in known)
            loss = 0.0
            for place, (error, _) in enumerate(errors):
                below = errors[place + 1][0] if place + 1 < len(errors) else 0.0
                wrong = errors[: place + 1]
                missed = sum(is_own for _, is_own in wrong)
                jaccard = 1 - (own - missed) / (own + sum(not is_own for _, is_own in wrong))
                loss += (error - below) * jaccard
            losses.append(loss)
        means.append(sum(losses) / max(len(losses), 1))
    return sum(means) / len(means)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("loss", "by_a_loop"), [(DiceLoss(), dice_by_a_loop), (LovaszLoss(), lovasz_by_a_loop)]
)
def test_losses_of_overlap(loss, by_a_loop, seed):
    logits, labels = case(seed)
    assert loss(logits, labels).item() == pytest.approx(by_a_loop(logits, labels), rel=1e-5)


def coarse_by_a_loop(maps, labels, weights=None) -> float:
    """Cross-entropy at full resolution of the maps, brought there by nearest neighbour."""
    height, width = labels.shape[-2:]
    losses = []
    for logits in maps:
        rows = [y * logits.shape[2] // height for y in range(height)]
        columns = [x * logits.shape[3] // width for x in range(width)]
        full = logits[:, :, rows][:, :, :, columns]
        losses.append(semantic_by_a_loop(full, labels, weights))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_losses_of_coarser_maps(weights):
    _, labels = case()
    generator = torch.Generator().manual_seed(1)
    sizes = [(1, 1), (2, 3), (4, 5), (7, 9)]
    maps = [torch.randn(3, 4, *s, generator=generator, dtype=torch.float64) for s in sizes]
    expected = coarse_by_a_loop(maps, labels, weights)
    assert CoarseLoss(weights)(maps, labels).item() == pytest.approx(expected, rel=1e-5)


def parts_of(losses: dict[str, torch.Tensor]) -> set[str]:
    return set(losses) - {"loss"}


def of_a_network(batch: dict[str, torch.Tensor], **options) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    network = SegmentationNetwork(CLASSES, THINGS, "semantic", width=4, depth=2, selector="topk")
    loss = SegmentationLoss(THINGS, "semantic", **options)
    return loss(network.eval()(batch["image"]), batch)


def test_the_total_is_the_weighted_sum_of_the_parts_asked_for():
    batch = scenes(2)
    assert parts_of(of_a_network(batch)) == {"semantic", "dice"}
    assert parts_of(of_a_network(batch, dice_weight=0)) == {"semantic"}
    losses = of_a_network(batch, dice_weight=0.5, lovasz_weight=0.5, coarse_weight=0.4)
    assert parts_of(losses) == {"semantic", "dice", "lovasz", "coarse"}
    total = losses["semantic"] + 0.5 * (losses["dice"] + losses["lovasz"]) + 0.4 * losses["coarse"]
    torch.testing.assert_close(losses["loss"], total)


def test_halves_of_a_batch_average_to_the_whole():
    """So that processes that share a batch learn as one."""
    batch = scenes(4)
    batch["semantic"][0, :30] = VOID
    options = {"class_weights": [float(number) for number in range(CLASSES)], "hard": 0.7}
    options |= {"dice_weight": 0.5, "lovasz_weight": 0.5, "coarse_weight": 0.4}
    parts = [{k: t[half] for k, t in batch.items()} for half in (slice(0, 2), slice(2, 4))]
    with torch.no_grad():
        first, second = (of_a_network(part, **options) for part in parts)
        for name, whole in of_a_network(batch, **options).items():
            torch.testing.assert_close((first[name] + second[name]) / 2, whole, msg=name)


@pytest.mark.parametrize("hard", [-0.1, 1.0])
def test_bad_threshold(hard):
    with pytest.raises(ValueError, match=rf"^hard: expected a number from 0 below 1, got {hard}$"):
        SegmentationLoss(THINGS, hard=hard)
