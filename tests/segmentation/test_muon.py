# SPDX-License-Identifier: BSD-3-Clause
"""Muon: its steps are orthogonal, the rest is torch's AdamW, and saved states are resumed."""

import copy

import pytest
import torch
from torch import nn

from maskattn_kernels.segmentation.model.network import SegmentationNetwork
from maskattn_kernels.segmentation.training.muon import Muon, hidden_convolutions, orthogonalized
from maskattn_kernels.segmentation.training.options import ConfigError, parse


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4))


def optimizer_of(layers: nn.Module) -> Muon:
    hidden = hidden_convolutions(layers)
    rest = [p for p in layers.parameters() if all(p is not weight for weight in hidden)]
    groups = [{"params": hidden, "orthogonal": True, "lr": 0.1}, {"params": rest}]
    return Muon(groups, lr=0.05, weight_decay=0.2)


def train(layers: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        layers(torch.randn(2, 3, 8, 8)).sin().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("shape", [(8, 8), (5, 40), (40, 5), (1, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_singular_values_come_near_one(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=dtype) * 1e3
    found = orthogonalized(matrix)
    values = torch.linalg.svdvals(found)
    assert found.dtype == dtype
    assert values.min() > 0.6 and values.max() < 1.25
    # Same directions: U^T found V is diagonal, and positive.
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.T @ found @ vt.T
    torch.testing.assert_close(inner, inner.diagonal().diag(), atol=1e-4, rtol=0)
    assert (inner.diagonal() > 0).all()


def test_a_step_does_not_depend_on_the_size_of_the_gradient() -> None:
    small, large = network(), network()
    for layers, scale in ((small, 1.0), (large, 1e4)):
        optimizer = optimizer_of(layers)
        (layers(torch.ones(1, 3, 8, 8)).sin().sum() * scale).backward()
        optimizer.step()
    torch.testing.assert_close(small[1].weight, large[1].weight, atol=1e-3, rtol=1e-3)


def test_no_gradient_no_step() -> None:
    layers = network()
    before = copy.deepcopy(layers.state_dict())
    optimizer_of(layers).step()
    for name, value in layers.state_dict().items():
        assert torch.equal(value, before[name])
    assert not orthogonalized(torch.zeros(3, 4)).any()


def test_other_groups_are_adamw() -> None:
    ours, torchs = network(), network()
    train(ours, Muon([{"params": list(ours.parameters())}], lr=0.05, weight_decay=0.2), 5)
    train(torchs, torch.optim.AdamW(torchs.parameters(), lr=0.05, weight_decay=0.2), 5)
    for a, b in zip(ours.parameters(), torchs.parameters(), strict=True):
        assert torch.equal(a, b)


def test_goes_on_from_a_saved_state_with_the_same_result() -> None:
    whole, stopped = network(), network()
    train(whole, optimizer_of(whole), 6)
    first = optimizer_of(stopped)
    train(stopped, first, 3)
    state = copy.deepcopy(first.state_dict())
    second = optimizer_of(stopped)
    second.load_state_dict(state)
    train(stopped, second, 3, first=3)
    for a, b in zip(whole.parameters(), stopped.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_closure_is_called_and_its_loss_returned() -> None:
    layers = network()

    def closure() -> torch.Tensor:
        loss = layers(torch.ones(1, 3, 8, 8)).sin().sum()
        loss.backward()
        return loss

    assert optimizer_of(layers).step(closure).requires_grad


def test_hidden_convolutions_of_the_network() -> None:
    layers = SegmentationNetwork(5, things=[1], width=8, depth=2)
    names = {id(p): name for name, p in layers.named_parameters()}
    found = {names[id(weight)] for weight in hidden_convolutions(layers)}
    assert "unet.stem.conv2.weight" in found and "objects.0.weight" in found
    assert "unet.stem.conv1.weight" not in found
    outputs = {"unet.head.weight", "objects.3.weight", "coarse_heads.0.weight"}
    assert outputs <= set(names.values()) and not outputs & found


def test_1x1_and_depthwise_convolutions_are_hidden() -> None:
    """They are most of FRMNet's weights; 19 classes are as many as channels elsewhere."""
    layers = SegmentationNetwork(19, task="semantic", arch="frm", preset="tiny")
    found = {id(weight) for weight in hidden_convolutions(layers)}
    kinds = {
        name: (module.kernel_size, module.groups, id(module.weight) in found)
        for name, module in layers.named_modules()
        if isinstance(module, nn.Conv2d) and "mask_head" not in name and "query_head" not in name
    }
    outputs = {id(layer) for m in (layers, layers.body) for layer in m.output_layers()}
    assert any(groups > 1 for _, groups, _ in kinds.values())
    assert any(kernel == (1, 1) for kernel, _, hidden in kinds.values() if hidden)
    left_out = {name for name, (*_, hidden) in kinds.items() if not hidden}
    assert left_out == {"frm.encoder.stem.0"} | {
        name for name, module in layers.named_modules() if id(module) in outputs
    }


def test_not_with_sharded_weights() -> None:
    with pytest.raises(ConfigError, match=r"^optimizer.name: muon needs whole weights; .*'fsdp'$"):
        parse(["--trainer.strategy", "fsdp"])
    parse(["--trainer.strategy", "fsdp", "--optimizer.name", "adamw", "--optimizer.ema", "0"])
