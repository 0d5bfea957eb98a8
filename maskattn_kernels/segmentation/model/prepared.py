# SPDX-License-Identifier: BSD-3-Clause
"""Prepared copies of networks, kept until the network changes; and how many images suit a CPU."""

from argparse import ArgumentParser
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from maskattn_kernels.common.command_line import fraction
from maskattn_kernels.common.text import quoted
from maskattn_kernels.models import fast_bfloat16, prepare_for_inference
from maskattn_kernels.segmentation.model.mirrored import TTA
from maskattn_kernels.segmentation.model.network import SegmentationNetwork

__all__ = [
    "PRECISIONS",
    "add_inference_arguments",
    "add_score_argument",
    "images_together",
    "inference_dtype",
    "prepared",
    "remembered",
]

PRECISIONS: dict[str, torch.dtype | None] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "auto": None,
}

#: Bytes of the largest feature map of a batch on a CPU. Larger ones leave the caches, and the
#: allocator gives their memory back after each layer: measured in docs/benchmarks.md.
_LARGEST_MAP = 8 << 20


def add_inference_arguments(parser: ArgumentParser) -> None:
    """Give a command that runs a network ``--precision``, ``--compile`` and ``--tta``.

    Args:
        parser: of the command.
    """
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="auto = bfloat16 where it is faster, which changes a few labels (default float32)",
    )
    parser.add_argument("--compile", action="store_true", help="the network, by torch.compile")
    parser.add_argument(
        "--tta",
        choices=TTA,
        help="flip = the mean with the mirrored image: a little better, at twice the time",
    )


def add_score_argument(parser: ArgumentParser) -> None:
    """Give a command that finds objects the argument ``--min_score``.

    Args:
        parser: of the command.
    """
    parser.add_argument(
        "--min_score",
        type=fraction,
        default=0.0,
        metavar="SCORE",
        help="leave out objects with a lower score, 0 to 1 (default 0); pixels keep their class",
    )


def inference_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of a precision.

    Args:
        precision: a name in `PRECISIONS`; "auto" is bfloat16 where `fast_bfloat16` is True.
        device: to compute on.

    Raises:
        ValueError: there is no such precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {quoted(PRECISIONS)}, got {precision!r}")
    fallback = torch.bfloat16 if fast_bfloat16(device) else torch.float32
    return PRECISIONS[precision] or fallback


def images_together(
    batch_size: int,
    network: SegmentationNetwork,
    size: tuple[int, int],
    dtype: torch.dtype,
    trained_size: tuple[int, int] | None = None,
) -> int:
    """How many images of one size go through a network at once.

    Args:
        batch_size: at most so many, but on a CPU only as many as have a largest feature map of
            8 MiB.
        network: on the device that computes.
        size: height and width of the images.
        dtype: of the feature maps.
        trained_size: of the images that the network is trained on: where ``size`` is larger, only
            as many images as have the pixels of ``batch_size`` of those.
    """
    pixels = size[0] * size[1]
    if trained_size is not None:
        batch_size = min(batch_size, batch_size * trained_size[0] * trained_size[1] // pixels)
    head = network.body.head
    if head.weight.device.type == "cpu":
        # Of the last stage of the decoder: what comes up, and the skip; or the logits.
        there = 2 * head.in_channels // network.body.finest**2
        widest = max(there, network.config["classes"])
        batch_size = min(batch_size, _LARGEST_MAP // (widest * pixels * dtype.itemsize))
    return max(1, batch_size)


_Made = TypeVar("_Made", bound=nn.Module)


@dataclass
class _State:
    """What a network was made of; tensors themselves, so that no new one is taken for an old one.

    Modules are weak references: the state of a network does not keep it alive.
    """

    plain: list[Any]
    tensors: list[Tensor | None]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _State)
            and self.plain == other.plain
            and len(self.tensors) == len(other.tensors)
            and all(a is b for a, b in zip(self.tensors, other.tensors, strict=True))
        )


_KEPT: WeakKeyDictionary[nn.Module, dict[Hashable, tuple[_State, nn.Module]]]
_KEPT = WeakKeyDictionary()


def prepared(network: nn.Module, dtype: torch.dtype, compile: bool = False) -> nn.Module:
    """`prepare_for_inference`, or what it returned before if the network is still the same.

    Args:
        network: any module that can be prepared.
        dtype, compile: as in `prepare_for_inference`.
    """
    return remembered(
        network, (dtype, compile), lambda: prepare_for_inference(network, dtype, compile)
    )


def remembered(network: nn.Module, key: Hashable, make: Callable[[], _Made]) -> _Made:
    """What ``make`` makes of a network, or what it made before if the network is still the same.

    Changes of tensors in place are seen as autograd sees them, by their version: those made through
    ``tensor.data`` are not.

    Args:
        network: nothing that is made may refer to it, or it is kept alive.
        key: tells apart what is made of one network.
        make: makes a module.
    """
    kept, state = _KEPT.setdefault(network, {}), _state(network)
    before = kept.get(key)
    if before is not None and before[0] == state:
        return cast(_Made, before[1])
    made = make()
    kept[key] = (state, made)
    return made


def _state(network: nn.Module) -> _State:
    plain: list[Any] = []
    tensors: list[Tensor | None] = []
    for module in network.modules():
        plain += (ref(module), len(module._forward_hooks), len(module._forward_pre_hooks))
        plain += (v for v in vars(module).values() if isinstance(v, (int, float, str)))
        own = [*module._parameters.values(), *module._buffers.values()]
        for t in (t for t in own if t is not None):
            # A tensor of inference mode has no version: it counts as changed.
            version = object() if t.is_inference() else t._version
            plain += (version, t.device, t.dtype, t.data_ptr())  # Module.to changes no version
        tensors += own
    return _State(plain, tensors)
