# SPDX-License-Identifier: BSD-3-Clause
"""Argument checks that modules share: one line, naming the argument, the expected, the given."""

import numbers

import torch
from torch import Tensor

from maskattn_kernels.problem import MAX_HEAD_DIM
from maskattn_kernels.torch_compat import has_autocast


def positive_int(name: str, value: object) -> int:
    """The value, if it is an int from 1, NumPy's among them; else raises."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: expected a positive int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name}: expected a positive int, got {value}")
    return int(value)


def fraction(name: str, value: object) -> float:
    """The value, if it is a number from 0 to 1, NumPy's among them; else raises."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number from 0 to 1, got {type(value).__name__}")
    number = float(value)
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"{name}: expected a number from 0 to 1, got {value}")
    return number


def positive_number(name: str, value: object) -> float:
    """The value, if it is a finite number above 0, NumPy's among them; else raises."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number above 0, got {type(value).__name__}")
    number = float(value)
    if not 0.0 < number < float("inf"):
        raise ValueError(f"{name}: expected a finite number above 0, got {value}")
    return number


def split_in_heads(name: str, channels: object, num_heads: object) -> tuple[int, int]:
    """(channels, heads), if `channels`, the argument called `name`, splits into `num_heads`."""
    channels = positive_int(name, channels)
    num_heads = positive_int("num_heads", num_heads)
    if channels % num_heads:
        raise ValueError(f"num_heads: expected a divisor of {name}={channels}, got {num_heads}")
    if channels // num_heads > MAX_HEAD_DIM:
        raise ValueError(
            f"num_heads: expected at least {-(-channels // MAX_HEAD_DIM)} for {name}={channels} "
            f"(a head has at most {MAX_HEAD_DIM} channels), got {num_heads}"
        )
    return channels, num_heads


def share_of(fraction: float, tokens: int | Tensor) -> int:
    """``round(fraction * tokens)``; sizes are tensors in a run of torch.jit.trace."""
    return round(fraction * (int(tokens) if isinstance(tokens, Tensor) else tokens))


def tokens_kept(keep: float, min_keep: int, tokens: int | Tensor) -> int:
    """How many tokens a selector with a keep ratio selects."""
    return min(max(min_keep, share_of(keep, tokens)), int(tokens))


def check_dtype_of_weights(name: str, t: Tensor, weight: object) -> None:
    """Raises unless the input called `name` has the dtype of `weight`, or autocast casts both."""
    # The weight of a quantised layer is a method.
    if not isinstance(weight, Tensor) or t.dtype is weight.dtype:
        return
    device = t.device.type
    if has_autocast(device) and torch.is_autocast_enabled(device) and t.is_floating_point():
        return
    raise TypeError(f"{name}: expected the weights' dtype {weight.dtype}, got {t.dtype}")


def kind_of(value: object) -> str:
    """How an error message calls what came: a tensor's dtype, or a type."""
    return f"dtype {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def at_least_float32(t: Tensor) -> Tensor:
    """`t`, in float32 if its dtype is of lower precision."""
    return t.to(torch.promote_types(t.dtype, torch.float32))
