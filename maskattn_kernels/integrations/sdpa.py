# SPDX-License-Identifier: BSD-3-Clause
"""`replace_sdpa`: calls of torch's scaled_dot_product_attention run on masked_attention instead.

timm, diffusers and most other libraries compute attention by that one function.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from maskattn_kernels.integrations.calls import Calls, reason_to_hand_on, run

__all__ = ["replace_sdpa"]


@contextmanager
def replace_sdpa(tokens: Tensor | None = None) -> Iterator[Calls]:
    """A context in which calls of ``scaled_dot_product_attention`` run on `masked_attention`.

    Taken are calls whose mask is about keys alone: of one row, (B,1,1,Nk) and the like, or one row
    expanded to all queries; and on CPUs calls without a mask, where the op is the faster one.
    Results are torch's up to rounding, gradients too. All other calls are handed on unchanged:
    masks of pairs, causal ones, dropout, values of another shape than the keys, more than 256
    channels in a head, dtypes and devices without a kernel.

    It acts on the thread that enters it, and on no other. With activation checkpointing, run the
    backward pass inside too. torch.compile compiles such calls into its graph, also for a model
    that was compiled before; compiled calls are not counted.

    Not reached are calls that torch makes itself, such as those of `nn.MultiheadAttention`
    (`swap_attention` is for those), and attention that libraries compute in other ways.

    Args:
        tokens: bool (N,) or (B,N), B may be 1, True = takes part. In calls with N queries and N
            keys, other tokens are neither: they are attended to by none, and attention gives 0 for
            them. `Calls.with_tokens` counts such calls. None = all take part.

    Yields:
        `Calls`: how many were taken, how many handed on, and why.

    Raises:
        TypeError, ValueError: ``tokens`` is not such a mask, or is of another batch size than a
            call with as many tokens.

    Example:
        >>> import torch
        >>> import torch.nn.functional as F
        >>> from maskattn_kernels.integrations.sdpa import replace_sdpa
        >>> q, k, v = torch.randn(3, 2, 4, 6, 8).unbind()
        >>> padding = torch.arange(6) < torch.tensor([[6], [4]])  # True = takes part
        >>> with replace_sdpa() as calls:
        ...     out = F.scaled_dot_product_attention(q, k, v, attn_mask=padding[:, None, None])
        ...     causal = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        >>> print(calls)
        taken 1, handed on 1 (causal 1)
    """
    if tokens is not None:
        tokens = _checked(tokens)
    calls = Calls()
    with _ReplaceSDPA(tokens, calls):
        yield calls


class _ReplaceSDPA(TorchFunctionMode):
    """torch keeps such modes for each thread."""

    def __init__(self, tokens: Tensor | None, calls: Calls) -> None:
        super().__init__()
        self.tokens, self.calls = tokens, calls

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is not scaled_dot_product_attention:
            return func(*args, **kwargs)
        return self._attend(*args, **kwargs)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        reason = reason_to_hand_on(query, key, value, attn_mask, dropout_p, is_causal)
        tokens = self.tokens
        if tokens is not None and not query.shape[2] == key.shape[2] == tokens.shape[1]:
            tokens = None
        self.calls.count(reason, tokens is not None)
        if reason is not None:
            return scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask,
                dropout_p,
                is_causal,
                scale=scale,
                enable_gqa=enable_gqa,
            )
        if tokens is not None and tokens.shape[0] not in (1, query.shape[0]):
            batch = query.shape[0]
            raise ValueError(f"tokens: expected batch size {batch} or 1, got {tokens.shape[0]}")
        return run(query, key, value, attn_mask, tokens=tokens, scale=scale, enable_gqa=enable_gqa)


def _checked(tokens: Any) -> Tensor:
    """As bool (B | 1, N)."""
    if not isinstance(tokens, Tensor) or tokens.dtype is not torch.bool:
        kind = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
        raise TypeError(f"tokens: expected a bool Tensor (True = takes part), got {kind}")
    if tokens.dim() not in (1, 2):
        raise ValueError(f"tokens: expected shape (N,) or (B, N), got {tuple(tokens.shape)}")
    return tokens if tokens.dim() == 2 else tokens[None]
