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

    encoder 24 32^2 -> lateral ----------------------------> up3  w 32^2 -> head, bilinear to 128^2
      encoder 40 16^2 -> lateral -> down3 1.5w 16^2 ---> up2  1.5w 16^2
        encoder 112 8^2 -> lateral -> down4 2w 8^2 ---> up1  2w 8^2
          encoder 320 4^2 -> lateral -> down5 3w 4^2 ----^
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from maskattn_kernels.common.text import quoted
from maskattn_kernels.models.attention_network import AttentionNetwork
from maskattn_kernels.models.blocks import ConvBlock, Down, SlimUp, Up
from maskattn_kernels.models.encoders import ENCODERS, as_encoder, encoded
from maskattn_kernels.models.given_masks import GivenMasks, Masks
from maskattn_kernels.models.levels import Level, levels_around, own_levels
from maskattn_kernels.models.selector_dial import Keep, check_keep
from maskattn_kernels.nn import (
    AttentionCore,
    MaskAttention2d,
    Selection,
)
from maskattn_kernels.nn.checks import positive_int

__all__ = ["PRESETS", "MaskAttnUNet"]

# Around a trained encoder attention must begin as the identity (docs/real.md).
_LITE = {"encoder": "efficientnet_lite0", "attention_norm": "before"}
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"width": 24, "depth": 5, "bottleneck": 656, "num_heads": 3},
    "published": {"width": 64},
    "edge": {"width": 16},
    "mobile": {
        "encoder": "efficientnet_lite0_s16",
        "width": 16,
        "finest": 2,
        "attend_from": 16,
    },
    "lite-small": {**_LITE, "width": 24, "finest": 4},
    "lite-medium": {**_LITE, "width": 32, "finest": 4},
    "lite-large": {**_LITE, "width": 32, "finest": 2},
}
"""Constructor arguments by name, the encoder as a name of `ENCODERS`; see
`MaskAttnUNet.from_preset`."""


