# SPDX-License-Identifier: BSD-3-Clause
"""`SegmentationNetwork`: a `MaskAttnUNet` or an `FRMNet` with the heads that its task needs."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskattn_kernels.common.text import quoted
from maskattn_kernels.models import AttentionNetwork
from maskattn_kernels.models.given_masks import Masks
from maskattn_kernels.models.selector_dial import Keep
from maskattn_kernels.nn import Selection
from maskattn_kernels.segmentation.model.architectures import architecture
from maskattn_kernels.segmentation.model.named_encoders import make_encoder
from maskattn_kernels.torch_compat import register_tuple

__all__ = ["OBJECTS", "TASKS", "Outputs", "SegmentationNetwork"]

TASKS = ("semantic", "instance", "panoptic")
OBJECTS = ("center", "distance")
"""By what pixels of objects can be told apart."""


@register_tuple
class Outputs(NamedTuple):
    """The outputs of a `SegmentationNetwork` for each pixel.

    Attributes:
        semantic: (B,C,H,W), logits of the classes.
        center: (B,1,H,W), near 1 at the centre of an object and 0 elsewhere; None for task
            "semantic" and for objects by distance, as the next one.
        offset: (B,2,H,W), (dy, dx) in pixels from here to the centre of the object here.
        embedding: (B,E,H,W), close for pixels of one object and apart for others; None for E = 0
            and for task "semantic".
        selections: what attention selected, by the name of the scale, see ``scales`` of the
            networks; with ``sparsity="q+k"`` "queries" and "keys" after it; no entry where all
            pixels take part.
        pooled: (B,F), the mean over all places of the deepest feature map: what is in the image.
        coarse: (B,C,h,w) each, the logits of the decoder's coarser maps, from the coarsest on; each
            has those before it added.
        finest: (B,F,h,w), the map that the last logits are made of; None unless in training.
        distance: (B,1,H,W), from 0 outside of objects to 1 in their middle; None but for objects by
            distance.
    """

    semantic: Tensor
    center: Tensor | None
    offset: Tensor | None
    embedding: Tensor | None
    selections: dict[str, Selection]
    pooled: Tensor | None = None
    coarse: tuple[Tensor, ...] = ()
    finest: Tensor | None = None
    distance: Tensor | None = None

    @property
    def have_objects(self) -> bool:
        """Whether `group` can find objects."""
        return self.center is not None or self.distance is not None


class SegmentationNetwork(nn.Module):
    """Semantic logits, and for tasks with objects centres, offsets and embeddings of their pixels.

    The logits are the sum of those that every map of the decoder gives, each at its own size and
    brought to the next by bilinear interpolation, as FCN does (Long et al., 2015). So the deep
    layers are one convolution away from the loss, and learn sooner than through the whole decoder.

    "instance" and "panoptic" have the same outputs; they differ in what is scored. Centres and
    offsets are those of Panoptic-DeepLab (Cheng et al., 2020), for objects of any shape, also of
    several parts. Distances are for objects in one piece that touch, such as cells: a valley lies
    between two of them. Embeddings serve the contrastive loss of MaskAttn-UNet.

    Args:
        classes: how many.
        things: numbers of the classes whose objects are counted; needed unless "semantic".
        task: "semantic", "instance" or "panoptic".
        arch: "unet" = `MaskAttnUNet`; "frm" = `FRMNet`.
        encoder: a name that `make_encoder` takes, that of ``arch`` = the network's own; None = that
            of the preset. Its weights are random: `load_encoder_weights` loads others.
        preset: a name in `PRESETS` or `FRM_PRESETS`, for the sizes that are None; None = "edge" or
            "small".
        width, depth, finest, num_heads: as in `MaskAttnUNet` or `FRMNet`.
        bottleneck, attend_from, attention_norm: as in `MaskAttnUNet`.
        dim, grid, inject, relation: as in `FRMNet`.
        selector, keep, min_keep, seed, sparsity, unselected, core, backend: as in `MaskAttnUNet`.
        objects: by what they are told apart, "center" (and offset) or "distance".
        embedding: E, channels of the embedding; 0 = none.

    Raises:
        TypeError, ValueError: one line naming the argument, what came, and what was expected.

    Shapes:
        image (B,3,H,W), uint8 from 0 to 255 or floating from 0 to 1, RGB; normalised inside, by the
        buffers ``mean`` and ``std``.

    ``config`` holds all arguments, ready for JSON: ``SegmentationNetwork(**config)`` builds the
    network that a checkpoint's weights fit.

    Example:
        >>> import torch
        >>> from maskattn_kernels.segmentation.model.network import SegmentationNetwork
        >>> network = SegmentationNetwork(5, things=[3, 4], width=8, depth=2)
        >>> outputs = network(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
        >>> outputs.semantic.shape, outputs.offset.shape
        (torch.Size([1, 5, 32, 32]), torch.Size([1, 2, 32, 32]))
        >>> list(outputs.selections)[:4]
        ['down1 queries', 'down1 keys', 'down2 queries', 'down2 keys']
        >>> SegmentationNetwork(**network.config).config == network.config
        True
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        classes: int,
        things: Sequence[int] = (),
        task: str = "panoptic",
        *,
        arch: str = "unet",
        encoder: str | None = None,
        preset: str | None = None,
        width: int | None = None,
        depth: int | None = None,
        bottleneck: int | None = None,
        finest: int | None = None,
        attend_from: int | None = None,
        attention_norm: str | None = None,
        num_heads: int | None = None,
        dim: int | None = None,
        grid: int | None = None,
        inject: str | None = None,
        relation: str | None = None,
        selector: str = "gumbel-topk",
        keep: float | dict[str, float] = 0.25,
        min_keep: int = 1,
        seed: int = 0,
        sparsity: str = "q+k",
        unselected: str = "zero",
        core: str = "sparse",
        backend: str | None = None,
        objects: str = "center",
        embedding: int = 8,
    ) -> None:
        super().__init__()
        things = tuple(int(thing) for thing in things)
        _check(classes, things, task, objects, embedding)
        chosen_arch, preset = architecture(arch, preset)
        sizes = {
            "width": width,
            "depth": depth,
            "bottleneck": bottleneck,
            "finest": finest,
            "attend_from": attend_from,
            "attention_norm": attention_norm,
            "num_heads": num_heads,
            "dim": dim,
            "grid": grid,
            "inject": inject,
            "relation": relation,
        }
        chosen = {
            "selector": selector,
            "keep": keep,
            "min_keep": min_keep,
            "seed": seed,
            "sparsity": sparsity,
            "unselected": unselected,
            "core": core,
            "backend": backend,
        }
        usual = chosen_arch.presets[preset].get("encoder")
        encoder = encoder or (usual if isinstance(usual, str) else arch)
        self.config: dict[str, Any] = {
            "classes": classes,
            "things": list(things),
            "task": task,
            "arch": arch,
            "encoder": encoder,
            "preset": preset,
            **sizes,
            **chosen,
            "objects": objects,
            "embedding": embedding,
        }
        self.task = task
        self.things = things
        encoder_module = make_encoder(encoder, own=arch)
        body = chosen_arch.make(preset, sizes, classes=classes, encoder=encoder_module, **chosen)
        self.add_module(arch, body)
        # Without bias: all biases would add up to one, and the last head has it.
        self.coarse_heads = nn.ModuleList(
            nn.Conv2d(channels, classes, 1, bias=False) for channels in body.decoder_channels[:-1]
        ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._maps = 1 if objects == "distance" else 3  # of which objects are made
        self.objects: nn.Module | None = None
        if task != "semantic":
            channels = body.head.in_channels
            self.objects = nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.GELU(),
                nn.Conv2d(channels, self._maps + embedding, 1),
            ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # ImageNet's statistics: customary, and close enough for photographs.
        mean = getattr(encoder_module, "mean", (0.485, 0.456, 0.406))
        std = getattr(encoder_module, "std", (0.229, 0.224, 0.225))
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, image: Tensor, masks: Masks | None = None) -> Outputs:
        """The outputs for ``image``; ``masks`` as in `AttentionNetwork.forward`."""
        if isinstance(image, Tensor) and image.dtype == torch.uint8:
            image = image.to(self.mean.dtype) / 255
        if not isinstance(image, Tensor) or not image.is_floating_point():
            kind = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise TypeError(f"image: expected a uint8 or floating point Tensor, got {kind}")
        if image.dim() != 4 or image.shape[1] != 3:
            raise ValueError(f"image: expected shape (B, 3, H, W), got {tuple(image.shape)}")
        size = image.shape[-2:]
        heads = iter([*self.coarse_heads, self.body.head])
        summed: list[Tensor] = []

        def logits(features: Tensor) -> Tensor:
            summed.append(_joined(next(heads)(features), summed[-1] if summed else None))
            return summed[-1]

        maps, selections = self.body.features((image - self.mean) / self.std, masks, logits)
        semantic, coarse = _resized(logits(maps[-1]), size), tuple(summed[:-1])
        made, pooled = _by_name(selections), maps[0].mean((2, 3))
        more = (made, pooled, coarse, maps[-1] if self.training else None)
        if self.objects is None:
            return Outputs(semantic, None, None, None, *more)
        objects = _resized(self.objects(maps[-1]), size)
        first, embedding = objects[:, :1], objects[:, self._maps :]
        embedded = embedding if embedding.shape[1] else None
        if self._maps == 1:
            return Outputs(semantic, None, None, embedded, *more, first)
        offset = objects[:, 1:3] * _REACH
        return Outputs(semantic, first, offset, embedded, *more)

    @property
    def body(self) -> AttentionNetwork:
        """The network that gives the feature maps: the submodule that has the name of ``arch``."""
        return getattr(self, self.config["arch"])

    def output_layers(self) -> tuple[nn.Module, ...]:
        """The layers that `prepare_for_inference` keeps in float32: their results are compared."""
        last = () if self.objects is None else (self.objects[-1],)  # type: ignore[index]
        return (*self.coarse_heads, *last)

    def encoder_parts(self) -> list[nn.Module]:
        """As `AttentionNetwork.encoder_parts`."""
        return self.body.encoder_parts()

    def set_keep(self, keep: Keep) -> None:
        """As `SelectorDial.set_keep`; ``config`` then says so too."""
        self.body.set_keep(keep)
        self.config["keep"] = self.body.keep

    def set_selector(self, name: str, keep: Keep | None = None) -> None:
        """As `SelectorDial.set_selector`; ``config`` then says so too."""
        self.body.set_selector(name, keep)
        self.config |= {"selector": name, "keep": self.body.keep}

    def anneal(self, progress: float) -> None:
        """Tell Gumbel selectors the ``progress`` of training, from 0 to 1; others ignore it."""
        self.body.anneal(progress)


