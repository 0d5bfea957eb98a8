# SPDX-License-Identifier: BSD-3-Clause
"""Argument checks that modules share: one line, naming the argument, the expected, the given."""

import torch
from torch import Tensor

from maskattn_kernels.problem import MAX_HEAD_DIM


def check_positive_int(name: str, value: object) -> None:
    """Raises unless `value` is an int from 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected a positive int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name}: expected a positive int, got {value}")


def check_fraction(name: str, value: object) -> None:
    """Raises unless `value` is a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number from 0 to 1, got {type(value).__name__}")
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name}: expected a number from 0 to 1, got {value}")


def check_heads(name: str, channels: int, num_heads: int) -> None:
    """Raises unless `channels`, the argument called `name`, splits into `num_heads` heads."""
    check_positive_int(name, channels)
    check_positive_int("num_heads", num_heads)
    if channels % num_heads:
        raise ValueError(f"num_heads: expected a divisor of {name}={channels}, got {num_heads}")
    if channels // num_heads > MAX_HEAD_DIM:
        raise ValueError(
            f"num_heads: expected at least {-(-channels // MAX_HEAD_DIM)} for {name}={channels} "
            f"(a head has at most {MAX_HEAD_DIM} channels), got {num_heads}"
        )


def kind_of(value: object) -> str:
    """How an error message calls what came: a tensor's dtype, or a type."""
    return f"dtype {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def at_least_float32(t: Tensor) -> Tensor:
    """`t`, in float32 if its dtype is of lower precision."""
    return t.to(torch.promote_types(t.dtype, torch.float32))
