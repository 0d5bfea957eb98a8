# SPDX-License-Identifier: BSD-3-Clause
"""Learning rates over a run: each group rises to its highest rate and falls to nearly zero."""

import math

import pytest
from scenes import CLASSES, THINGS

from maskattn_kernels.segmentation.data.digit_scenes import DigitScenes
from maskattn_kernels.segmentation.model.losses import SegmentationLoss
from maskattn_kernels.segmentation.model.network import SegmentationNetwork
from maskattn_kernels.segmentation.training.module import OptimizerOptions, SegmentationModule


def rates(steps: int, options: OptimizerOptions) -> list[list[float]]:
    """The rate of each group at each step."""
    network = SegmentationNetwork(CLASSES, THINGS, width=4, depth=1)
    classes = DigitScenes("val", count=1).classes
    loss = SegmentationLoss(THINGS)
    module = SegmentationModule(network, loss, classes, steps=steps, optimizer=options)
    made = module.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    assert made["lr_scheduler"]["interval"] == "step"
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("steps", [1, 10, 400])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 1.0])
def test_each_group_warms_up_and_falls_by_half_a_cosine(steps, warmup):
    options = OptimizerOptions(lr=0.001, muon_lr=0.02, mask_rate=10.0, warmup=warmup)
    rising = max(1, round(warmup * steps))
    for step, lrs in enumerate(rates(steps, options)):
        if step < rising:
            expected = (step + 1) / rising
        else:
            expected = math.cos(math.pi / 2 * (step - rising) / (steps - rising)) ** 2
        assert lrs == pytest.approx([expected * lr for lr in (0.02, 0.01, 0.001, 0.001)])


def test_the_last_step_is_small_and_the_highest_is_reached():
    lrs = [lr[-1] for lr in rates(400, OptimizerOptions(lr=0.001))]
    assert max(lrs) == 0.001 and lrs.index(max(lrs)) == 19
    assert 0 < lrs[-1] < 1e-7 and lrs[0] == pytest.approx(0.001 / 20)
