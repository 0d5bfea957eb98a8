# SPDX-License-Identifier: BSD-3-Clause
"""Objects by their distances: exact targets, and every object found again from a perfect map."""

import numpy as np
import pytest
import torch
from scenes import CLASSES, THINGS, scenes
from scipy import ndimage

from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.data.sample import VOID, Classes
from maskattn_kernels.segmentation.infer import Pipeline
from maskattn_kernels.segmentation.model import distances
from maskattn_kernels.segmentation.model.distances import distance_targets
from maskattn_kernels.segmentation.model.grouping import group
from maskattn_kernels.segmentation.model.losses import SegmentationLoss
from maskattn_kernels.segmentation.model.mirrored import Mirrored
from maskattn_kernels.segmentation.model.network import Outputs, SegmentationNetwork
from maskattn_kernels.segmentation.scoring.metrics import SegmentationMetrics

CELLS = Classes(("dish", "cell"), (False, True), ((0, 0, 0), (255, 0, 0)), (0, 1))


def touching(size: int = 96) -> torch.Tensor:
    """int64 (1,S,S): discs of several sizes in rows, each touching the next and those below."""
    instance = np.zeros((size, size), np.int64)
    ys, xs = np.mgrid[:size, :size]
    number, top = 0, 0
    for radius in (3, 5, 9, 14, 9, 5):
        for left in range(0, size - 2 * radius, 2 * radius):
            number += 1
            disc = (ys - top - radius) ** 2 + (xs - left - radius) ** 2 <= radius**2
            instance[disc & (instance == 0)] = number
        top += 2 * radius
    assert number > 40
    return torch.from_numpy(instance)[None]


