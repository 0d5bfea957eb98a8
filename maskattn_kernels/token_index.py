# SPDX-License-Identifier: BSD-3-Clause
"""Which tokens are selected, as a list of their positions: the form that the kernels read."""

from typing import NamedTuple

import torch
from torch import Tensor

from maskattn_kernels.torch_compat import register_tuple


@register_tuple
class TokenIndex(NamedTuple):
    """The positions of the selected tokens of each batch entry and head.

    Made by `select_tokens`, once for a mask, and then shared by heads, layers, forward and
    backward. It is a plain tuple of tensors, hence a pytree: it goes through `torch.compile`,
    `torch.export`, `torch.vmap` and activation checkpointing as any tensor does.

    Attributes:
        indices: int32 `(B | 1, H | 1, N)`, the positions of the selected tokens in ascending order;
            entries past the count hold `N`, which is no token.
        counts: int32 `(B | 1, H | 1)`, how many tokens are selected.

    One made by hand is checked at every call on the CPU, and clamped to the sequence on a GPU,
    which cannot raise without waiting for it. Do not change one in another thread during a call.

    Example:
        >>> import torch
        >>> from maskattn_kernels import TokenIndex, select_tokens
        >>> indices, counts = select_tokens(torch.tensor([[True, False, True, False]]))
        >>> TokenIndex(indices, counts).indices
        tensor([[[0, 2, 4, 4]]], dtype=torch.int32)
    """

    indices: Tensor
    counts: Tensor

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> "TokenIndex":
        """The index on a device.

        Args:
            device, non_blocking: as of `torch.Tensor.to`.

        Example:
            >>> import torch
            >>> from maskattn_kernels import select_tokens
            >>> select_tokens(torch.ones(1, 3, dtype=torch.bool)).to("meta").counts.device
            device(type='meta')
        """
        return TokenIndex(*(t.to(device, non_blocking=non_blocking) for t in self))

    def to_mask(self) -> Tensor:
        """The mask bool `(B | 1, H | 1, N)` that `select_tokens` turns into this index.

        Example:
            >>> import torch
            >>> from maskattn_kernels import select_tokens
            >>> select_tokens(torch.tensor([[True, False, True]])).to_mask()
            tensor([[[ True, False,  True]]])
        """
        n = self.indices.shape[-1]
        past_count = torch.arange(n, device=self.indices.device) >= self.counts.unsqueeze(-1)
        outside = past_count | (self.indices < 0) | (self.indices > n)
        tokens = torch.where(outside, n, self.indices).long()
        mask = tokens.new_zeros((*tokens.shape[:-1], n + 1), dtype=torch.bool)
        return mask.scatter(-1, tokens, True)[..., :n]  # column n: the entries past the count


def select_tokens(mask: Tensor) -> TokenIndex:
    """Turns a mask into the positions of its selected tokens, without a host synchronisation.

    Args:
        mask: bool `(B, N)` or `(B, H, N)`, True where a token is selected. B and H may be 1 to be
            shared.

    Returns:
        A `TokenIndex` on the mask's device; a `(B, N)` mask gives one with a head dimension of 1.

    Raises:
        TypeError: mask is not a tensor, or not bool.
        ValueError: mask has not 2 or 3 dimensions.
        NotImplementedError: mask is sparse or nested.

    Gradients: none, positions are integers.

    Example:
        >>> import torch
        >>> from maskattn_kernels import select_tokens
        >>> index = select_tokens(torch.tensor([[True, False, True, False]]))
        >>> index.indices.tolist(), index.counts.tolist()
        ([[[0, 2, 4, 4]]], [[2]])
    """
    check_mask("mask", mask)
    # The dispatcher is the seam here: backends/__init__.py defines this op, so that this module
    # needs to import no backend and stays a leaf.
    indices, counts = torch.ops.maskattn.select_tokens(with_heads(mask))
    return TokenIndex(indices, counts)


def check_mask(name: str, mask: object) -> None:
    """Raises unless `mask` is a dense bool tensor of 2 or 3 dimensions."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name}: expected a bool tensor, got {type(mask).__name__}")
    if mask.layout is not torch.strided or mask.is_nested:
        kind = "nested" if mask.is_nested else str(mask.layout)
        raise NotImplementedError(f"{name}: expected a dense tensor, got a {kind} one")
    if mask.dtype is not torch.bool:
        raise TypeError(f"{name}: expected dtype torch.bool (True = selected), got {mask.dtype}")
    if mask.dim() != 2 and mask.dim() != 3:
        shape = tuple(mask.shape)
        raise ValueError(f"{name}: expected shape (B, N) or (B, H, N), got {shape}")


def with_heads(per_token: Tensor) -> Tensor:
    """`(B, N)` seen as `(B, 1, N)`; `(B, H, N)` as it is."""
    return per_token.unsqueeze(1) if per_token.dim() == 2 else per_token
