# SPDX-License-Identifier: BSD-3-Clause
"""The moving average of the weights: its values, and that it is what a run scores and saves."""

import pytest
import torch
from safetensors.torch import load_file
from segmentation_runs import tiny_arguments
from torch import nn

from maskattn_kernels.nn import GumbelSelector
from maskattn_kernels.segmentation.training import command as training
from maskattn_kernels.segmentation.training.averaging import average_of, update_average
from maskattn_kernels.segmentation.training.module import SegmentationModule
from maskattn_kernels.segmentation.training.options import ConfigError, parse
from maskattn_kernels.segmentation.training.run_state import read_state


def changing() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), GumbelSelector())


def spanned(values: list[float], decay: float) -> float:
    """The average by its definition: every value with the weight that later steps leave it."""
    total, left = 0.0, 1.0
    for step in range(len(values), 0, -1):
        kept = min(decay, (step - 1) / (step + 9))
        total += left * (1 - kept) * values[step - 1]
        left *= kept
    assert left == 0, "the weights of the start have no part"
    return total


@pytest.mark.parametrize("decay", [0.05, 0.9, 0.999])
def test_values_of_the_average(decay):
    network = changing()
    average = average_of(network)
    values = [float(step * step) for step in range(1, 200)]
    for step, value in enumerate(values, 1):
        with torch.no_grad():
            network[0].weight.fill_(value)
            network[1].running_mean.fill_(-value)
            network[1].num_batches_tracked.fill_(step)
            network[2].anneal(step / 200)
        update_average(average, network, decay, step)
    expected = spanned(values, decay)
    torch.testing.assert_close(average[0].weight, torch.full((3, 2, 1, 1), expected))
    torch.testing.assert_close(average[1].running_mean, torch.full((3,), -expected))
    assert average[1].num_batches_tracked == 199
    assert average[2].temperature == network[2].temperature
    assert not any(p.requires_grad for p in average.parameters())


def test_a_long_run_averages_over_the_decay_and_a_short_one_over_a_tenth():
    late = [0.0] * 90 + [1.0] * 10
    assert 0.5 < spanned(late, 0.999) < 0.8
    assert spanned([0.0] * 19_000 + [1.0] * 1000, 0.999) == pytest.approx(1 - 0.999**1000)


def remembered(monkeypatch) -> list[dict[str, torch.Tensor]]:
    """The network's tensors after each step of a run."""
    after = []
    step = SegmentationModule.optimizer_step

    def noted(self, *arguments, **options):
        step(self, *arguments, **options)
        after.append({k: v.clone() for k, v in self.network.state_dict().items()})

    monkeypatch.setattr(SegmentationModule, "optimizer_step", noted)
    return after


def test_a_run_scores_and_saves_the_average(tmp_path, monkeypatch):
    after = remembered(monkeypatch)
    out = tmp_path / "run"
    more = ("--optimizer.ema", "0.1", "--trainer.accumulate_grad_batches", "2")
    training.main(tiny_arguments(out, *more, steps=3))
    saved = load_file(out / "final" / "model.safetensors")
    statistics = next(name for name in saved if name.endswith("running_var"))
    for name in ("unet.head.weight", statistics):
        first, second, third = (tensors[name].double() for tensors in after)
        expected = 0.9 * third + 0.1 * (10 / 11 * second + 1 / 11 * first)
        torch.testing.assert_close(saved[name].double(), expected, rtol=1e-5, atol=1e-6)
    best = load_file(out / "best" / "model.safetensors")
    state = read_state(out / "last.ckpt")["state_dict"]
    for name, tensor in saved.items():
        assert torch.equal(state[f"average.{name}"], tensor), name
        assert torch.equal(state[f"network.{name}"], after[-1][name]), name
        assert torch.equal(best[name], tensor), name


def test_without_an_average_the_weights_themselves_are_saved(tmp_path):
    out = tmp_path / "run"
    training.main(tiny_arguments(out, "--optimizer.ema", "0", steps=3))
    state = read_state(out / "last.ckpt")["state_dict"]
    saved = load_file(out / "final" / "model.safetensors")
    assert all(name.startswith("network.") for name in state)
    for name, tensor in saved.items():
        assert torch.equal(state[f"network.{name}"], tensor), name


def test_a_run_from_before_there_was_an_average_is_resumed_without(tmp_path, monkeypatch):
    out = tmp_path / "run"
    training.main(tiny_arguments(out, "--optimizer.ema", "0", steps=3))
    state = torch.load(out / "last.ckpt", weights_only=True)
    del state["run"]["optimizer.ema"]
    torch.save(state, out / "last.ckpt")
    with pytest.raises(ConfigError, match=r"^optimizer.ema: the run to resume has 0.0, got 0.999$"):
        training.main(tiny_arguments(out, "--ckpt_path", "last", steps=3))
    resumed = ("--ckpt_path", "last", "--optimizer.ema", "0")
    assert training.main(tiny_arguments(out, *resumed, steps=3)) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--optimizer.ema", "1"], r"expected a number from 0 below 1, got 1.0$"),
        (["--optimizer.ema", "-0.5"], r"expected a number from 0, got -0.5$"),
        (["--trainer.precision", "bf16-true"], r"weights of 16 bits .* expected 0 for trainer.pr"),
        (
            ["--trainer.strategy", "fsdp", "--optimizer.name", "adamw"],
            r"an average needs whole weights; expected 0 for trainer.strategy 'fsdp'$",
        ),
    ],
)
def test_wrong_decay_is_one_line(arguments, says):
    with pytest.raises(ConfigError, match=rf"^optimizer.ema: {says}"):
        parse(arguments)