class MaskAttnUNet(AttentionNetwork):
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
        attention_norm: "after" or "before" attention, see ``norm`` of `MaskAttention2d`.
        sparsity, unselected: see `MaskAttention2d`.
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
        attention_norm: str = "after",
        selector: str = "random",
        keep: Keep = 0.25,
        min_keep: int = 1,
        seed: int = 0,
        sparsity: str = "qk",
        unselected: str = "zero",
        core: str | AttentionCore = "sparse",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        in_channels = positive_int("in_channels", in_channels)
        classes = positive_int("classes", classes)
        width = positive_int("width", width)
        has_other = encoder is not None
        for name, value, is_of_other in (
            ("depth", depth, False),
            ("bottleneck", bottleneck, False),
            ("finest", finest, True),
        ):
            if value is not None and is_of_other != has_other:
                which = "another" if has_other else "the U-Net's own"
                raise ValueError(f"{name}: expected None with {which} encoder, got {value!r}")
            if value is not None:
                positive_int(name, value)
        if attend_from is None:
            attend_from = 8 if has_other else 1
        positive_int("attend_from", attend_from)
        self.in_channels = in_channels
        self.strides = {}
        self.keep, self.min_keep, self.seed = keep, min_keep, seed

        def attention(name: str, channels: int, stride: int) -> nn.Module:
            if stride < attend_from:
                return nn.Identity()
            self.strides[name] = stride
            return MaskAttention2d(
                channels,
                num_heads,
                selector=self.new_selector(selector, name),
                joins_previous=len(self.strides) > 1,
                sparsity=sparsity,
                unselected=unselected,
                norm=attention_norm,
                core=core,
                backend=backend,
            )

        self.encoder = None if encoder is None else as_encoder(encoder)
        if self.encoder is None:
            levels = own_levels(width, 3 if depth is None else depth)
            self.stem = ConvBlock(in_channels, width)
            self.downs = nn.ModuleList(Down(a.encoder, b.encoder) for a, b in pairwise(levels))
            attended = levels[1:]
        else:
            finest = 4 if finest is None else finest
            levels = levels_around(self.encoder, width, finest, attend_from)
            self.laterals = nn.ModuleList(_lateral(level) for level in levels)
            attended = levels
        self.down_attention = nn.ModuleList(
            attention(f"down{level.number}", level.skip, level.stride) for level in attended
        )
        if self.encoder is None:
            deepest = levels[-1].encoder
            inside = 2 * deepest if bottleneck is None else bottleneck
            self.bottleneck = nn.Sequential(
                ConvBlock(deepest, inside), ConvBlock(inside, inside), ConvBlock(inside, deepest)
            )
        if not self.strides:
            raise ValueError(
                f"attend_from: expected at most {levels[-1].stride}, the encoder's last stride, "
                f"got {attend_from}"
            )
        self.finest = levels[0].stride
        self.decoder_channels = [level.decoder for level in reversed(levels)]
        self.ups = nn.ModuleList()
        self.up_attention = nn.ModuleList()
        make_up: Any = Up if encoder is None else SlimUp
        for number, level in enumerate(reversed(levels[:-1]), start=1):
            below = self.decoder_channels[number - 1]
            self.ups.append(make_up(below, level.skip, level.decoder))
            self.up_attention.append(attention(f"up{number}", level.decoder, level.stride))
        self.head = nn.Conv2d(levels[0].decoder, classes, 1)
        check_keep(keep, self.scales)
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

        | name | parameters | GFLOPs | of an image of |
        |---|---|---|---|
        | "mobile" | 0.8 M | 0.85 | 192 x 256 |
        | "lite-small" | 3.2 M | 0.96 | 192 x 256 |
        | "lite-medium" | 3.3 M | 2.6 | 288 x 384 |
        | "lite-large" | 3.7 M | 8.0 | 360 x 480 |

        These are built around `EfficientNetLite0`, those called "lite" with
        ``attention_norm="before"``. Parameters and GFLOPs for 11 classes, with
        attention products for a learned quarter of queries and keys ("topk", "q+k"). "mobile" is
        for one thread of a small CPU: its encoder ends at stride 16, the only one with attention,
        and its decoder goes down to stride 2 with 16 channels, as runtimes compute 16 at a time.

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
        chosen = {**PRESETS[name], **arguments}
        if isinstance(chosen.get("encoder"), str):
            chosen["encoder"] = ENCODERS[chosen["encoder"]]()
        return cls(**chosen)

    def features(
        self,
        image: Tensor,
        masks: Masks | None = None,
        guess: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[list[Tensor], dict[str, Selection | None]]:
        """The decoder's feature maps, and what attention selected; see `AttentionNetwork`.

        From the deepest map, that of the bottleneck or of the encoder, to the finest.

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
        given = GivenMasks(masks, self.strides, image)
        selections: dict[str, Selection | None] = {}
        previous: Selection | None = None
        guessed: Tensor | None = None

        names = iter(self.scales)

        def attend(attention: Any, x: Tensor) -> Tensor:
            nonlocal previous
            if isinstance(attention, nn.Identity):
                return x
            name = next(names)
            mask = given.at(name, x)
            previous = attention.select(x, previous, guessed) if mask is None else Selection(mask)  # type: ignore[arg-type]
            selections[name] = previous
            return attention(x, previous)

        if self.encoder is None:
            skips = [self.stem(x)]
            for down, attention in zip(self.downs, self.down_attention, strict=True):
                skips.append(attend(attention, down(skips[-1])))
            maps = [self.bottleneck(skips.pop())]
        else:
            used = encoded(self.encoder, x)[-len(self.laterals) :]
            skips = [
                attend(attention, lateral(map))
                for map, lateral, attention in zip(
                    used, self.laterals, self.down_attention, strict=True
                )
            ]
            maps = [skips.pop()]
        for up, attention in zip(self.ups, self.up_attention, strict=True):
            guessed = None if guess is None else guess(maps[-1])
            maps.append(attend(attention, up(maps[-1], skips.pop())))
        return maps, selections

    def attentions(self) -> dict[str, MaskAttention2d]:
        """The attention modules by their names in `scales`."""
        modules = (*self.down_attention, *self.up_attention)
        attentions = (m for m in modules if isinstance(m, MaskAttention2d))
        return dict(zip(self.scales, attentions, strict=True))

    def has_guess(self, scale: str) -> bool:
        """Whether coarser maps are classified before this scale: on the way up."""
        return scale.startswith("up")

    def encoder_parts(self) -> list[nn.Module]:
        """Another encoder itself; of the own one all up to the bottleneck, with its attention."""
        if self.encoder is not None:
            return [self.encoder]
        return [self.stem, self.downs, self.down_attention, self.bottleneck]


def _lateral(level: Level) -> nn.Module:
    """What brings an encoder's map to the channels in which the decoder joins it.

    And to the scale of the decoder's maps: those of EfficientNet-Lite0 have standard deviations
    from 4 to 14, and the coarser maps that they are joined with would hardly count beside them.
    """
    convolution = nn.Conv2d(level.encoder, level.skip, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(level.skip))
