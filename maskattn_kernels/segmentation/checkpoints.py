# SPDX-License-Identifier: BSD-3-Clause
"""`Checkpoint`: a trained network, ready to use, in a folder that is safe to load.

The folder holds ``model.safetensors`` (weights, and in its header the constructor's arguments, the
classes and the scores), ``config.json`` (a copy of that header for people) and ``README.md`` (a
model card). None can hold code. One file carries everything that is read back, so no ending of the
process can leave weights of one network beside the description of another.
"""

import copy
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack  # comes with torch; Python's own is of 3.11

from maskattn_kernels.common.text import one_line
from maskattn_kernels.models.selector_dial import Keep
from maskattn_kernels.segmentation.checkpoint_files import (
    FORMAT,
    CheckpointError,
    read_description,
    read_network,
    upload,
    weights_file,
    write_checkpoint,
)
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.frame import FrameKind, as_frame_kind, as_size
from maskattn_kernels.segmentation.data.inputs import AnyImage, OneImage, listed
from maskattn_kernels.segmentation.data.sample import VOID, Classes
from maskattn_kernels.segmentation.drift import Reference
from maskattn_kernels.segmentation.infer import Pipeline, SegmentOptions, StreamOptions
from maskattn_kernels.segmentation.model.dialed import dialed
from maskattn_kernels.segmentation.model.network import SegmentationNetwork
from maskattn_kernels.segmentation.results import Segmentation
from maskattn_kernels.segmentation.tiling import OVERLAP, Tiling

__all__ = ["Checkpoint", "CheckpointError", "as_checkpoint"]


