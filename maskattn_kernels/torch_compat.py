# SPDX-License-Identifier: BSD-3-Clause
"""What the core takes from torch beyond its documented interface: what to look at for a new torch.

Names of torch that begin with an underscore appear in this module only (a test enforces it for the
core). Works with torch 2.11 to 2.13.
"""

import ctypes
import functools
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch._ops import OpOverload as OpOverload
from torch._subclasses.fake_tensor import FakeTensor as FakeTensor
from torch.autograd import forward_ad

any_autocast_enabled = torch._C._is_any_autocast_enabled
"""Whether autocast is on for any device: cheaper than a look at one device."""

below_autograd = torch._C._AutoDispatchBelowAutograd
"""A context in which ops run without their registered autograd."""

in_functorch = torch._C._are_functorch_transforms_active
"""Whether a transform of torch.func is running."""

in_jit_trace = torch._C._is_tracing
"""Whether torch.jit.trace is running."""


def in_forward_mode() -> bool:
    """Whether a context of forward-mode derivatives is open."""
    return forward_ad._current_level >= 0


def has_autocast(device: str) -> bool:
    """torch.amp.is_autocast_available, which the torch.compile of torch 2.11 cannot trace."""
    return device != "meta"


def direct(op: Any) -> Callable[..., Any]:
    """An OpOverload without the Python frame that a call of it costs."""
    return op._op


def apply_outside_transforms(function: Any, *args: Any) -> Any:
    """`function.apply`, without its looks at the transforms of torch.func, of which none runs."""
    return super(torch.autograd.Function, function).apply(*args)


_Tuple = TypeVar("_Tuple", bound=type)


def register_tuple(cls: _Tuple) -> _Tuple:
    """Names a NamedTuple of tensors in files: exported programs and weights_only checkpoints."""
    torch.serialization.add_safe_globals([cls])
    pytree._register_namedtuple(cls, serialized_type_name=f"maskattn_kernels.{cls.__name__}")
    return cls


def nested_lengths(nested: Tensor) -> Tensor:
    """int64 (B,): how many rows each tensor of a strided nested tensor has."""
    return nested._nested_tensor_size()[:, 0]


def nested_from_padded(padded: Tensor, valid: Tensor) -> Tensor:
    """(B,N,C) as a nested tensor of the rows where bool (B,N) `valid` is set, the first ones."""
    return torch._nested_tensor_from_mask(padded, valid)


def packs_layers() -> bool:
    """Whether torch has oneDNN, and with it the ops that torch.compile's freezing calls on CPUs."""
    return torch.backends.mkldnn.is_available()


#: What the fused layers below compute last, by name: oneDNN's own name, its numbers and variant.
_ACTIVATIONS: dict[str | None, tuple[str, list[float], str]] = {
    None: ("none", [], ""),
    "gelu": ("gelu", [], "none"),
    "relu": ("relu", [], ""),
    "relu6": ("hardtanh", [0.0, 6.0], ""),
}


def pack_convolution(conv: torch.nn.Conv2d) -> Tensor:
    """The weight in oneDNN's own order, chosen for this processor and dtype."""
    weight, places = conv.weight.detach(), (conv.padding, conv.stride, conv.dilation)
    return torch.ops.mkldnn._reorder_convolution_weight(weight, *places, conv.groups, None)


def packed_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    places: tuple[list[int], ...],
    groups: int,
    activation: str | None = None,
) -> Tensor:
    """A convolution with a weight of `pack_convolution`, and an activation after it.

    Args:
        places: padding, stride and dilation, each for height and width.
        activation: "gelu" (the exact one), "relu", "relu6" or None.
    """
    return torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, *places, groups, *_ACTIVATIONS[activation]
    )


def onednn_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None = None
) -> Tensor:
    """torch.nn.functional.linear by oneDNN, also in float32, for which torch takes MKL.

    Args:
        activation: as in `packed_convolution`.
    """
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, *_ACTIVATIONS[activation])


def cpu_has_amx() -> bool:
    """Whether the processor multiplies tiles of bfloat16: AMX."""
    return torch.cpu._is_amx_tile_supported()


def cpu_has_bfloat16_pairs() -> bool:
    """Whether the processor multiplies vectors of pairs of bfloat16: AVX512-BF16."""
    return torch.cpu._is_avx512_bf16_supported()


@functools.cache
def driver_cuda() -> int:
    """The CUDA version of the NVIDIA driver, as 13020 for 13.2; 0 where there is no driver."""
    version = ctypes.c_int()
    with suppress(OSError):
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return version.value
