# SPDX-License-Identifier: BSD-3-Clause
"""`MaskAttnUNet`: a U-Net with mask attention at every scale of encoder and decoder.

Written from the description of MaskAttn-UNet (Cheng et al., arXiv 2503.10686v2). For width w and
depth 3, channels and, for a 128 x 128 image, sizes; attention after every down and every up:

    stem  w 128^2 -----------------------------------------> up3  w 128^2 -> head: classes
      down1  2w 64^2 ----------------------------------> up2  w 64^2
        down2  4w 32^2 ----------------------------> up1  2w 32^2
          down3  4w 16^2 -> bottleneck 4w-8w-8w-4w ---^
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskattn_kernels.common.text import quoted
from maskattn_kernels.models.blocks import ConvBlock, Down, Up
from maskattn_kernels.nn import (
    AttentionCore,
    ExploringSelector,
    MaskAttention2d,
    Selection,
    make_selector,
)
from maskattn_kernels.nn.checks import positive_int
from maskattn_kernels.token_index import TokenIndex

__all__ = ["PRESETS", "MaskAttnUNet"]

PRESETS: dict[str, dict[str, int]] = {
    "paper": {"width": 24, "depth": 5, "bottleneck": 656, "num_heads": 3},
    "published": {"width": 64},
    "edge": {"width": 16},
}
"""Constructor arguments by name; see `MaskAttnUNet.from_preset`."""

Mask = Tensor | TokenIndex
Masks = Tensor | Mapping[str, Mask] | Sequence[Mask]


def _at(selector: str, has_guess: bool) -> str:
    """The name of the selector of a scale, with or without a first guess at the classes."""
    return "random" if selector == "entropy" and not has_guess else selector


class MaskAttnUNet(nn.Module):
    """Per-pixel classification with attention over selected pixels only.

    Args:
        in_channels: of the image.
        classes: of the logits.
        width: channels at full resolution; each level has twice the one above, the last one as many
            as the one above it.
        depth: how often the size is halved; there are ``2 * depth`` attention modules.
        bottleneck: channels inside the bottleneck; None = twice those of the deepest level.
        num_heads: of every attention module.
        selector: what selects pixels where no mask is given: "random", "topk", "gumbel-topk",
            "local", "threshold" or "gumbel" (all but the first learn, see `maskattn_kernels.nn`),
            "entropy", which needs ``guess`` of `features` and is "random" on the way down, where
            nothing is guessed yet, or "none" for all pixels.
        keep: fraction of pixels selected, as the selector takes it.
        min_keep: learned selectors keep at least so many pixels.
        seed: of random masks; each scale draws its own.
        sparsity: "qk", "q+k" or "k", see `MaskAttention2d`.
        core: "sparse", or "dense" and others for comparison, see `MaskAttention2d`; the
            ``state_dict`` is the same with any.
        backend: as in `masked_attention`.

    Raises:
        TypeError, ValueError: one line naming the argument, what came, and what was expected.

    Shapes:
        image (B,in_channels,H,W), any H and W from 1, floating point; logits (B,classes,H,W).
        Computes in channels_last whatever the memory format of the image, as attention's tokens lie
        best so.

    Example:
        >>> import torch
        >>> from maskattn_kernels.models import MaskAttnUNet
        >>> network = MaskAttnUNet(classes=5, width=8, depth=2).eval()
        >>> network(torch.randn(1, 3, 30, 41)).shape
        torch.Size([1, 5, 30, 41])
        >>> logits, masks = network(torch.randn(1, 3, 32, 32), return_masks=True)
        >>> {name: tuple(mask.shape) for name, mask in masks.items()}
        {'down1': (1, 16, 16), 'down2': (1, 8, 8), 'up1': (1, 16, 16), 'up2': (1, 32, 32)}
    """

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 19,
        *,
        width: int = 64,
        depth: int = 3,
        bottleneck: int | None = None,
        num_heads: int = 1,
        selector: str = "random",
        keep: float = 0.25,
        min_keep: int = 1,
        seed: int = 0,
        sparsity: str = "qk",
        core: str | AttentionCore = "sparse",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        in_channels = positive_int("in_channels", in_channels)
        classes = positive_int("classes", classes)
        width, depth = positive_int("width", width), positive_int("depth", depth)
        if bottleneck is not None:
            bottleneck = positive_int("bottleneck", bottleneck)
        self.in_channels = in_channels

        def attention(channels: int, place: int) -> MaskAttention2d:
            return MaskAttention2d(
                channels,
                num_heads,
                selector=make_selector(
                    _at(selector, has_guess=place >= depth),
                    keep,
                    seed=(seed + place) % 2**32,
                    min_keep=min_keep,
                ),
                joins_previous=place > 0,
                sparsity=sparsity,
                core=core,
                backend=backend,
            )

        # Channels of each level, full resolution first: w, 2w, 4w, .., the last as the one before.
        levels = [width * 2 ** min(i, max(depth - 1, 1)) for i in range(depth + 1)]
        self.stem = ConvBlock(in_channels, width)
        self.downs = nn.ModuleList(Down(levels[i], levels[i + 1]) for i in range(depth))
        self.down_attention = nn.ModuleList(attention(levels[i + 1], i) for i in range(depth))
        deepest = levels[-1]
        inside = 2 * deepest if bottleneck is None else bottleneck
        self.bottleneck = nn.Sequential(
            ConvBlock(deepest, inside), ConvBlock(inside, inside), ConvBlock(inside, deepest)
        )
        self.ups = nn.ModuleList()
        self.up_attention = nn.ModuleList()
        self.decoder_channels = [deepest]
        below = deepest
        for place, i in enumerate(reversed(range(depth)), start=depth):
            above = levels[max(i - 1, 0)]
            self.ups.append(Up(below, levels[i], above))
            self.up_attention.append(attention(above, place))
            self.decoder_channels.append(above)
            below = above
        self.head = nn.Conv2d(below, classes, 1)
        # Weights in the memory format of the feature maps: convolutions then copy none of them.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def from_preset(cls, name: str, **arguments: Any) -> "MaskAttnUNet":
        """A network of a named size; further arguments as in the constructor, and they win.

        | name | parameters | GFLOPs | what |
        |---|---|---|---|
        | "paper" | 46.1 M | 11.8 | narrow and deep; the paper's table: 46 M, 11 GFLOPs |
        | "published" | 22.6 M | 52.9 | the shape of the paper's published code |
        | "edge" | 1.4 M | 3.4 | the same shape at a quarter of the width |

        Parameters for 150 classes; GFLOPs for one 128 x 128 image, by torch's counter, attention
        products left out. The paper does not state the shape behind its table; "paper" is one of
        that size. The published code counts 24.9 M parameters: 2.1 M more for a LayerNorm over
        every channel and pixel of a 128 x 128 input, where ours is over channels, and 0.2 M in
        layers that it never calls.

        Raises:
            ValueError: there is no preset of that name.

        Example:
            >>> from maskattn_kernels.models import MaskAttnUNet
            >>> edge = MaskAttnUNet.from_preset("edge", classes=150)
            >>> sum(p.numel() for p in edge.parameters())
            1417606
        """
        if name not in PRESETS:
            raise ValueError(f"name: expected one of {quoted(PRESETS)}, got {name!r}")
        return cls(**{**PRESETS[name], **arguments})

    @property
    def scales(self) -> tuple[str, ...]:
        """Names of the attention modules, in the order in which they run.

        Example:
            >>> from maskattn_kernels.models import MaskAttnUNet
            >>> MaskAttnUNet(width=8, depth=2).scales
            ('down1', 'down2', 'up1', 'up2')
        """
        depth = len(self.downs)
        return tuple(f"{way}{i + 1}" for way in ("down", "up") for i in range(depth))

    def forward(
        self, image: Tensor, masks: Masks | None = None, *, return_masks: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Mask | None]]:
        """Logits of each pixel.

        Args:
            image: (B,in_channels,H,W).
            masks: which pixels take part in attention, bool, True = selected:

                - None: the selectors draw;
                - a Tensor (B,H,W) or (B,1,H,W): max-pooled to each scale, so a place is selected
                  where any of its pixels is;
                - a mapping from names in `scales` to masks as `MaskAttention2d` takes them; the
                  selectors draw for names that are missing;
                - a sequence of such masks, one for each of `scales`.
            return_masks: return the masks as well.

        Returns:
            logits (B,classes,H,W); with ``return_masks`` also a dict from names in `scales` to the
            mask used there, that of the keys with ``sparsity="q+k"``.
        """
        maps, selections = self.features(image, masks)
        logits = self.head(maps[-1])
        if not return_masks:
            return logits
        return logits, {name: None if s is None else s.mask for name, s in selections.items()}

    def features(
        self,
        image: Tensor,
        masks: Masks | None = None,
        guess: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[list[Tensor], dict[str, Selection | None]]:
        """The decoder's feature maps, and what attention selected on the way.

        Args:
            image, masks: as in `forward`.
            guess: called with each of the maps but the last, in order; returns logits (B,K,h,w) of
                a guess at the classes, by which the next scale's selector may choose.

        Returns:
            ``depth + 1`` maps from that of the bottleneck to the one of full size, which the head
            classifies, (B,C,h,w) with C as in ``decoder_channels``; and the `Selection` of each
            scale, None where all pixels took part.

        Example:
            >>> import torch
            >>> from maskattn_kernels.models import MaskAttnUNet
            >>> network = MaskAttnUNet(width=8, depth=1, selector="topk", keep=0.5)
            >>> maps, selections = network.features(torch.randn(1, 3, 8, 8))
            >>> [tuple(map.shape) for map in maps]
            [(1, 16, 4, 4), (1, 8, 8, 8)]
            >>> {name: selection.keep_ratio.item() for name, selection in selections.items()}
            {'down1': 0.5, 'up1': 0.5}
        """
        self._check(image)
        x = image.contiguous(memory_format=torch.channels_last)
        given = self._masks_by_name(masks, image)
        selections: dict[str, Selection | None] = {}
        previous: Selection | None = None
        guessed: Tensor | None = None

        def attend(attention: Any, name: str, x: Tensor) -> Tensor:
            nonlocal previous
            mask = given.get(name)
            previous = attention.select(x, previous, guessed) if mask is None else Selection(mask)  # type: ignore[arg-type]
            selections[name] = previous
            return attention(x, previous)

        names = iter(self.scales)
        x = self.stem(x)
        skips = []
        for down, attention in zip(self.downs, self.down_attention, strict=True):
            skips.append(x)
            x = attend(attention, next(names), down(x))
        maps = [self.bottleneck(x)]
        for up, attention in zip(self.ups, self.up_attention, strict=True):
            guessed = None if guess is None else guess(maps[-1])
            maps.append(attend(attention, next(names), up(maps[-1], skips.pop())))
        return maps, selections

    def output_layers(self) -> tuple[nn.Module, ...]:
        """The layers that `prepare_for_inference` keeps in float32: their results are compared."""
        return (self.head,)

    def anneal(self, progress: float) -> None:
        """Tells Gumbel selectors the ``progress`` of training, from 0 to 1; others ignore it."""
        for module in self.modules():
            if isinstance(module, ExploringSelector):
                module.anneal(progress)

    def _masks_by_name(self, masks: Masks | None, image: Tensor) -> Mapping[str, Mask]:
        if masks is None:
            return {}
        if isinstance(masks, Tensor):
            return self._pyramid(masks, image)
        if isinstance(masks, Mapping):
            for name in masks:
                if name not in self.scales:
                    raise ValueError(f"masks: expected names among {self.scales}, got {name!r}")
            return masks
        if isinstance(masks, Sequence):
            if len(masks) != len(self.scales):
                raise ValueError(f"masks: expected {len(self.scales)} masks, got {len(masks)}")
            return dict(zip(self.scales, masks, strict=True))
        raise TypeError(
            "masks: expected a bool Tensor, a mapping or a sequence of them, "
            f"got {type(masks).__name__}"
        )

    def _pyramid(self, mask: Tensor, image: Tensor) -> dict[str, Mask]:
        """A full-resolution mask, pooled as `Down` pools, for every scale."""
        if mask.dtype != torch.bool:
            raise TypeError(f"masks: expected dtype torch.bool (True = selected), got {mask.dtype}")
        batch, _, height, width = image.shape
        fits = tuple(mask.shape[1:]) in ((height, width), (1, height, width))
        if not fits or mask.shape[0] not in (1, batch):
            raise ValueError(
                f"masks: expected shape ({batch}, {height}, {width}), got {tuple(mask.shape)}"
            )
        levels = [mask.view(-1, 1, height, width)]
        for _ in self.downs:
            pooled = F.max_pool2d(levels[-1].float(), 2, ceil_mode=True)
            levels.append(pooled > 0)
        on_the_way = levels[1:] + levels[-2::-1]
        return {name: level[:, 0] for name, level in zip(self.scales, on_the_way, strict=True)}

    def _check(self, image: Tensor) -> None:
        if not isinstance(image, Tensor):
            raise TypeError(f"image: expected a Tensor, got {type(image).__name__}")
        if not image.is_floating_point():
            raise TypeError(f"image: expected a floating point dtype, got {image.dtype}")
        shape = tuple(image.shape)
        if len(shape) != 4 or shape[1] != self.in_channels or 0 in shape[2:]:
            raise ValueError(
                f"image: expected shape (B, {self.in_channels}, H, W), H and W from 1, got {shape}"
            )
