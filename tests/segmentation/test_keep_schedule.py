# SPDX-License-Identifier: BSD-3-Clause
"""The keep ratio of the steps of a run: falling from all tokens, or drawn at each step."""

import os
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from segmentation_runs import tiny_arguments

from maskattn_kernels.models import MaskAttnUNet
from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.training import command as training
from maskattn_kernels.segmentation.training.csv_log import read_log
from maskattn_kernels.segmentation.training.keep_schedule import KeepOptions, KeepSchedule
from maskattn_kernels.segmentation.training.module import SegmentationModule
from maskattn_kernels.segmentation.training.options import ConfigError, parse

STEPS = 8
FALLING = ("--network.selector=topk", "--keep.schedule=falling", "--keep.falls=[0.25,0.75]")
DRAWN = ("--network.selector=entropy", "--keep.schedule=drawn", "--keep.lowest=0.2")


def schedule(**options) -> KeepSchedule:
    network = MaskAttnUNet(width=4, depth=1, selector="topk")
    return KeepSchedule(network, KeepOptions(**options), steps=100, seed=3)


def test_a_falling_ratio_falls_from_all_tokens_to_the_target():
    falling = schedule(schedule="falling", falls=(0.2, 0.6))
    assert [falling.ratio(step, 0.25) for step in (0, 20, 40, 60, 99)] == [1, 1, 0.5, 0.25, 0.25]
    assert falling.ratio(50, 0.0) == 0.0
    ratios = [falling.ratio(step, 0.1) for step in range(100)]
    assert ratios == sorted(ratios, reverse=True)
    at_once = schedule(schedule="falling", falls=(0.5, 0.5))
    assert [at_once.ratio(step, 0.25) for step in (49, 50)] == [1, 0.25]


def test_drawn_ratios_are_those_of_seed_and_step_and_even_in_their_logarithm():
    drawn = schedule(schedule="drawn", lowest=0.05)
    ratios = [drawn.ratio(step, 0.25) for step in range(4000)]
    assert ratios == [schedule(schedule="drawn", lowest=0.05).ratio(i, 0.9) for i in range(4000)]
    other = KeepSchedule(drawn.dial, drawn.options, steps=100, seed=4)
    assert [other.ratio(step, 0.25) for step in range(9)] != ratios[:9]
    shares = np.log(ratios) / np.log(0.05)
    assert 0 <= shares.min() < 0.01 and 0.99 < shares.max() <= 1
    np.testing.assert_allclose(np.histogram(shares, 4, (0, 1))[0] / 4000, 0.25, atol=0.03)


def seen_in_steps(monkeypatch) -> list[float]:
    """The ratio of up2's keys in each training step, as it goes on."""
    step, seen = SegmentationModule.training_step, []

    def watched(self, batch, batch_idx):
        attention = self.network.unet.attentions()["up2"]
        seen.append(attention.selector.keep)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(SegmentationModule, "training_step", watched)
    return seen


def seen_in_validations(monkeypatch) -> list[float]:
    step, seen = SegmentationModule.validation_step, []

    def watched(self, batch, batch_idx):
        seen.append(self.validated.unet.attentions()["up2"].selector.keep)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(SegmentationModule, "validation_step", watched)
    return seen


def test_steps_have_the_ratio_of_the_schedule_and_all_else_that_of_the_network(
    tmp_path, monkeypatch
):
    in_steps, in_validations = seen_in_steps(monkeypatch), seen_in_validations(monkeypatch)
    out = tmp_path / "run"
    training.main(tiny_arguments(out, *FALLING, "--network.keep=0.0625", steps=STEPS))
    assert in_steps == [1, 1, 1, 0.5, 0.25, 0.125, 0.0625, 0.0625]
    assert set(in_validations) == {0.0625}
    logged = [row["keep/up2 keys"] for row in read_log(out / "train.csv")]
    np.testing.assert_allclose([float(x) for x in logged], in_steps, atol=1e-3)
    for name in ("best", "final"):
        network = Checkpoint.from_pretrained(out / name).network
        assert network.config["keep"] == network.unet.keep == 0.0625


def test_gradients_of_one_step_have_one_ratio(tmp_path, monkeypatch):
    in_steps = seen_in_steps(monkeypatch)
    more = (*DRAWN, "--trainer.accumulate_grad_batches=3")
    training.main(tiny_arguments(tmp_path / "run", *more, steps=2))
    assert len(in_steps) == 6
    assert len(set(in_steps[:3])) == len(set(in_steps[3:])) == 1
    assert in_steps[0] != in_steps[3]


@pytest.mark.parametrize("options", [FALLING, DRAWN])
def test_a_resumed_run_gives_the_same_weights(options, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole" / "run", tmp_path / "run"
    whole.parent.mkdir()
    training.main(tiny_arguments(whole, *options, steps=STEPS))
    with monkeypatch.context() as patch:
        seen = seen_in_steps(patch)
        step = SegmentationModule.training_step

        def stopped(self, batch, batch_idx):
            if len(seen) == 4:
                os.kill(os.getpid(), signal.SIGINT)
            return step(self, batch, batch_idx)

        patch.setattr(SegmentationModule, "training_step", stopped)
        with pytest.raises(KeyboardInterrupt):
            training.main(tiny_arguments(out, *options, steps=STEPS))
    training.main(["--config", str(out / "config.yaml"), "--ckpt_path", "last"])
    expected = load_file(whole / "final" / "model.safetensors")
    for name, tensor in load_file(out / "final" / "model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name
    assert read_log(whole / "train.csv") == read_log(out / "train.csv")


def test_another_schedule_is_another_run(tmp_path):
    out = tmp_path / "run"
    training.main(tiny_arguments(out, *FALLING, steps=2))
    with pytest.raises(ConfigError, match=r"^keep\.schedule: the run to resume has \"falling\""):
        training.main(
            ["--config", str(out / "config.yaml"), "--ckpt_path=last", "--keep.schedule=drawn"]
        )


def test_each_scale_falls_to_its_own_ratio():
    network = MaskAttnUNet(width=4, depth=1, selector="topk", keep={"down1": 0.25, "up1": 0.01})
    falling = KeepSchedule(network, KeepOptions(schedule="falling", falls=(0, 1)), 100, seed=0)
    falling.on_train_batch_start(type("Trainer", (), {"global_step": 50}), {}, 0)
    assert {s: a.selector.keep for s, a in network.attentions().items()} == {
        "down1": 0.5,
        "up1": pytest.approx(0.1),
    }
    falling.on_train_batch_end(None)
    assert network.keep == {"down1": 0.25, "up1": 0.01}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--keep.schedule=rising"], r"keep\.schedule: .*rising"),
        (["--keep.schedule=falling", "--network.selector=gumbel"], r"keep\.schedule: .*'gumbel'"),
        (["--keep.schedule=drawn", "--network.selector=none"], r"keep\.schedule: .*'none'"),
        (["--keep.falls=[0.5,0.2]"], r"keep\.falls: .*got 0.5, 0.2"),
        (["--keep.falls=[-1,0.2]"], r"keep\.falls: .*got -1.0, 0.2"),
        (["--keep.falls=0.5"], r"keep\.falls: "),
        (["--keep.lowest=0"], r"keep\.lowest: .*got 0"),
        (["--keep.lowest=2"], r"keep\.lowest: .*got 2"),
    ],
)
def test_schedules_that_cannot_be_are_one_line(arguments, says):
    with pytest.raises(ConfigError, match=rf"^{says}") as caught:
        parse(arguments)
    assert "\n" not in str(caught.value)
