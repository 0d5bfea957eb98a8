# SPDX-License-Identifier: BSD-3-Clause
"""The parts of `FRMNet`: maps brought to one grid, related there, and given back to their stages.

Convolutions have no bias where a BatchNorm follows.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskattn_kernels.common.text import quoted
from maskattn_kernels.models.depthwise import DepthwiseConv2d
from maskattn_kernels.models.given_masks import Mask
from maskattn_kernels.nn import AttentionCore, DisentangledAttention2d, Selection, Selector

__all__ = ["RELATIONS", "Fusion", "Injection", "RefineBlock", "at_stride", "conv_norm"]

RELATIONS: dict[str, tuple[str | None, str | None]] = {
    "disentangled": ("whitened", "keys"),
    "disentangled-all": ("whitened", "all"),
    "pairwise": ("whitened", None),
    "unary": (None, "keys"),
    "plain": ("plain", None),
}
"""The terms ``pairwise`` and ``unary`` of `DisentangledAttention2d` by name; "plain" is attention
as everywhere."""


def conv_norm(in_channels: int, out_channels: int, *, gelu: bool = False) -> list[nn.Module]:
    """A 1x1 convolution and BatchNorm; and a GELU.

    Args:
        in_channels, out_channels: of the convolution.
        gelu: whether a GELU follows.
    """
    convolution = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels), *([nn.GELU()] if gelu else [])]


def depthwise_norm(channels: int, kernel: int, *, gelu: bool = False) -> list[nn.Module]:
    """A depthwise convolution and BatchNorm, which keep the size; and a GELU.

    Args:
        channels: of the convolution.
        kernel: its side, odd.
        gelu: whether a GELU follows.
    """
    convolution = DepthwiseConv2d(channels, kernel)
    return [convolution, nn.BatchNorm2d(channels), *([nn.GELU()] if gelu else [])]


def at_stride(x: Tensor, stride: int, target: int, size: torch.Size) -> Tensor:
    """A map of one stride at another: averaged, or brought there by bilinear interpolation.

    Args:
        x: (B,C,h,w).
        stride: of ``x``.
        target: of the result.
        size: of the result; it counts where a rounding of sizes makes a difference.
    """
    if target > stride:
        # Its gradient is the same in every run on a GPU, that of adaptive pooling is not.
        x = F.avg_pool2d(x, target // stride, ceil_mode=True, count_include_pad=False)
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class Fusion(nn.Module):
    """Maps of several strides side by side on one grid, then a 1x1 convolution to ``dim`` channels.

    Args:
        channels: of the maps.
        strides: of the maps; the grid's is a multiple or a divisor of each.
        grid: stride of the grid.
        dim: channels of the result.

    Shapes:
        maps (B,C,h,w); the result (B,dim,H,W).

    Example:
        >>> import torch
        >>> from maskattn_kernels.models.frm_blocks import Fusion
        >>> maps = [torch.randn(1, 8, 16, 16), torch.randn(1, 16, 4, 4)]
        >>> Fusion([8, 16], [4, 16], grid=8, dim=24)(maps, torch.Size([8, 8])).shape
        torch.Size([1, 24, 8, 8])
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], grid: int, dim: int
    ) -> None:
        super().__init__()
        if any(grid % stride and stride % grid for stride in strides):
            raise ValueError(
                "grid: expected a multiple or a divisor of each of the encoder's strides "
                f"{tuple(strides)}, got {grid}"
            )
        self.strides, self.grid = tuple(strides), grid
        self.project = nn.Sequential(*conv_norm(sum(channels), dim))

    def forward(self, maps: Sequence[Tensor], size: torch.Size) -> Tensor:
        """The map of the grid.

        Args:
            maps: (B,C,h,w), as many as strides.
            size: (H,W) of the grid.
        """
        together = [
            at_stride(map, stride, self.grid, size)
            for map, stride in zip(maps, self.strides, strict=True)
        ]
        return self.project(torch.cat(together, 1))


