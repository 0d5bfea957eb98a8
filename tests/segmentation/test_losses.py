# SPDX-License-Identifier: BSD-3-Clause
"""Targets and losses: right where labels are, silent where they are not."""

import pytest
import torch
from scenes import CLASSES, THINGS, perfect_outputs, scenes

from maskattn_kernels.segmentation.data.sample import VOID
from maskattn_kernels.segmentation.model.losses import InstanceContrastiveLoss, SegmentationLoss
from maskattn_kernels.segmentation.model.network import Outputs, SegmentationNetwork
from maskattn_kernels.segmentation.model.targets import instance_targets

EVERYTHING = {
    "class_weights": [float(number) for number in range(CLASSES)],
    "hard": 0.7,
    "dice_weight": 1.0,
    "lovasz_weight": 1.0,
    "coarse_weight": 0.4,
}


def network(**arguments) -> SegmentationNetwork:
    torch.manual_seed(0)
    return SegmentationNetwork(CLASSES, THINGS, width=4, depth=2, **arguments)


def test_targets_against_a_loop_over_objects():
    batch = scenes(2)
    semantic, instance = batch["semantic"], batch["instance"]
    instance = torch.where(semantic == VOID, 0, instance)
    targets = instance_targets(semantic, batch["instance"], THINGS, sigma=2.0)
    ys, xs = torch.meshgrid(torch.arange(48), torch.arange(48), indexing="ij")
    for image in range(2):
        heat = torch.zeros(48, 48)
        for number in instance[image].unique()[1:]:
            pixels = instance[image] == number
            y, x = ys[pixels].double().mean().round(), xs[pixels].double().mean().round()
            heat = torch.maximum(heat, torch.exp(-((ys - y) ** 2 + (xs - x) ** 2) / 8.0).float())
            assert torch.equal(targets.offset[image, 0][pixels], (y - ys[pixels]).float())
            assert torch.equal(targets.offset[image, 1][pixels], (x - xs[pixels]).float())
        torch.testing.assert_close(targets.center[image, 0], heat)
    assert torch.equal(targets.offset_counts[:, 0], instance > 0)
    assert torch.equal(targets.center_counts[:, 0], semantic != VOID)


def test_what_is_not_known_does_not_count():
    semantic = torch.tensor([[[2, 2, 0, VOID]]])
    instance = torch.tensor([[[5, 0, 7, 8]]])  # an object, a crowd, an object of stuff, void
    targets = instance_targets(semantic, instance, THINGS)
    assert targets.numbers.tolist() == [[[1, 0, 0, 0]]]
    assert targets.center_counts.tolist() == [[[[True, False, True, False]]]]
    assert targets.offset_counts.tolist() == [[[[True, False, False, False]]]]


def test_every_pixel_may_be_an_object():
    instance = torch.arange(1, 101).view(1, 10, 10)
    targets = instance_targets(torch.full_like(instance, 2), instance, THINGS)
    assert torch.equal(targets.numbers, instance)
    assert (targets.center == 1).all() and targets.center_counts.all()


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
@pytest.mark.parametrize("selector", ["topk", "threshold"])
@pytest.mark.parametrize("options", [{}, EVERYTHING])
def test_all_void_is_no_loss_and_no_gradient(task, selector, options):
    net = network(task=task, selector=selector)
    semantic = torch.full((2, 16, 16), VOID)
    batch = {"semantic": semantic, "instance": torch.ones_like(semantic)}
    losses = SegmentationLoss(THINGS, task, **options)(net(torch.rand(2, 3, 16, 16)), batch)
    assert losses["loss"] == 0
    losses["loss"].backward()
    assert all(parameter.grad.eq(0).all() for parameter in net.parameters())


def test_perfect_outputs_cost_nothing():
    batch = scenes(2)
    losses = SegmentationLoss(THINGS)(perfect_outputs(batch), batch)
    assert losses["loss"] < 1e-6


