# SPDX-License-Identifier: BSD-3-Clause
"""`MaskAttnUNet`: a U-Net with mask attention at every scale of encoder and decoder.

Written from the description of MaskAttn-UNet (Cheng et al., arXiv 2503.10686v2). For width w and
depth 3, channels and, for a 128 x 128 image, sizes; attention after every down and every up:

    stem  w 128^2 -----------------------------------------> up3  w 128^2 -> head: classes
      down1  2w 64^2 ----------------------------------> up2  w 64^2
        down2  4w 32^2 ----------------------------> up1  2w 32^2
          down3  4w 16^2 -> bottleneck 4w-8w-8w-4w ---^

With another encoder its maps take the places of stem and downs. Here EfficientNet-Lite0, width w,
``finest=4`` and ``attend_from=8``; a lateral is a 1x1 convolution to the channels of its level:

    encoder 24 32^2 ---------------------------------------> up3  w 32^2 -> head, bilinear to 128^2
      encoder 40 16^2 -> lateral -> down3 1.5w 16^2 ---> up2  1.5w 16^2
        encoder 112 8^2 -> lateral -> down4 2w 8^2 ---> up1  2w 8^2
          encoder 320 4^2 -> lateral -> down5 3w 4^2 ----^
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskattn_kernels.common.text import quoted
from maskattn_kernels.models.blocks import ConvBlock, Down, SlimUp, Up
from maskattn_kernels.models.encoders import as_encoder, encoded
from maskattn_kernels.models.given_masks import GivenMasks, Mask, Masks
from maskattn_kernels.models.selector_dial import Keep, SelectorDial, check_keep
from maskattn_kernels.nn import (
    AttentionCore,
    MaskAttention2d,
    Selection,
)
from maskattn_kernels.nn.checks import positive_int

__all__ = ["PRESETS", "MaskAttnUNet"]

PRESETS: dict[str, dict[str, int]] = {
    "paper": {"width": 24, "depth": 5, "bottleneck": 656, "num_heads": 3},
    "published": {"width": 64},
    "edge": {"width": 16},
}
"""Constructor arguments by name; see `MaskAttnUNet.from_preset`."""


class _Level(NamedTuple):
    """A size of the U-Net: its stride, channels of the encoder's map, and of the decoder's."""

    stride: int
    skip: int
    width: int


_MakeAttention = Callable[[str, int, int], nn.Module]  # from name, channels and stride


class MaskAttnUNet(SelectorDial):
    """Per-pixel classification with attention over selected pixels only.

    Args:
        in_channels: of the image.
        classes: of the logits.
        encoder: a module as `EncoderLike` says, or a backbone of timm made with
            ``features_only=True``; None = the U-Net's own.
        width: channels of the decoder's finest level. With the own encoder, which has the same,
            each level has twice the one above, the last one as many as the one above it; with
            another, levels have w, 1.5w, 2w, 3w, 4w, ..
        depth: how often the own encoder halves the size (default 3).
        bottleneck: channels inside the bottleneck of the own encoder; None = twice those of the
            deepest level.
        finest: lowest stride of the maps of another encoder that are used (default 4); the decoder
            ends there, and logits are brought to the size of the image by bilinear interpolation.
        attend_from: lowest stride with attention; None = all with the own encoder, where there are
            ``2 * depth`` attention modules, and 8 with another.
        num_heads: of every attention module.
        selector: what selects pixels where no mask is given: "random", "topk", "gumbel-topk",
            "local", "threshold" or "gumbel" (all but the first learn, see `maskattn_kernels.nn`),
            "entropy", which needs ``guess`` of `features` and is "random" on the way down, where
            nothing is guessed yet, or "none" for all pixels.
        keep: fraction of pixels selected, as the selector takes it; or of some scales by their
            names in `scales`, with 0.25 for the others.
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
        encoder: nn.Module | None = None,
        width: int = 64,
        depth: int | None = None,
        bottleneck: int | None = None,
        finest: int | None = None,
        attend_from: int | None = None,
        num_heads: int = 1,
        selector: str = "random",
        keep: Keep = 0.25,
        min_keep: int = 1,
        seed: int = 0,
        sparsity: str = "qk",
        core: str | AttentionCore = "sparse",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        in_channels = positive_int("in_channels", in_channels)
        classes = positive_int("classes", classes)
        width = positive_int("width", width)
        others = ("depth", "bottleneck") if encoder is not None else ("finest",)
        for name, value in (("depth", depth), ("bottleneck", bottleneck), ("finest", finest)):
            if value is not None and name in others:
                which = "another" if encoder is not None else "the U-Net's own"
                raise ValueError(f"{name}: expected None with {which} encoder, got {value!r}")
        if attend_from is None:
            attend_from = 1 if encoder is None else 8
        attend_from = positive_int("attend_from", attend_from)
        self.in_channels = in_channels
        self._strides: dict[str, int] = {}  # of the scales, in the order in which they run
        self.keep, self.min_keep, self.seed = keep, min_keep, seed

        def attention(name: str, channels: int, stride: int) -> nn.Module:
            if stride < attend_from:
                return nn.Identity()
            self._strides[name] = stride
            return MaskAttention2d(
                channels,
                num_heads,
                selector=self.new_selector(selector, name),
                joins_previous=len(self._strides) > 1,
                sparsity=sparsity,
                core=core,
                backend=backend,
            )

        self.encoder: nn.Module | None = None
        if encoder is None:
            levels = self._build_encoder(
                width, 3 if depth is None else depth, bottleneck, attention
            )
        else:
            finest = 4 if finest is None else finest
            levels = self._build_around(as_encoder(encoder), width, finest, attention)
        if not self._strides:
            raise ValueError(
                f"attend_from: expected a stride of the encoder's maps, at most {levels[-1].stride}"
                f", got {attend_from}"
            )
        self.finest = levels[0].stride
        self.ups = nn.ModuleList()
        self.up_attention = nn.ModuleList()
        self.up_names = [f"up{i}" for i in range(1, len(levels))]
        self.decoder_channels = [levels[-1].width]
        for name, level in zip(self.up_names, reversed(levels[:-1]), strict=True):
            up: Any = Up if encoder is None else SlimUp
            self.ups.append(up(self.decoder_channels[-1], level.skip, level.width))
            self.up_attention.append(attention(name, level.width, level.stride))
            self.decoder_channels.append(level.width)
        self.head = nn.Conv2d(self.decoder_channels[-1], classes, 1)
        check_keep(keep, self.scales)
        # Weights in the memory format of the feature maps: convolutions then copy none of them.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _build_encoder(
        self, width: int, depth: int, bottleneck: int | None, attention: _MakeAttention
    ) -> list[_Level]:
        depth = positive_int("depth", depth)
        # Channels of each level, full resolution first: w, 2w, 4w, .., the last as the one before.
        channels = [width * 2 ** min(i, max(depth - 1, 1)) for i in range(depth + 1)]
        self.stem = ConvBlock(self.in_channels, width)
        self.downs = nn.ModuleList(Down(channels[i], channels[i + 1]) for i in range(depth))
        self.down_names = [f"down{i}" for i in range(1, depth + 1)]
        self.down_attention = nn.ModuleList(
            attention(name, channels[i], 2**i) for i, name in enumerate(self.down_names, start=1)
        )
        deepest = channels[-1]
        inside = 2 * deepest if bottleneck is None else positive_int("bottleneck", bottleneck)
        self.bottleneck = nn.Sequential(
            ConvBlock(deepest, inside), ConvBlock(inside, inside), ConvBlock(inside, deepest)
        )
        levels = [_Level(2**i, channels[i], channels[max(i - 1, 0)]) for i in range(depth)]
        return [*levels, _Level(2**depth, deepest, deepest)]

    def _build_around(
        self, encoder: Any, width: int, finest: int, attention: _MakeAttention
    ) -> list[_Level]:
        finest = positive_int("finest", finest)
        maps = [
            (f"down{place}", stride, channels)
            for place, (stride, channels) in enumerate(
                zip(encoder.strides, encoder.channels, strict=True), start=1
            )
            if stride >= finest
        ]
        if len(maps) < 2:
            raise ValueError(
                f"finest: expected a stride of the encoder, {tuple(encoder.strides)}, but not the "
                f"last one, got {finest}"
            )
        self.encoder = encoder
        self.laterals = nn.ModuleList()
        self.down_names = [name for name, _, _ in maps]
        self.down_attention = nn.ModuleList()
        levels = []
        for i, (name, stride, channels) in enumerate(maps):
            level_width = width * (2, 3)[i % 2] * 2 ** (i // 2) // 2
            attended = attention(name, level_width, stride)
            self.down_attention.append(attended)
            if isinstance(attended, nn.Identity) and channels <= level_width and i < len(maps) - 1:
                self.laterals.append(nn.Identity())
                levels.append(_Level(stride, channels, level_width))
            else:
                convolution = nn.Conv2d(channels, level_width, 1, bias=False)
                self.laterals.append(nn.Sequential(convolution, nn.BatchNorm2d(level_width)))
                levels.append(_Level(stride, level_width, level_width))
        return levels

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
        return tuple(self._strides)

    def forward(
        self, image: Tensor, masks: Masks | None = None, *, return_masks: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Mask | None]]:
        """Logits of each pixel.

        Args:
            image: (B,in_channels,H,W).
            masks: which pixels take part in attention, bool, True = selected:

                - None: the selectors draw;
                - a Tensor (B,H,W) or (B,1,H,W): max-pooled to the size of each scale, so a place
                  is selected where any of its pixels is;
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
        if logits.shape[-2:] != image.shape[-2:]:
            size = image.shape[-2:]
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
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
            maps from the deepest, that of the bottleneck or of the encoder, to the finest, which
            the head classifies, (B,C,h,w) with C as in ``decoder_channels``; and the `Selection` of
            each scale, None where all pixels took part.

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
        given = GivenMasks(masks, self._strides, image)
        selections: dict[str, Selection | None] = {}
        previous: Selection | None = None
        guessed: Tensor | None = None

        def attend(attention: Any, name: str, x: Tensor) -> Tensor:
            nonlocal previous
            if isinstance(attention, nn.Identity):
                return x
            mask = given.at(name, x)
            previous = attention.select(x, previous, guessed) if mask is None else Selection(mask)  # type: ignore[arg-type]
            selections[name] = previous
            return attention(x, previous)

        downs = zip(self.down_attention, self.down_names, strict=True)
        if self.encoder is None:
            skips = [self.stem(x)]
            for down, (attention, name) in zip(self.downs, downs, strict=True):
                skips.append(attend(attention, name, down(skips[-1])))
            maps = [self.bottleneck(skips.pop())]
        else:
            used = encoded(self.encoder, x)[-len(self.laterals) :]
            skips = [
                attend(attention, name, lateral(map))
                for map, lateral, (attention, name) in zip(used, self.laterals, downs, strict=True)
            ]
            maps = [skips.pop()]
        for up, attention, name in zip(self.ups, self.up_attention, self.up_names, strict=True):
            guessed = None if guess is None else guess(maps[-1])
            maps.append(attend(attention, name, up(maps[-1], skips.pop())))
        return maps, selections

    def attentions(self) -> dict[str, MaskAttention2d]:
        """The attention modules by their names in `scales`."""
        modules = (*self.down_attention, *self.up_attention)
        attentions = (m for m in modules if isinstance(m, MaskAttention2d))
        return dict(zip(self.scales, attentions, strict=True))

    def has_guess(self, scale: str) -> bool:
        """Whether coarser maps are classified before this scale: on the way up."""
        return scale.startswith("up")

    def output_layers(self) -> tuple[nn.Module, ...]:
        """The layers that `prepare_for_inference` keeps in float32: their results are compared."""
        return (self.head,)

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