def noise(size: tuple[int, int], numbers: int, seed: int) -> torch.Tensor:
    """Objects of any shape, in pieces and of single pixels."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randint(numbers, (1, 1, 9, 7), generator=g).float()
    coarse = torch.nn.functional.interpolate(coarse, size=size)[0].long()
    single = torch.rand(1, *size, generator=g) < 0.03
    return torch.where(single, torch.randint(numbers, (1, *size), generator=g), coarse)


def perfect(semantic: torch.Tensor, distance: torch.Tensor, classes: int) -> Outputs:
    logits = torch.nn.functional.one_hot(semantic, classes).permute(0, 3, 1, 2) * 9.0
    return Outputs(logits, None, None, None, {}, distance=distance)


@pytest.mark.parametrize("can_ask", [True, False], ids=["values read", "shapes alone"])
@pytest.mark.parametrize(("size", "numbers"), [((40, 33), 5), ((64, 64), 2), ((1, 50), 4)])
def test_targets_are_the_distance_transform_of_each_object(size, numbers, can_ask, monkeypatch):
    if not can_ask:
        monkeypatch.setattr(distances, "_can_ask", lambda values: False)
    instance = torch.cat([noise(size, numbers, seed) for seed in range(3)])
    targets = distance_targets((instance > 0).long(), instance, [1])
    expected = torch.zeros(instance.shape)
    for image, numbered in enumerate(instance.numpy()):
        for number in np.unique(numbered[numbered > 0]):
            alone = np.pad(numbered == number, 1)  # outside is not of the object
            depth = ndimage.distance_transform_edt(alone)[1:-1, 1:-1]
            inside = torch.from_numpy(depth > 0)
            expected[image][inside] = torch.from_numpy(depth / depth.max()).float()[inside]
    torch.testing.assert_close(targets.distance[:, 0], expected)
    assert targets.counts.all() and torch.equal(targets.numbers > 0, instance > 0)


def test_what_is_not_known_does_not_count():
    semantic = torch.tensor([[[2, 2, 0, VOID, 2]]])
    instance = torch.tensor([[[5, 5, 7, 8, 0]]])  # an object, one of stuff, void, a crowd
    targets = distance_targets(semantic, instance, THINGS)
    assert targets.distance.tolist() == [[[[1.0, 1.0, 0.0, 0.0, 0.0]]]]
    assert targets.counts.tolist() == [[[[True, True, True, False, False]]]]
    loss = SegmentationLoss(THINGS)
    batch = {"semantic": semantic, "instance": instance}
    known = perfect(torch.tensor([[[2, 2, 0, 0, 2]]]), targets.distance, CLASSES)
    spoilt = torch.where(targets.counts, targets.distance, 1e6)
    assert loss(known, batch)["distance"] == 0
    assert loss(known._replace(distance=spoilt), batch)["distance"] == 0


def test_perfect_distances_give_all_touching_objects():
    instance = touching()
    semantic = (instance > 0).long()
    targets = distance_targets(semantic, instance, [1])
    found = group(perfect(semantic, targets.distance, 2), [1])
    assert found.labels.tolist() == [[1] * int(instance.max())]
    assert torch.equal(found.semantic, semantic) and (found.scores > 0.99).all()
    metrics = SegmentationMetrics(CELLS)
    metrics.update(found, {"semantic": semantic, "instance": instance})
    scores = metrics.compute()
    assert scores["AP50"] == pytest.approx(100) and scores["PQ"] > 95


def test_regions_without_a_core_are_no_objects():
    semantic = torch.tensor([[[2, 2, 1, 2, 3, 0]]])
    distance = torch.tensor([0.4, 0.9, 0.8, 0.3, 0.2, 0.9]).view(1, 1, 1, 6)
    outputs = perfect(semantic, distance, 4)
    outputs.semantic[:, 1] += 1  # the likeliest class that is not a thing
    found = group(outputs, THINGS)
    assert found.instance.tolist() == [[[1, 1, 0, 0, 0, 0]]]
    assert found.semantic.tolist() == [[[2, 2, 1, 1, 1, 0]]]
    all_things = group(outputs._replace(distance=distance.clamp_max(0.4)), [0, 1, 2, 3])
    assert torch.equal(all_things.semantic, semantic) and not all_things.instance.any()


def test_objects_are_numbered_by_height_and_few_of_them_can_be_asked_for():
    distance = torch.tensor([0.7, 0.0, 1.2, 0.0, 0.9]).view(1, 1, 1, 5)
    outputs = perfect(torch.tensor([[[1, 0, 1, 0, 1]]]), distance, 2)
    found = group(outputs, [1])
    assert found.instance.tolist() == [[[3, 0, 1, 0, 2]]]
    torch.testing.assert_close(found.scores, torch.tensor([[1.0, 0.9, 0.7]]), atol=2e-3, rtol=0)
    two = group(outputs, [1], max_objects=2)
    assert two.instance.tolist() == [[[0, 0, 1, 0, 2]]] and two.labels.tolist() == [[1, 1]]
    four = group(outputs, [1], max_objects=4)
    assert four.labels.tolist() == [[1, 1, 1, VOID]] and four.scores[0, 3] == 0


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_nothing_is_an_object(value):
    distance = torch.full((2, 1, 4, 4), value)
    found = group(perfect(torch.ones(2, 4, 4).long(), distance, 2), [1])
    assert not found.instance.any() and found.labels.shape == (2, 0)


def network(**arguments) -> SegmentationNetwork:
    torch.manual_seed(0)
    sizes = {"width": 4, "depth": 2}
    return SegmentationNetwork(CLASSES, THINGS, objects="distance", **{**sizes, **arguments})


@pytest.mark.parametrize("embedding", [0, 6])
def test_outputs_of_the_network(embedding):
    outputs = network(embedding=embedding)(torch.rand(2, 3, 18, 23))
    assert outputs.distance.shape == (2, 1, 18, 23) and outputs.have_objects
    assert outputs.center is None and outputs.offset is None
    assert embedding == 0 or outputs.embedding.shape == (2, embedding, 18, 23)
    semantic = SegmentationNetwork(CLASSES, task="semantic", width=4, depth=2)
    assert not semantic(torch.rand(1, 3, 8, 8)).have_objects


def test_every_parameter_gets_a_gradient_and_no_value_is_read_on_the_host():
    batch = scenes(2, size=32)
    losses = SegmentationLoss(THINGS)(network()(batch["image"]), batch)
    assert {"distance", "contrastive"} < set(losses) and "center" not in losses
    with torch.device("meta"):
        net = network(core="dense")
        labels = torch.zeros(2, 16, 16, dtype=torch.int64)
        outputs = net(torch.empty(2, 3, 16, 16, dtype=torch.uint8))
        SegmentationLoss(THINGS)(outputs, {"semantic": labels, "instance": labels})[
            "loss"
        ].backward()
    assert [n for n, parameter in net.named_parameters() if parameter.grad is None] == []


def test_it_learns_a_few_images():
    batch = scenes(4, size=32)
    net = network(width=8, depth=3, selector="topk")
    loss = SegmentationLoss(THINGS)
    optimiser = torch.optim.AdamW(net.parameters(), lr=5e-3)
    for _ in range(80):
        losses = loss(net(batch["image"]), batch)
        optimiser.zero_grad()
        losses["loss"].backward()
        optimiser.step()
    found = group(net(batch["image"]), THINGS)
    counts = [len(image.unique()) - 1 for image in found.instance]
    truth = [len(image.unique()) - 1 for image in batch["instance"]]
    assert sum(abs(a - b) for a, b in zip(counts, truth, strict=True)) <= 3


def test_a_mirrored_network_gives_the_mean():
    net, image = network().eval(), torch.rand(1, 3, 16, 24)
    with torch.inference_mode():
        plain, mirror = net(image).distance, net(image.flip(-1)).distance.flip(-1)
        torch.testing.assert_close(Mirrored(net)(image).distance, (plain + mirror) / 2)


def test_a_checkpoint_keeps_the_kind_of_objects(tmp_path):
    classes = Classes(("a", "b"), (False, True), ((0, 0, 0), (9, 9, 9)), (0, 1))
    net = SegmentationNetwork(2, [1], width=4, depth=2, objects="distance")
    Checkpoint(net, classes, size=32).save_pretrained(tmp_path)
    again = Checkpoint.from_pretrained(tmp_path)
    assert again.network.config["objects"] == "distance"
    instance = touching()
    semantic = (instance > 0).long()
    pipeline = Pipeline(again.network, classes, (96, 96), "fit")
    distance = distance_targets(semantic, instance, [1]).distance
    pipeline.network = lambda images: perfect(semantic, distance, 2)
    found = pipeline.batch([np.zeros((96, 96, 3), np.uint8)])[0]
    assert len(found.objects) == int(instance.max())
    half = pipeline.batch([np.zeros((48, 48, 3), np.uint8)])[0]  # of another size than the network
    assert len(half.objects) > 30 and not half.instance[half.semantic == 0].any()


def test_another_kind_is_refused():
    with pytest.raises(ValueError, match=r"objects: expected one of .* got 'boxes'"):
        SegmentationNetwork(2, [1], width=4, depth=1, objects="boxes")
