# SPDX-License-Identifier: BSD-3-Clause
"""`Muon`: orthogonal steps for the hidden convolutions, AdamW for everything else."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Muon", "hidden_convolutions"]


def hidden_convolutions(network: nn.Module) -> list[nn.Parameter]:
    """The weights of ``network`` for Muon: convolutions between the image and the outputs.

    Not those of the layers that ``output_layers()`` of a module returns. The filters of a depthwise
    convolution are the rows of one matrix.

    Example:
        >>> from torch import nn
        >>> from maskattn_kernels.segmentation.training.muon import hidden_convolutions
        >>> layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1))
        >>> layers.output_layers = lambda: (layers[-1],)
        >>> [tuple(weight.shape) for weight in hidden_convolutions(layers)]
        [(8, 8, 3, 3)]
    """
    outputs = {
        id(weight)
        for module in network.modules()
        for layer in getattr(module, "output_layers", tuple)()
        for weight in layer.parameters()
    }
    image_channels = 3
    return [
        p
        for p in network.parameters()
        if p.ndim == 4 and p.shape[1] != image_channels and id(p) not in outputs
    ]


class Muon(torch.optim.AdamW):
    """AdamW whose groups with ``orthogonal=True`` take Muon's steps.

    There a weight (O,I,h,w) is a matrix of O rows, and its step the nearest orthogonal matrix to
    its momentum: all directions of the gradient count alike, the rare ones with the frequent ones.
    For convolutions that tell small objects apart this saves most of the steps that AdamW needs.

    Args:
        params: groups; ``lr``, ``weight_decay`` and ``orthogonal`` (default False) of each.
        momentum: of the orthogonal groups (Nesterov's).
        lr, weight_decay: of groups without their own. For orthogonal groups ``lr`` is a share of
            the weights' own scale, about 0.02.

    A step leaves the gradients of orthogonal groups None. It needs whole matrices: not for
    strategies that shard weights.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; the
    coefficients of the Newton-Schulz iteration are theirs.

    Example:
        >>> import torch
        >>> from maskattn_kernels.segmentation.training.muon import Muon
        >>> weight = torch.nn.Parameter(torch.zeros(2, 2, 1, 1))
        >>> optimizer = Muon([{"params": [weight], "orthogonal": True, "lr": 1.0}], momentum=0.0)
        >>> weight.grad = torch.tensor([[100.0, 0.0], [0.0, 1.0]]).view(2, 2, 1, 1)
        >>> optimizer.step()
        >>> weight.detach().view(2, 2).diagonal().round()
        tensor([-1., -1.])
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
    ) -> None:
        groups = [{"orthogonal": False, **group} for group in params]
        super().__init__(groups, lr=lr, weight_decay=weight_decay)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["orthogonal"]:
                for weight in group["params"]:
                    if weight.grad is not None:
                        self._orthogonal_step(weight, weight.grad, group)
                        weight.grad = None  # so that AdamW passes it over
        super().step()
        return loss

    def _orthogonal_step(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = torch.tensor(0.0)  # torch expects one when it loads a state
            state["momentum"] = torch.zeros_like(weight)
        state["step"] += 1
        state["momentum"].lerp_(gradient, 1 - self.momentum)
        ahead = gradient.lerp(state["momentum"], self.momentum).flatten(1)
        rows, columns = ahead.shape
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        size = group["lr"] * max(1.0, rows / columns) ** 0.5
        weight.sub_(orthogonalized(ahead).view(weight.shape), alpha=size)


def orthogonalized(matrix: Tensor) -> Tensor:
    """Nearly U V^T of the singular value decomposition U S V^T: singular values near 1.

    Five Newton-Schulz iterations, products only, in the dtype of the matrix: values end between
    0.7 and 1.2 if they began above a thousandth of the matrix's norm.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / (wide.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        cubic = torch.addmm(square, square, square, beta=-4.7750, alpha=2.0315)
        x = torch.addmm(x, cubic, x, beta=3.4445)
    return x if wide is matrix else x.T
