# SPDX-License-Identifier: BSD-3-Clause
"""Networks of other libraries, trained, scored and exported by the same code as ours.

`register` makes "peer" an architecture of `SegmentationNetwork`, with these presets:

    smp-unet, smp-fpn   of segmentation_models_pytorch, with its defaults, for the encoder
                        tf_efficientnet_lite0 of timm. The encoder is `EfficientNetLite0`, which
                        computes the same, so that it starts from the same ImageNet weights and is
                        trained at the same speed as in our networks.
    segformer-b0        of transformers, from random weights: those of ImageNet are on a hub only.

The logits of smp-fpn and segformer-b0, at a quarter of the size, are brought to the size of the
image by bilinear interpolation, as those of our networks are.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from bench.libraries import import_library
from maskattn_kernels.models import AttentionNetwork
from maskattn_kernels.models.encoders import encoded
from maskattn_kernels.models.given_masks import Masks
from maskattn_kernels.nn import Selection
from maskattn_kernels.segmentation.model.architectures import ARCHITECTURES, Architecture

ARCH = "peer"
TIMM_ENCODER = "tu-tf_efficientnet_lite0"


class Peer(AttentionNetwork):
    """A network in which nothing of ours selects tokens.

    A subclass sets ``encoder``, ``decoder_channels``, ``finest`` and ``head``, and implements
    `last_map`.
    """

    in_channels = 3
    keep, min_keep, seed = 1.0, 1, 0

    def __init__(self) -> None:
        super().__init__()
        self.strides = {}

    @classmethod
    def from_preset(cls, name: str, *, classes: int, encoder: Any, **masks: Any) -> "Peer":
        """The network of a name; options of masks do not concern it."""
        return PEERS[name](classes, encoder)

    def last_map(self, image: Tensor) -> Tensor:
        """What the head classifies."""
        raise NotImplementedError

    def features(
        self,
        image: Tensor,
        masks: Masks | None = None,
        guess: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[list[Tensor], dict[str, Selection | None]]:
        return [self.last_map(image)], {}

    def attentions(self) -> dict[str, Any]:
        return {}

    def encoder_parts(self) -> list[nn.Module]:
        return [] if self.encoder is None else [self.encoder]


class OfSmp(Peer):
    """A decoder of smp with its head, around an encoder of ours."""

    def __init__(self, kind: str, finest: int, classes: int, encoder: nn.Module) -> None:
        super().__init__()
        smp: Any = import_library("segmentation_models_pytorch")
        made = getattr(smp, kind)(TIMM_ENCODER, encoder_weights=None, classes=classes)
        self.encoder, self.decoder = encoder, made.decoder
        self.head = made.segmentation_head[0]
        self.decoder_channels, self.finest = [self.head.in_channels], finest

    def last_map(self, image: Tensor) -> Tensor:
        return self.decoder([image, *encoded(self.encoder, image)])


class SegformerB0(Peer):
    """Segformer of transformers in its smallest size, which is the default of its config."""

    def __init__(self, classes: int, encoder: None) -> None:
        super().__init__()
        hf: Any = import_library("transformers")
        made = hf.SegformerForSemanticSegmentation(hf.SegformerConfig(num_labels=classes))
        self.encoder = None
        self.segformer, self.decoder = made.segformer, made.decode_head
        self.head, self.decoder.classifier = self.decoder.classifier, nn.Identity()
        self.decoder_channels, self.finest = [self.head.in_channels], 4

    def last_map(self, image: Tensor) -> Tensor:
        return self.decoder(self.segformer(image, output_hidden_states=True).hidden_states)


PEERS: dict[str, Callable[[int, Any], Peer]] = {
    "smp-unet": lambda classes, encoder: OfSmp("Unet", 1, classes, encoder),
    "smp-fpn": lambda classes, encoder: OfSmp("FPN", 4, classes, encoder),
    "segformer-b0": SegformerB0,
}
_LITE0 = {"encoder": "efficientnet_lite0"}


def register() -> None:
    """Make the networks known to `SegmentationNetwork`, and so to training, scoring and export."""
    presets = {name: _LITE0 if name.startswith("smp") else {} for name in PEERS}
    ARCHITECTURES[ARCH] = Architecture(Peer, presets, "smp-unet", ())