class RefineBlock(nn.Module):
    """A transformer block on a grid: attention among selected places, then convolutions.

        x = x + attention(LayerNorm(x));  x = x + convolutions(x)

    The convolutions are 1x1 to twice the channels, 3x3 depthwise, 1x1 back, with BatchNorm; the 3x3
    tells places apart, as nothing else here does.

    Args:
        channels, num_heads, selector, joins_previous, sparsity, unselected, core, backend: of
            `DisentangledAttention2d`.
        relation: which terms it has, a name in `RELATIONS`.

    Shapes:
        x (B,C,H,W); the result the same.

    Example:
        >>> import torch
        >>> from maskattn_kernels.models.frm_blocks import RefineBlock
        >>> from maskattn_kernels.nn import TopKSelector
        >>> block = RefineBlock(32, num_heads=2, selector=TopKSelector(0.25))
        >>> x, selection = block(torch.randn(1, 32, 8, 8))
        >>> x.shape, selection.keep_ratio.item(), selection.queries.keep_ratio.item()
        (torch.Size([1, 32, 8, 8]), 0.25, 0.25)
    """

    def __init__(
        self,
        channels: int,
        num_heads: int = 4,
        *,
        selector: Selector | None = None,
        joins_previous: bool = False,
        sparsity: str = "q+k",
        unselected: str = "zero",
        relation: str = "disentangled",
        core: str | AttentionCore = "sparse",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        if relation not in RELATIONS:
            raise ValueError(f"relation: expected one of {quoted(RELATIONS)}, got {relation!r}")
        pairwise, unary = RELATIONS[relation]
        self.norm = nn.LayerNorm(channels)
        self.attention = DisentangledAttention2d(
            channels,
            num_heads,
            selector=selector,
            joins_previous=joins_previous,
            sparsity=sparsity,
            unselected=unselected,
            pairwise=pairwise,
            unary=unary,
            core=core,
            backend=backend,
        )
        inside = 2 * channels
        self.convolutions = nn.Sequential(
            *conv_norm(channels, inside, gelu=True),
            *depthwise_norm(inside, 3, gelu=True),
            *conv_norm(inside, channels),
        )

    def forward(
        self,
        x: Tensor,
        given: Mask | None = None,
        previous: Selection | None = None,
        guess: Tensor | None = None,
    ) -> tuple[Tensor, Selection | None]:
        """The refined map, and what took part in attention; None = all places.

        Args:
            x: (B,C,H,W).
            given: mask; None = the selector draws it.
            previous, guess: as in `MaskAttention2d.select`.
        """
        normed = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if given is None:
            selection = self.attention.select(normed, previous, guess)
        else:
            selection = Selection(given)  # type: ignore[arg-type]
        x = x + self.attention(normed, selection)
        return x + self.convolutions(x), selection


class Injection(nn.Module):
    """What the grid found, given back to a map of a stage.

        local * sigmoid(gate) + context        gate and context: 1x1 convolutions of the grid

    Both are computed on the grid, which has fewer places than most stages, and then brought to the
    size of the stage.

    Args:
        dim: channels of the grid.
        channels: of the stage.
        grid, stride: pixels of the image in a place of each.
        gated: without, the context is only added.

    Example:
        >>> import torch
        >>> from maskattn_kernels.models.frm_blocks import Injection
        >>> give_back = Injection(24, 16, grid=16, stride=8)
        >>> give_back(torch.randn(1, 16, 9, 12), torch.randn(1, 24, 5, 6)).shape
        torch.Size([1, 16, 9, 12])
    """

    def __init__(self, dim: int, channels: int, grid: int, stride: int, gated: bool = True) -> None:
        super().__init__()
        self.grid, self.stride = grid, stride
        self.context = nn.Sequential(*conv_norm(dim, channels))
        self.gate = nn.Conv2d(dim, channels, 1) if gated else None

    def forward(self, local: Tensor, refined: Tensor) -> Tensor:
        """The map of the stage with what the grid found.

        Args:
            local: (B,channels,h,w), of the stage.
            refined: (B,dim,H,W), of the grid.
        """
        size = local.shape[-2:]
        context = at_stride(self.context(refined), self.grid, self.stride, size)
        if self.gate is None:
            return local + context
        gate = at_stride(self.gate(refined), self.grid, self.stride, size)
        return local * gate.sigmoid() + context
