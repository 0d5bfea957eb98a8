# SPDX-License-Identifier: BSD-3-Clause
"""`FRMNet`: a light network whose stages exchange what they know through a feature refinement.

After "A Feature Refinement Module for Light-weight Semantic Segmentation Network" (Wang et al.,
arXiv 2412.08670): maps of all stages, pooled to one grid and put together, are related by
disentangled attention over its places and given back to the stages, which a feature pyramid (FPN)
decodes. Here only selected places take part in attention, so that the grid can be finer for the
same work. With an encoder of strides 4 to 32, ``grid=16`` and ``depth=2``:

    encoder 1/4   1/8   1/16   1/32
              |     |     |      |
              +-----+--+--+------+
                       | pooled to 1/16, 1x1 convolution to `dim`
                    refine1: attention among selected places, convolutions
                    refine2
                       | gate and context for each stage
    lateral 1/4 ... 1/32, gated and added -> FPN of `width` channels, from 1/32 up to 1/4 -> head

It is written from the paper's abstract and reviews of it; the paper's code is not public, and what
it gives back to the stages is not known.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskattn_kernels.common.text import quoted
from maskattn_kernels.models.attention_network import AttentionNetwork
from maskattn_kernels.models.encoders import ENCODERS, as_encoder, encoded
from maskattn_kernels.models.frm_blocks import (
    Fusion,
    Injection,
    RefineBlock,
    conv_norm,
    depthwise_norm,
)
from maskattn_kernels.models.given_masks import GivenMasks, Masks
from maskattn_kernels.models.light_encoder import LightEncoder
from maskattn_kernels.models.selector_dial import Keep, check_keep
from maskattn_kernels.nn import AttentionCore, DisentangledAttention2d, Selection
from maskattn_kernels.nn.checks import positive_int

__all__ = ["FRM_PRESETS", "FRMNet"]

INJECTS = ("stages", "add", "top", "none")

FRM_PRESETS: dict[str, dict[str, Any]] = {
    "large": {
        "encoder": {"channels": (56, 112, 224, 400), "depths": (3, 3, 9, 3), "ratio": 4},
        "dim": 256,
        "num_heads": 8,
        "width": 176,
    },
    "base": {
        "encoder": {"channels": (40, 80, 160, 288), "depths": (2, 3, 8, 3), "ratio": 4},
        "dim": 192,
        "num_heads": 6,
        "width": 128,
    },
    "small": {
        "encoder": {"channels": (28, 56, 128, 208), "depths": (2, 2, 6, 2), "ratio": 4},
        "dim": 160,
        "num_heads": 5,
        "width": 96,
    },
    "tiny": {
        "encoder": {"channels": (20, 40, 96, 160), "depths": (2, 2, 4, 2), "ratio": 3},
        "dim": 128,
        "num_heads": 4,
        "depth": 1,
        "width": 56,
    },
    "lite": {"encoder": "efficientnet_lite0", "dim": 160, "num_heads": 5, "width": 96},
}
"""Constructor arguments by name, the encoder as a name of `ENCODERS` or as the arguments of a
`LightEncoder`; see `FRMNet.from_preset`."""


class FRMNet(AttentionNetwork):
    """Per-pixel classification by a light encoder, a feature refinement and a narrow decoder.

    Args:
        classes: of the logits.
        encoder: a module as `EncoderLike` says, or a backbone of timm made with
            ``features_only=True``; None = a `LightEncoder`. Maps of stride 4 and more are fused.
        dim: channels of the grid.
        num_heads: of every attention module.
        grid: stride of the grid, a multiple or a divisor of the encoder's.
        depth: how many refinement blocks, each with an attention module.
        width: channels of the decoder.
        finest: lowest stride of the encoder's maps that are decoded; logits are brought from there
            to the size of the image by bilinear interpolation.
        inject: what the grid is given back to: "stages" = each of them is gated and gets context;
            "add" = each gets context; "top" = the coarsest one is gated and gets context; "none" =
            there is no refinement, for comparison.
        relation: the terms of attention, "disentangled", or others for comparison: see `RELATIONS`.
        selector, keep, min_keep, seed, sparsity, unselected, core, backend: as in `MaskAttnUNet`.
            "entropy" needs ``guess`` of `features`.

    Raises:
        TypeError, ValueError: one line naming the argument, what came, and what was expected.

    Shapes:
        image (B,3,H,W), any H and W from 1, floating point; logits (B,classes,H,W). Computes in
        channels_last whatever the memory format of the image.

    Example:
        >>> import torch
        >>> from maskattn_kernels.models import FRMNet
        >>> network = FRMNet(classes=5, dim=32, num_heads=2, width=16).eval()
        >>> network(torch.randn(1, 3, 90, 120)).shape
        torch.Size([1, 5, 90, 120])
        >>> logits, masks = network(torch.randn(1, 3, 64, 96), return_masks=True)
        >>> {name: tuple(mask.shape) for name, mask in masks.items()}
        {'refine1': (1, 4, 6), 'refine2': (1, 4, 6)}
    """

    def __init__(
        self,
        classes: int = 19,
        *,
        encoder: nn.Module | None = None,
        dim: int = 160,
        num_heads: int = 5,
        grid: int = 16,
        depth: int = 2,
        width: int = 96,
        finest: int = 4,
        inject: str = "stages",
        relation: str = "disentangled",
        selector: str = "random",
        keep: Keep = 0.25,
        min_keep: int = 1,
        seed: int = 0,
        sparsity: str = "q+k",
        unselected: str = "zero",
        core: str | AttentionCore = "sparse",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        classes, dim = positive_int("classes", classes), positive_int("dim", dim)
        grid, depth = positive_int("grid", grid), positive_int("depth", depth)
        width, finest = positive_int("width", width), positive_int("finest", finest)
        if inject not in INJECTS:
            raise ValueError(f"inject: expected one of {quoted(INJECTS)}, got {inject!r}")
        self.in_channels, self.grid, self.inject = 3, grid, inject
        self.keep, self.min_keep, self.seed = keep, min_keep, seed
        made: Any = as_encoder(LightEncoder() if encoder is None else encoder)
        self.encoder = made
        levels = list(zip(made.channels, made.strides, strict=True))
        decoded = [level for level in levels if level[1] >= finest]
        if not decoded:
            raise ValueError(
                f"finest: expected at most {levels[-1][1]}, the encoder's last stride, got {finest}"
            )
        # No finer ones: they have few channels, and most of what they know is lost in the pooling.
        fused = [level for level in levels if level[1] >= min(finest, _FINEST_FUSED)]
        refines = inject != "none"
        self.strides = {f"refine{i}": grid for i in range(1, depth + 1)} if refines else {}
        self.fusion = (
            Fusion([c for c, _ in fused], [s for _, s in fused], grid, dim) if refines else None
        )
        self.blocks = nn.ModuleList(
            RefineBlock(
                dim,
                num_heads,
                selector=self.new_selector(selector, name),
                joins_previous=place > 0,
                sparsity=sparsity,
                unselected=unselected,
                relation=relation,
                core=core,
                backend=backend,
            )
            for place, name in enumerate(self.scales)
        )
        self.laterals = nn.ModuleList()
        self.injections = nn.ModuleList()
        self.smooths = nn.ModuleList()
        for in_channels, stride in reversed(decoded):
            self.laterals.append(nn.Sequential(*conv_norm(in_channels, width)))
            gets = refines and (inject != "top" or stride == decoded[-1][1])
            gated = inject != "add"
            self.injections.append(
                Injection(dim, width, grid, stride, gated) if gets else nn.Identity()
            )
            depthwise = depthwise_norm(width, 5)
            self.smooths.append(nn.Sequential(*depthwise, *conv_norm(width, width, gelu=True)))
        self.decoder_channels = [*([dim] if refines else []), *(width for _ in decoded)]
        self.finest = decoded[0][1]
        self.head = nn.Conv2d(width, classes, 1)
        check_keep(keep, self.scales)
        # Weights in the memory format of the feature maps: convolutions then copy none of them.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def from_preset(cls, name: str, **arguments: Any) -> "FRMNet":
        """A network of a named size; further arguments as in the constructor, and they win.

        | name | parameters | GFLOPs | GMACs | of it encoder |
        |---|---|---|---|---|
        | "large" | 11.1 M | 188 | 94 | 135 |
        | "base" | 5.6 M | 94 | 47 | 63 |
        | "small" | 2.7 M | 50 | 25 | 28 |
        | "tiny" | 1.1 M | 19 | 9.7 | 11 |
        | "lite" | 3.7 M | 52 | 26 | 30 |

        For 19 classes and one 2048 x 1024 image, a quarter of queries and of keys selected: GFLOPs
        by torch's counter, which takes a multiplication and an addition for two, GMACs for one, as
        papers do. "lite" is built around `EfficientNetLite0`, which has ImageNet weights.

        Raises:
            ValueError: there is no preset of that name.

        Example:
            >>> from maskattn_kernels.models import FRMNet
            >>> tiny = FRMNet.from_preset("tiny", classes=11)
            >>> sum(p.numel() for p in tiny.parameters()) < 1.2e6
            True
        """
        if name not in FRM_PRESETS:
            raise ValueError(f"name: expected one of {quoted(FRM_PRESETS)}, got {name!r}")
        chosen = {**FRM_PRESETS[name], **arguments}
        encoder = chosen.get("encoder") or FRM_PRESETS[name]["encoder"]
        if isinstance(encoder, str):
            encoder = ENCODERS[encoder]()
        elif isinstance(encoder, dict):
            encoder = LightEncoder(**encoder)
        return cls(**{**chosen, "encoder": encoder})

    def features(
        self,
        image: Tensor,
        masks: Masks | None = None,
        guess: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[list[Tensor], dict[str, Selection | None]]:
        """The fused grid before its refinement, the decoder's maps, and what attention selected.

        As `AttentionNetwork.features`; the decoder's maps from the coarsest to the finest. The
        guess at the classes for the selectors is made from the grid.

        Example:
            >>> import torch
            >>> from maskattn_kernels.models import FRMNet
            >>> network = FRMNet(dim=32, num_heads=2, width=16, selector="topk", keep=0.5)
            >>> maps, selections = network.features(torch.randn(2, 3, 64, 64))
            >>> [tuple(map.shape[1:]) for map in maps]
            [(32, 4, 4), (16, 2, 2), (16, 4, 4), (16, 8, 8), (16, 16, 16)]
            >>> {name: selection.keep_ratio.mean().item() for name, selection in selections.items()}
            {'refine1': 0.5, 'refine2': 0.5}
        """
        self._check(image)
        stages = encoded(self.encoder, image.contiguous(memory_format=torch.channels_last))
        maps: list[Tensor] = []
        selections: dict[str, Selection | None] = {}
        refined: Tensor | None = None
        if self.fusion is not None:
            height, width = (-(-side // self.grid) for side in image.shape[-2:])
            used = stages[-len(self.fusion.strides) :]
            maps.append(self.fusion(used, torch.Size((height, width))))
            guessed = None if guess is None else guess(maps[0])
            given, previous, refined = GivenMasks(masks, self.strides, image), None, maps[0]
            for name, block in zip(self.scales, self.blocks, strict=True):
                mask = given.at(name, refined)
                refined, previous = block(refined, mask, previous, guessed)
                selections[name] = previous
        above: Tensor | None = None
        parts = zip(self.laterals, self.injections, self.smooths, strict=True)
        for place, (lateral, injection, smooth) in enumerate(parts, start=1):
            x = lateral(stages[-place])
            if isinstance(injection, Injection):
                x = injection(x, refined)
            if above is not None:
                size = x.shape[-2:]
                x = x + F.interpolate(above, size=size, mode="bilinear", align_corners=False)
            above = smooth(x)
            maps.append(above)
            if guess is not None and place < len(self.laterals):
                guess(above)
        return maps, selections

    def attentions(self) -> dict[str, DisentangledAttention2d]:
        """The attention modules by their names in `scales`."""
        return {
            name: block.attention
            for name, block in zip(self.scales, self.blocks, strict=True)
            if isinstance(block, RefineBlock)
        }

    def has_guess(self, scale: str) -> bool:
        """Always: the grid is classified before it is refined."""
        return True

    def encoder_parts(self) -> list[nn.Module]:
        """The encoder."""
        return [self.get_submodule("encoder")]

    def refinement_parts(self) -> list[nn.Module]:
        """What brings the maps to the grid, the blocks, and what gives the grid back."""
        fusion = [] if self.fusion is None else [self.fusion]
        return [*fusion, *self.blocks, *self.injections]


_FINEST_FUSED = 4
