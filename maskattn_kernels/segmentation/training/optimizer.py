# SPDX-License-Identifier: BSD-3-Clause
"""The optimizer of a run: which weights of a network learn by which rule and at which rate."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from maskattn_kernels.nn import MaskHead
from maskattn_kernels.segmentation.training.muon import Muon, hidden_convolutions

__all__ = ["OptimizerOptions", "make_optimizer"]


@dataclass
class OptimizerOptions:
    """Muon or AdamW, with a warm-up and then half a cosine down to zero.

    Attributes:
        name: "muon" = orthogonal steps for the hidden convolutions and AdamW for the rest, see
            `Muon`; "adamw" = AdamW for all.
        lr: AdamW's highest learning rate.
        muon_lr: Muon's; a quarter of it is the default where a network is fine-tuned.
        mask_rate: how many times ``lr`` the learning rate of the mask heads is. The features that
            they read change with Muon's steps; at 1 their scores hardly leave the initial values.
        weight_decay: of matrices and convolutions; norms, biases and mask heads have none.
        warmup: fraction of the run in which the rates rise from zero.
        encoder_rate: how many times ``lr`` the learning rate of a pretrained encoder is; it is
            trained by AdamW.
        ema: decay of the moving average of the weights (`update_average`), which is validated and
            saved as `best` and `final`; 0 = the weights themselves are.
    """

    name: Literal["muon", "adamw"] = "muon"
    lr: float = 1e-3
    muon_lr: float = 0.02
    mask_rate: float = 10.0
    weight_decay: float = 0.01
    warmup: float = 0.05
    encoder_rate: float = 0.1
    ema: float = 0.999


def make_optimizer(
    network: nn.Module,
    options: OptimizerOptions,
    steps: int,
    trained: Sequence[nn.Module] = (),
) -> tuple[Muon, LambdaLR]:
    """The optimizer of a network, and the schedule of its rates.

    Args:
        network: whose weights that require gradients learn.
        options: as given.
        steps: of the whole run.
        trained: parts of the network that start from trained weights.

    Example:
        >>> from torch import nn
        >>> from maskattn_kernels.segmentation.training.optimizer import (
        ...     OptimizerOptions,
        ...     make_optimizer,
        ... )
        >>> layers = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1))
        >>> optimizer, _ = make_optimizer(layers, OptimizerOptions(warmup=0.0), 9, [layers[0]])
        >>> [(len(group["params"]), group["lr"]) for group in optimizer.param_groups]
        [(1, 0.02), (1, 0.0001), (1, 0.0001), (1, 0.001)]
    """
    optimizer = Muon(
        _groups(network, options, trained), lr=options.lr, weight_decay=options.weight_decay
    )
    warmup = max(1, round(options.warmup * steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return optimizer, LambdaLR(optimizer, factor)


def _groups(
    network: nn.Module, options: OptimizerOptions, trained: Sequence[nn.Module]
) -> list[dict[str, Any]]:
    heads = _parameters(m for m in network.modules() if isinstance(m, MaskHead))
    # Muon's steps have the size of the weights, not of their gradients: they would soon undo what
    # the weights have learned.
    encoder = _parameters(trained)
    taken = {id(p) for p in (*heads, *encoder)}
    hidden = hidden_convolutions(network) if options.name == "muon" else []
    hidden = [p for p in hidden if id(p) not in taken]
    taken |= {id(p) for p in hidden}
    rest = [p for p in network.parameters() if id(p) not in taken]
    encoder_lr = options.encoder_rate * options.lr
    groups: list[dict[str, Any]] = [
        {"params": hidden, "orthogonal": True, "lr": options.muon_lr},
        {"params": heads, "lr": options.mask_rate * options.lr, "weight_decay": 0.0},
        *_with_and_without_decay(encoder, {"lr": encoder_lr}),
        *_with_and_without_decay(rest, {}),
    ]
    for group in groups:
        group["params"] = [p for p in group["params"] if p.requires_grad]
    return [group for group in groups if group["params"]]


def _with_and_without_decay(
    parameters: Sequence[nn.Parameter], rates: dict[str, float]
) -> list[dict[str, Any]]:
    return [
        {"params": [p for p in parameters if p.ndim > 1], **rates},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0, **rates},
    ]


def _parameters(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    return [p for module in modules for p in module.parameters()]
