# SPDX-License-Identifier: BSD-3-Clause
"""SegmentationNetwork: outputs of each task, its config, and that it learns with its masks."""

import json

import pytest
import torch
from scenes import CLASSES, THINGS, scenes

from maskattn_kernels.segmentation.data.sample import VOID
from maskattn_kernels.segmentation.model.grouping import group
from maskattn_kernels.segmentation.model.losses import SegmentationLoss
from maskattn_kernels.segmentation.model.network import SegmentationNetwork


def network(**arguments) -> SegmentationNetwork:
    torch.manual_seed(0)
    return SegmentationNetwork(CLASSES, THINGS, **{"width": 4, "depth": 2, **arguments})


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_outputs_of_each_task(task):
    outputs = network(task=task, embedding=6)(torch.rand(2, 3, 18, 23))
    assert outputs.semantic.shape == (2, CLASSES, 18, 23)
    objects = [outputs.center, outputs.offset, outputs.embedding]
    if task == "semantic":
        assert objects == [None, None, None]
    else:
        assert [t.shape[1] for t in objects] == [1, 2, 6]
    scales = ("down1", "down2", "up1", "up2")
    roles = [f"{scale} {role}" for scale in scales for role in ("queries", "keys")]
    assert list(outputs.selections) == roles
    for selection in outputs.selections.values():
        assert selection.queries is None
        assert selection.mask.shape == selection.score.shape
        assert selection.keep_ratio.shape == (2,)


def test_a_mask_for_both_is_one_selection():
    outputs = network(sparsity="qk")(torch.rand(2, 3, 18, 23))
    assert list(outputs.selections) == ["down1", "down2", "up1", "up2"]


def test_no_embedding():
    assert network(embedding=0)(torch.rand(1, 3, 8, 8)).embedding is None


def test_uint8_and_float_images_are_the_same():
    net, image = network().eval(), torch.randint(256, (1, 3, 16, 16), dtype=torch.uint8)
    torch.testing.assert_close(net(image).semantic, net(image / 255).semantic)


def test_config_builds_the_network_again():
    net = network(selector="gumbel", task="instance", num_heads=2, core="dense").eval()
    config = json.loads(json.dumps(net.config))
    again = SegmentationNetwork(**config).eval()
    again.load_state_dict(net.state_dict())
    image = torch.rand(1, 3, 16, 16)
    assert torch.equal(again(image).semantic, net(image).semantic)
    assert again.config == net.config


@pytest.mark.parametrize(
    "masks",
    [
        *({"selector": s} for s in ("local", "topk", "gumbel-topk", "threshold", "gumbel")),
        *({"selector": s} for s in ("random", "none")),
        {"selector": "topk", "sparsity": "qk"},
    ],
    ids=lambda masks: "-".join(masks.values()),
)
def test_every_parameter_gets_a_gradient(masks):
    net, batch = network(**masks), scenes(2, size=32)
    SegmentationLoss(THINGS)(net(batch["image"]), batch)["loss"].backward()
    missing = [name for name, parameter in net.named_parameters() if parameter.grad is None]
    assert missing == []


def test_overfits_a_few_images_with_learned_masks():
    """In seconds, and the mask heads and what they select move on the way."""
    batch = scenes(4, size=32)
    net = network(width=8, depth=3, selector="topk", keep=0.25)
    heads = {n: p.detach().clone() for n, p in net.named_parameters() if "mask_head" in n}
    before = {name: s.mask for name, s in net(batch["image"]).selections.items()}
    loss = SegmentationLoss(THINGS, sigma=1.5)
    optimiser = torch.optim.AdamW(net.parameters(), lr=5e-3)
    for _ in range(80):
        losses = loss(net(batch["image"]), batch)
        optimiser.zero_grad()
        losses["loss"].backward()
        optimiser.step()
    outputs = net(batch["image"])
    known = batch["semantic"] != VOID
    panoptic = group(outputs, THINGS)
    right = (panoptic.semantic == batch["semantic"])[known].float().mean()
    assert right > 0.9
    found = [len(image.unique()) - 1 for image in panoptic.instance]
    truth = [len(image.unique()) - 1 for image in batch["instance"]]
    assert sum(abs(a - b) for a, b in zip(found, truth, strict=True)) <= 3
    parameters = dict(net.named_parameters())
    assert all(not torch.equal(parameters[name], start) for name, start in heads.items())
    assert all(not torch.equal(before[name], s.mask) for name, s in outputs.selections.items())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"task": "depth"}, "task: expected one of \"semantic\", .* got 'depth'"),
        ({"preset": "huge"}, "preset: expected one of .* got 'huge'"),
        ({"classes": 256}, "classes: expected an int from 1 to 255, got 256"),
        ({"things": [4]}, r"things: expected different classes below 4, got \(4,\)"),
        ({"things": [1, 1]}, "things: expected different classes"),
        ({"things": []}, 'things: expected classes to count for task "panoptic", got none'),
        ({"embedding": -1}, "embedding: expected an int from 0, got -1"),
        ({"selector": "best"}, "selector: expected one of"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        SegmentationNetwork(**{"classes": CLASSES, "things": THINGS, **arguments})


@pytest.mark.parametrize(
    ("image", "kind", "words"),
    [
        (torch.zeros(1, 3, 8, 8).long(), TypeError, "image: .* got torch.int64"),
        ("a.png", TypeError, "image: .* got str"),
        (torch.zeros(3, 8, 8), ValueError, r"image: expected shape \(B, 3, H, W\), got"),
    ],
)
def test_bad_images(image, kind, words):
    with pytest.raises(kind, match=words):
        network()(image)
