# SPDX-License-Identifier: BSD-3-Clause
"""`AttentionNetwork`: what the networks of this package have in common, from image to logits."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from maskattn_kernels.models.given_masks import Mask, Masks
from maskattn_kernels.models.selector_dial import SelectorDial
from maskattn_kernels.nn import Selection

__all__ = ["AttentionNetwork"]


class AttentionNetwork(SelectorDial):
    """Base of networks such as `MaskAttnUNet`, and all that ``SegmentationNetwork`` reads of them.

    A subclass sets the attributes in its constructor, and implements `features`, `encoder_parts`,
    and what `SelectorDial` asks for but `scales`.

    Attributes:
        in_channels: of the image.
        encoder: a module as `EncoderLike` says, whose weights can be loaded; None = layers of the
            network itself.
        strides: pixels of the image in a place of each scale with attention, by its name, in the
            order in which they run.
        decoder_channels: of the maps that `features` returns.
        finest: stride of the last one of them.
        head: 1x1 convolution that classifies it.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from maskattn_kernels.models import AttentionNetwork
        >>> from maskattn_kernels.nn import MaskAttention2d
        >>> class OneScale(AttentionNetwork):
        ...     in_channels, encoder, keep, min_keep, seed = 3, None, 0.25, 1, 0
        ...     strides, decoder_channels, finest = {"only": 4}, [16], 4
        ...
        ...     def __init__(self, classes, selector="random"):
        ...         super().__init__()
        ...         self.stem = nn.Conv2d(3, 16, 4, stride=4)
        ...         chosen_by = self.new_selector(selector, "only")
        ...         self.attention = MaskAttention2d(16, selector=chosen_by)
        ...         self.head = nn.Conv2d(16, classes, 1)
        ...
        ...     def features(self, image, masks=None, guess=None):
        ...         x = self.stem(image)
        ...         selection = self.attention.select(x)
        ...         return [self.attention(x, selection)], {"only": selection}
        ...
        ...     def attentions(self):
        ...         return {"only": self.attention}
        ...
        ...     def has_guess(self, scale):
        ...         return False
        ...
        ...     def encoder_parts(self):
        ...         return [self.stem]
        >>> OneScale(classes=5)(torch.randn(1, 3, 32, 48)).shape
        torch.Size([1, 5, 32, 48])
    """

    in_channels: int
    encoder: nn.Module | None
    strides: dict[str, int]
    decoder_channels: list[int]
    finest: int
    head: nn.Conv2d

    @property
    def scales(self) -> tuple[str, ...]:
        """Names of the attention modules, in the order in which they run.

        Example:
            >>> from maskattn_kernels.models import MaskAttnUNet
            >>> MaskAttnUNet(width=8, depth=2).scales
            ('down1', 'down2', 'up1', 'up2')
        """
        return tuple(self.strides)

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
        """The feature maps to classify, and what attention selected on the way.

        Args:
            image, masks: as in `forward`.
            guess: called with each of the maps but the last, in order, as soon as it is there;
                returns logits (B,K,h,w) of a guess at the classes, by which the selectors of the
                scales that follow may choose.

        Returns:
            maps (B,C,h,w) with C as in ``decoder_channels``, of which the head classifies the last;
            and the `Selection` of each scale, None where all pixels took part.
        """
        raise NotImplementedError("AttentionNetwork.features: a subclass must implement it")

    def encoder_parts(self) -> list[nn.Module]:
        """The modules that read the image, up to the deepest map: what is frozen as "encoder"."""
        raise NotImplementedError("AttentionNetwork.encoder_parts: a subclass must implement it")

    def refinement_parts(self) -> list[nn.Module]:
        """The modules around attention that are neither encoder nor decoder, where there are any.

        Example:
            >>> from maskattn_kernels.models import FRMNet, MaskAttnUNet
            >>> MaskAttnUNet(width=8, depth=2).refinement_parts()
            []
            >>> [type(part).__name__ for part in FRMNet(depth=1).refinement_parts()[:2]]
            ['Fusion', 'RefineBlock']
        """
        return []

    def output_layers(self) -> tuple[nn.Module, ...]:
        """The layers that `prepare_for_inference` keeps in float32: their results are compared."""
        return (self.head,)

    def _check(self, image: Tensor) -> None:
        """Raises unless it is an image for this network."""
        if not isinstance(image, Tensor):
            raise TypeError(f"image: expected a Tensor, got {type(image).__name__}")
        if not image.is_floating_point():
            raise TypeError(f"image: expected a floating point dtype, got {image.dtype}")
        shape = tuple(image.shape)
        if len(shape) != 4 or shape[1] != self.in_channels or 0 in shape[2:]:
            raise ValueError(
                f"image: expected shape (B, {self.in_channels}, H, W), H and W from 1, got {shape}"
            )