def test_void_pixels_do_not_matter():
    batch = scenes(2)
    outputs = perfect_outputs(batch)
    void = (batch["semantic"] == VOID).unsqueeze(1)
    spoilt = [torch.where(void, 1e6, t) for t in outputs[:3]]
    loss = SegmentationLoss(THINGS)
    assert loss(Outputs(*spoilt, None, {}), batch)["loss"] == loss(outputs, batch)["loss"]


def test_halves_of_a_batch_average_to_the_whole():
    """So that processes that share a batch learn as one."""
    batch = scenes(4)
    batch["semantic"][0, :30] = VOID
    net = network(selector="threshold").eval()
    loss = SegmentationLoss(THINGS, keep=0.3)

    def of(part: slice) -> torch.Tensor:
        labels = {name: t[part] for name, t in batch.items()}
        return loss(net(labels["image"]), labels)["loss"]

    with torch.no_grad():
        halves = (of(slice(0, 2)) + of(slice(2, 4))) / 2
        torch.testing.assert_close(halves, of(slice(0, 4)))


def test_contrastive_loss_is_the_mean_over_triplets():
    torch.manual_seed(0)
    numbers = torch.tensor([[[1, 1, 2], [2, 0, 3]], [[0, 0, 0], [0, 0, 4]]])
    embedding = torch.randn(2, 5, 2, 3)
    points, labels = embedding[0].flatten(1).t(), numbers[0].flatten()
    losses = []
    for a, b, c in torch.cartesian_prod(*[torch.arange(6)] * 3).tolist():
        if a != b and labels[a] == labels[b] != labels[c] and labels[a] and labels[c]:
            near, far = (points[a] - points[b]).norm(), (points[a] - points[c]).norm()
            losses.append((near - far + 0.5).relu())
    expected = torch.stack(losses).mean() / 2  # the other image has a single object
    torch.testing.assert_close(InstanceContrastiveLoss(margin=0.5)(embedding, numbers), expected)


def test_contrastive_loss_samples_small_objects_too():
    numbers = torch.ones(1, 64, 64, dtype=torch.int64)
    numbers[0, :4, :4] = 2  # 16 of 4096 pixels
    places = InstanceContrastiveLoss(samples=32)._sample(numbers.flatten(1))
    sampled = numbers.flatten(1).gather(1, places)
    assert (sampled == 2).sum() >= 8
    assert places.unique().numel() == 32


def test_contrastive_loss_compares_pixels_of_one_object_among_hundreds():
    numbers = torch.arange(400).view(20, 20).repeat_interleave(6, 0).repeat_interleave(6, 1)
    loss = InstanceContrastiveLoss(samples=48)
    sampled = numbers.flatten()[loss._sample(numbers.view(1, -1))]
    assert sampled.unique().numel() == 12 and 0 not in sampled
    apart = torch.stack([numbers % 20, numbers // 20]).float().unsqueeze(0)
    assert loss(9 * apart, numbers.unsqueeze(0)) == 0
    assert loss(torch.zeros_like(apart), numbers.unsqueeze(0)) == 1


def test_no_value_is_read_on_the_host():
    with torch.device("meta"):
        net = network(core="dense")
        image = torch.empty(2, 3, 16, 16, dtype=torch.uint8)
        labels = torch.zeros(2, 16, 16, dtype=torch.int64)
        losses = SegmentationLoss(THINGS, keep=0.5, **EVERYTHING)(
            net(image), {"semantic": labels, "instance": labels}
        )
        losses["loss"].backward()
    pixelwise, objects = {"semantic", "dice", "lovasz", "coarse"}, {"center", "offset"}
    assert set(losses) == {"loss", *pixelwise, *objects, "contrastive", "keep"}


def test_bad_task():
    with pytest.raises(ValueError, match=r"task: expected one of .* got 'depth'"):
        SegmentationLoss(THINGS, "depth")
