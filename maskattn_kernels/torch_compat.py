# SPDX-License-Identifier: BSD-3-Clause
"""What the core takes from torch beyond its documented interface: what to look at for a new torch.

Names of torch that begin with an underscore appear in this module only (a test enforces it for the
core). Works with torch 2.11 to 2.13.
"""

from typing import TypeVar

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
