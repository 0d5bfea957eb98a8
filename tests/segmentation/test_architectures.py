# SPDX-License-Identifier: BSD-3-Clause
"""FRMNet in place of the U-Net: every task, checkpoints, runs, and what does not go together."""

import numpy as np
import pytest
import torch
from segmentation_runs import CLASSES, tiny_arguments
from segmentation_runs import FRM as FRM_RUN

from maskattn_kernels.segmentation.checkpoint_files import CheckpointError
from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.model.losses import SegmentationLoss
from maskattn_kernels.segmentation.model.network import TASKS, SegmentationNetwork
from maskattn_kernels.segmentation.model.prepared import prepared
from maskattn_kernels.segmentation.training import command as training
from maskattn_kernels.segmentation.training.options import ConfigError
from maskattn_kernels.segmentation.training.starting_weights import load_matching

FRM = {"arch": "frm", "preset": "tiny", "dim": 24, "num_heads": 3, "width": 12}


def network(classes: int = 3, task: str = "panoptic", **arguments) -> SegmentationNetwork:
    torch.manual_seed(0)
    return SegmentationNetwork(classes, [2], task, **{**FRM, **arguments})


def image(*size: int) -> torch.Tensor:
    return torch.randint(256, (2, 3, *size), dtype=torch.uint8)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("inject", ["stages", "none"])
def test_every_task_learns(task, inject):
    made = network(task=task, inject=inject, selector="topk", keep=0.5)
    outputs = made(image(64, 96))
    assert outputs.semantic.shape == (2, 3, 64, 96)
    assert (outputs.offset is None) == (task == "semantic")
    labels = torch.randint(3, (2, 64, 96))
    batch = {"semantic": labels, "instance": (labels == 2).long()}
    losses = SegmentationLoss([2], task, coarse_weight=0.4)(outputs, batch)
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())


def test_selections_have_the_names_of_the_blocks():
    outputs = network(selector="entropy", depth=2)(image(64, 96))
    assert list(outputs.selections) == [
        f"refine{i} {what}" for i in (1, 2) for what in ("queries", "keys")
    ]
    assert all(s.mask.shape == (2, 4, 6) for s in outputs.selections.values())
    assert outputs.coarse[0].shape == (2, 3, 4, 6)  # the guess


def test_parts_have_the_name_of_the_architecture():
    frm, unet = network(), SegmentationNetwork(3, [2], width=4, depth=2)
    assert frm.body is frm.frm and unet.body is unet.unet
    assert any(name.startswith("frm.blocks.0.attention.qk") for name in frm.state_dict())
    assert frm.encoder_parts() == [frm.frm.encoder]
    assert frm.config["encoder"] == "frm" and unet.config["encoder"] == "unet"
    old = {name: value for name, value in unet.config.items() if name != "arch"}
    assert SegmentationNetwork(**old).config == unet.config


def test_checkpoint(tmp_path):
    made = Checkpoint(network(selector="entropy").eval(), CLASSES, size=64)
    made.save_pretrained(tmp_path)
    loaded = Checkpoint.from_pretrained(tmp_path)
    assert loaded.network.config == made.network.config
    photograph = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    ours, theirs = (each.segment(photograph).semantic for each in (made, loaded))
    assert ours.shape == (50, 70) and np.array_equal(ours, theirs)


def test_keep_and_selector_after_training():
    made = network(selector="topk", keep=0.5).eval()
    made.set_keep(0.25)
    assert made(image(64, 64)).selections["refine1 keys"].keep_ratio.tolist() == [0.25, 0.25]
    made.set_selector("entropy", 0.5)
    made(image(64, 64))
    assert SegmentationNetwork(**made.config).config == made.config


@torch.inference_mode()
def test_prepared():
    made = network(selector="random").eval()
    x = image(64, 96)
    torch.testing.assert_close(
        prepared(made, torch.float32)(x).semantic, made(x).semantic, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"arch": "vit"}, 'arch: expected one of "unet", "frm", got .vit.'),
        ({"preset": "edge"}, 'preset: expected one of "large", .* got .edge.'),
        ({"bottleneck": 64}, "bottleneck: expected None, as FRMNet has .*, got 64"),
        ({"attention_norm": "before"}, "attention_norm: expected None, as FRMNet .* got 'before'"),
        ({"arch": "unet", "preset": None}, "dim: expected None, as MaskAttnUNet has .*, got 24"),
        ({"encoder": "unet"}, 'encoder: expected one of "frm", .* got .unet.'),
        ({"grid": 5}, "grid: expected a multiple or a divisor .* got 5"),
    ],
)
def test_what_does_not_go_together(arguments, words):
    with pytest.raises(ValueError, match=words) as caught:
        network(**arguments)
    assert "\n" not in str(caught.value)


def test_start_from_a_trained_network():
    trained = network(selector="topk")
    same = network(5, selector="random")
    new = load_matching(same, trained)
    assert all("head" in name or "objects" in name or ".selector." in name for name in new)
    for part in ("encoder.stem.0", "blocks.0.attention.qk"):
        ours, theirs = (net.frm.get_submodule(part).weight for net in (same, trained))
        assert torch.equal(ours, theirs)
    with pytest.raises(CheckpointError, match="encoder is 'unet' here and 'frm' there"):
        load_matching(SegmentationNetwork(3, [2], width=4, depth=2), trained)


def test_trained_weights_need_an_encoder_that_has_some(tmp_path):
    more = (*FRM_RUN, "--network.encoder_weights", "mine.pth")
    with pytest.raises(ConfigError, match=r"encoder_weights: .* with the network's own encoder"):
        training.main(tiny_arguments(tmp_path / "run", *more))