def _joined(logits: Tensor, coarser: Tensor | None) -> Tensor:
    """Logits of a map, to which those of the coarser maps are added."""
    return logits if coarser is None else logits + _resized(coarser, logits.shape[-2:])


def _resized(maps: Tensor, size: torch.Size) -> Tensor:
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def _by_name(selections: Mapping[str, Selection | None]) -> dict[str, Selection]:
    """Every selection; two entries where queries and keys were selected separately."""
    made = {}
    for scale, chosen in selections.items():
        if chosen is None:
            continue
        if chosen.queries is None:
            made[scale] = chosen
        else:
            made[f"{scale} queries"] = chosen.queries
            made[f"{scale} keys"] = chosen._replace(queries=None)
    return made


_REACH = 16.0  # pixels per unit of the last convolution: offsets start at the scale of objects


def _check(classes: Any, things: tuple[int, ...], task: Any, objects: Any, embedding: Any) -> None:
    if task not in TASKS:
        raise ValueError(f"task: expected one of {quoted(TASKS)}, got {task!r}")
    if objects not in OBJECTS:
        raise ValueError(f"objects: expected one of {quoted(OBJECTS)}, got {objects!r}")
    if isinstance(classes, bool) or not isinstance(classes, int) or not 1 <= classes <= 255:
        raise ValueError(f"classes: expected an int from 1 to 255, got {classes!r}")
    if any(not 0 <= thing < classes for thing in things) or len(set(things)) < len(things):
        raise ValueError(f"things: expected different classes below {classes}, got {things}")
    if task != "semantic" and not things:
        raise ValueError(f'things: expected classes to count for task "{task}", got none')
    if isinstance(embedding, bool) or not isinstance(embedding, int) or embedding < 0:
        raise ValueError(f"embedding: expected an int from 0, got {embedding!r}")