@dataclass(init=False)
class Checkpoint:
    """A trained network with all that its use needs.

    Attributes:
        network: with its weights.
        classes: that it tells apart.
        size: height and width of the images that it was trained on, in pixels; one number stands
            for a square.
        frame: what it makes of a whole image: "fit" = scaled so that it lies within ``size``, its
            aspect kept; "own" = as it is; "squeeze" = scaled to exactly ``size``.
        metrics: scores at the time of saving, 0 to 100.
        reference: what the images of its training are like, by which `predict` and `evaluate` tell
            images that are not; None = not known.

    Raises:
        TypeError, ValueError: an argument is of another type, there are more or fewer classes than
            outputs of the network, the size is not from 1 to 16384, or there is no such frame.

    Example:
        >>> import tempfile
        >>> from maskattn_kernels.segmentation import Checkpoint, Classes, SegmentationNetwork
        >>> classes = Classes(("sky", "car"), (False, True), ((0, 0, 255), (255, 0, 0)), (0, 1))
        >>> network = SegmentationNetwork(2, classes.things, width=4, depth=2)
        >>> folder = tempfile.mkdtemp()
        >>> Checkpoint(network, classes, size=32).save_pretrained(folder)
        >>> Checkpoint.from_pretrained(folder).classes.names
        ('sky', 'car')
    """

    network: SegmentationNetwork
    classes: Classes
    size: tuple[int, int]
    frame: FrameKind
    metrics: dict[str, float]
    reference: Reference | None

    def __init__(
        self,
        network: SegmentationNetwork,
        classes: Classes,
        size: int | tuple[int, int],
        frame: FrameKind = "fit",
        metrics: dict[str, float] | None = None,
        reference: Reference | None = None,
    ) -> None:
        if not isinstance(network, SegmentationNetwork):
            got = type(network).__name__
            raise TypeError(f"network: expected a SegmentationNetwork, got {got}")
        if not isinstance(classes, Classes):
            raise TypeError(f"classes: expected Classes, got {type(classes).__name__}")
        outputs = network.config["classes"]
        if len(classes) != outputs:
            raise ValueError(
                f"classes: expected {outputs}, as many as the network tells apart, got "
                f"{len(classes)}"
            )
        self.network, self.classes = network, classes
        self.size, self.frame = as_size(size), as_frame_kind(frame)
        self.metrics = {} if metrics is None else metrics
        self.reference = reference

    def description(self) -> dict[str, Any]:
        """All but the weights, for JSON."""
        return {
            "format": FORMAT,
            "network": dict(self.network.config),
            "classes": asdict(self.classes),
            "size": list(self.size),
            "frame": self.frame,
            "metrics": {k: v if math.isfinite(v) else None for k, v in self.metrics.items()},
            "reference": None if self.reference is None else self.reference.description(),
        }

    def save_pretrained(
        self,
        folder: str | Path,
        state: Mapping[str, Tensor] | None = None,
        *,
        half: bool = False,
    ) -> None:
        """Write the folder; what was there before stays good until the new one is whole.

        A model card, README.md, is written too, unless there is one that somebody has edited.

        Args:
            folder: made if it is not there.
            state: weights to save in place of the network's own, under the same names, as the
                processes of a sharded training gather them.
            half: keep weights of convolutions and linear layers in float16: a file of half the
                size, for networks that are not trained further. It is read as float32.

        Raises:
            WriteError: the disk is full, or the folder cannot be written to.
            CheckpointError: with ``half``, a weight is too large for float16.
        """
        tensors = self.network.state_dict() if state is None else state
        write_checkpoint(Path(folder), tensors, self.description(), half)

    def segment_stream(
        self,
        images: Iterable[AnyImage],
        *,
        attended: int | Collection[int] = 0,
        failed: Callable[[DataError], object] | None = None,
        **options: Unpack[StreamOptions],
    ) -> Iterator[Segmentation]:
        """Segment any number of images one after another, in bounded memory.

        Threads read the next images while the network computes.

        Args:
            images: any iterable, also an endless one; each as in `segment`, or a function without
                arguments that returns a `Sample` and is called in a thread.
            attended: number of images, from the first, that also get where each scale attends; or
                the places of these images, from 0.
            failed: called with the error of each image that cannot be read, in a thread; that image
                is left out. None = the error is raised, and ends the iterator.
            options: as in `segment`.

        Returns:
            an iterator of a `Segmentation` for each image, in order.

        Raises:
            ValueError, TypeError: as `segment`; for an image, when the iterator reaches it.
        """
        places = range(attended) if isinstance(attended, int) else attended
        return self._pipeline(attended=places, failed=failed, **options).stream(images)

    @overload
    def segment(self, images: OneImage, **options: Unpack[SegmentOptions]) -> Segmentation: ...

    @overload
    def segment(
        self, images: list[Any] | tuple[Any, ...], **options: Unpack[SegmentOptions]
    ) -> list[Segmentation]: ...

    @overload
    def segment(self, images: np.ndarray | Tensor, **options: Unpack[SegmentOptions]) -> Any: ...

    def segment(
        self,
        images: Any,
        *,
        batch_size: int = 16,
        device: str | torch.device = "auto",
        confidence: float = 0.0,
        min_score: float = 0.0,
        attended: bool = False,
        precision: str = "float32",
        compile: bool = False,
        measured: bool = False,
        tta: str | None = None,
        tiles: int | tuple[int, int] | None = None,
        overlap: float = OVERLAP,
        hybrid: float | None = None,
        keep: Keep | None = None,
        selector: str | None = None,
    ) -> Segmentation | list[Segmentation]:
        """Segment one image or a list of images, of any sizes.

        Args:
            images: one image, or a list or tuple of images; kinds and sizes may differ in a list.
                An image is a path, a PIL image, an array (H,W), (H,W,1), (H,W,3) or (H,W,4), a
                tensor (1,H,W), (3,H,W) or (4,H,W), or a `Sample`. An array or a tensor of four
                dimensions is a list. Arrays and tensors are uint8, or floating point from 0 to 1.
                Colours are RGB; transparent pixels are laid over white; EXIF turns are applied.
            batch_size: images that go through the network together; on a CPU at most as many as it
                computes fastest.
            device: to compute on; "auto" = a GPU if there is one. The network stays there.
            confidence: 0 to 1; pixels whose class has a lower probability become `VOID` (255), and
                belong to no object.
            min_score: 0 to 1; objects with a lower score are left out, their pixels keep the class.
            attended: whether to give also where each scale attends.
            precision: "float32", or "bfloat16", which is faster on processors that multiply it and
                gives some pixels (0.2% to 1.5% in what we compared) another label, where two
                classes score nearly alike. "auto" is bfloat16 on processors that multiply it, and
                float32 elsewhere.
            compile: the network by torch.compile; the first batch takes up to minutes.
            measured: whether to give also how sure the network is of each pixel, see `Measured`.
            tta: test-time augmentation: "flip" = the mean with the mirrored image, at twice the
                time. Not for networks that tell left from right, such as readers of digits.
            tiles: the image at its own pixels in overlapping tiles, whose outputs are blended: side
                of a tile, or its height and width. None = the image as a whole, see `frame`.
            overlap: least share of a tile's side that its neighbour covers too, 0 to 0.9.
            hybrid: 0 to 1: the image first as a whole, fitted into `size`, and then this share of
                its tiles, those that cover most of where the first look is unsure. Tiles are as
                large as `size` unless ``tiles`` says otherwise. None = all tiles, or none without
                ``tiles``.
            keep, selector: attend to other tokens, as in `with_masks`; None = as trained.

        What runs is a copy of the network made by `maskattn_kernels.models.prepare_for_inference`.
        It is made at the first call, and anew after the network has changed, though not for changes
        in place through ``tensor.data``.

        Returns:
            a `Segmentation` for one image, else a list of them in the same order; all maps have the
            image's own size. They hold no gradients.

        Raises:
            TypeError: an image is of another type or dtype.
            ValueError: an image has another shape or values that are not allowed, a file cannot be
                read, or an option is wrong. The message names the image.

        Example:
            >>> import numpy as np
            >>> from maskattn_kernels.segmentation import Checkpoint, Classes, SegmentationNetwork
            >>> classes = Classes(("sky", "car"), (False, True), ((0, 0, 255), (255, 0, 0)), (0, 1))
            >>> network = SegmentationNetwork(2, classes.things, width=4, depth=2)
            >>> checkpoint = Checkpoint(network, classes, size=32)  # or Checkpoint.from_pretrained
            >>> found = checkpoint.segment(np.zeros((40, 60, 3), np.uint8))
            >>> found.semantic.shape, found.instance.shape
            ((40, 60), (40, 60))
            >>> classes.names[found.semantic[0, 0]] in ("sky", "car")
            True
            >>> masks = {thing.number: found.instance == thing.number for thing in found.objects}
            >>> found.overlay().size  # a PIL image
            (60, 40)
            >>> len(checkpoint.segment([np.zeros((8, 8), np.uint8), found.overlay()]))
            2
        """
        items, is_one = listed(images)
        shown = range(len(items) if attended else 0)
        pipeline = self._pipeline(
            batch_size=batch_size,
            device=device,
            confidence=confidence,
            min_score=min_score,
            attended=shown,
            precision=precision,
            compile=compile,
            measured=measured,
            tta=tta,
            tiles=tiles,
            overlap=overlap,
            hybrid=hybrid,
            keep=keep,
            selector=selector,
        )
        few = 0 < len(items) <= batch_size
        results = pipeline.batch(items) if few else list(pipeline.stream(items))
        return results[0] if is_one else results

    def _pipeline(
        self,
        *,
        tiles: int | tuple[int, int] | None = None,
        overlap: float = OVERLAP,
        hybrid: float | None = None,
        keep: Keep | None = None,
        selector: str | None = None,
        **options: Any,
    ) -> Pipeline:
        if tiles is not None or hybrid is not None:
            options["tiling"] = Tiling(self.size if tiles is None else tiles, overlap, hybrid)
        network = dialed(self.network, keep, selector)
        return Pipeline(network, self.classes, self.size, self.frame, **options)

    def with_masks(self, keep: Keep | None = None, selector: str | None = None) -> "Checkpoint":
        """The same checkpoint, with a copy of its network that attends to other tokens.

        It has no `reference`, which is what the network gives with the masks of its training.

        Args:
            keep: fraction of tokens that attention takes at each scale, 0 to 1; or of scales by
                name, see `SelectorDial.set_keep`. None = as it is.
            selector: rule that chooses them: "entropy" (queries where a first guess is least sure),
                "random" or "none" (all tokens) for every network; "topk" or "local" for one with
                learned masks. None = as it is.

        Raises:
            TypeError, ValueError: the selector has no ratio, or does not fit the network.

        Example:
            >>> from maskattn_kernels.segmentation import Checkpoint, Classes, SegmentationNetwork
            >>> classes = Classes(("sky", "sea"), (False, False), ((0, 0, 255), (0, 9, 9)), (0, 1))
            >>> network = SegmentationNetwork(2, task="semantic", width=4, depth=2)
            >>> quick = Checkpoint(network, classes, size=32).with_masks(keep=0.1)
            >>> quick.network.config["keep"], network.config["keep"]
            (0.1, 0.25)
        """
        other = copy.copy(self)
        other.network = dialed(self.network, keep, selector)
        if other.network is not self.network:
            other.reference = None  # it is what the network with the trained masks gives
        return other

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "Checkpoint":
        """Read a folder that `save_pretrained` wrote, or one of the Hugging Face hub.

        Args:
            source: a folder; a hub id as ``hf:owner/name``, also without ``hf:`` where no folder
                here is called "owner"; or the name of a network that comes with the package, such
                as "nuclei". Nothing read there is run as code.

        Returns:
            the checkpoint, its network on the CPU and in eval mode.

        Raises:
            CheckpointError: one line on what is missing, damaged, or does not fit.
        """
        file = weights_file(source)
        described = read_description(file)
        network = read_network(file, described.get("network"))
        try:
            names = described["classes"]
            classes = Classes(
                tuple(names["names"]),
                tuple(names["is_thing"]),
                tuple((r, g, b) for r, g, b in names["colors"]),
                tuple(names["ids"]),
                tuple(names.get("void_ids", (VOID,))),
            )
            metrics = {
                str(k): math.nan if v is None else float(v) for k, v in described["metrics"].items()
            }
            # Before frames had kinds, there were squares into which images were squeezed.
            frame = described.get("frame", "squeeze")
            kept = described.get("reference")
            reference = None if kept is None else Reference.from_description(kept)
            return cls(network, classes, described["size"], frame, metrics, reference)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            reason = one_line(error)[:200]
            raise CheckpointError(f"{file}: not saved by save_pretrained ({reason})") from None

    def push_to_hub(self, repo: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload the checkpoint to the Hugging Face hub; returns its address there.

        The model card is a new one, but for a card on the hub that somebody has edited: it stays.

        Args:
            repo: ``owner/name``; made if it is not there.
            private: of a new repository.
            token: None = that of ``hf auth login``.

        Raises:
            RuntimeError: the hub refused, in one line.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload(folder, repo, private, token)


def as_checkpoint(checkpoint: Checkpoint | str | Path) -> Checkpoint:
    """The checkpoint itself, or the one that `Checkpoint.from_pretrained` reads."""
    if isinstance(checkpoint, Checkpoint):
        return checkpoint
    return Checkpoint.from_pretrained(checkpoint)
