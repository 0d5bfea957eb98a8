# SPDX-License-Identifier: BSD-3-Clause
"""Attention cores: the exchangeable middle of `MaskAttention2d`.

A core takes projected queries, keys and values and gives attention's output. It has no parameters,
so exchanging one leaves ``state_dict`` as it is:

    sparse    `SparseAttentionCore`   masked_attention: work and memory only for selected tokens
    dense     `DenseAttentionCore`    scores, mask, softmax, product: the textbook N x N form
    sdpa      `SDPAAttentionCore`     torch's scaled_dot_product_attention with a mask
    identity  `IdentityAttentionCore` no attention at all: what the rest of a network costs
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskattn_kernels.common.text import quoted
from maskattn_kernels.functional import check_backend, masked_attention
from maskattn_kernels.token_index import TokenIndex, with_heads

__all__ = [
    "AttentionCore",
    "DenseAttentionCore",
    "IdentityAttentionCore",
    "SDPAAttentionCore",
    "SparseAttentionCore",
    "make_core",
]

Mask = Tensor | TokenIndex


class AttentionCore(nn.Module):
    """What every core is called with; subclasses implement `forward`.

    Shapes: ``query`` (B,H,Nq,D), ``key`` and ``value`` (B,H,Nk,D); masks bool (B|1,N) or (B|1,H,N)
    with True = selected, or a `TokenIndex`, or None for all tokens; ``key_bias`` (B|1,Nk) or
    (B|1,H,Nk) is added to the scaled scores of its key. Returns (B,H,Nq,D): zeros for queries that
    are not selected and wherever no key is. The scale is 1/sqrt(D). A core keeps no parameter and
    no buffer.

    Example:
        >>> import torch
        >>> from maskattn_kernels.nn import DenseAttentionCore, SparseAttentionCore
        >>> q, k, v = torch.randn(3, 1, 2, 5, 4)
        >>> mask = torch.tensor([[True, False, True, True, False]])
        >>> dense = DenseAttentionCore()(q, k, v, key_mask=mask, query_mask=mask)
        >>> sparse = SparseAttentionCore()(q, k, v, key_mask=mask, query_mask=mask)
        >>> torch.allclose(dense, sparse, atol=1e-5)
        True
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        key_mask: Mask | None = None,
        query_mask: Mask | None = None,
        key_bias: Tensor | None = None,
    ) -> Tensor:
        raise NotImplementedError("AttentionCore.forward: a subclass must implement it")


class SparseAttentionCore(AttentionCore):
    """`masked_attention`: tokens that are not selected cost nothing.

    Args:
        backend: handed to `masked_attention`; None = the best backend that can run.

    Example:
        >>> from maskattn_kernels.nn import SparseAttentionCore
        >>> SparseAttentionCore(backend="reference")
        SparseAttentionCore(backend=reference)
    """

    def __init__(self, backend: str | None = None) -> None:
        super().__init__()
        check_backend(backend)
        self.backend = backend

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        key_mask: Mask | None = None,
        query_mask: Mask | None = None,
        key_bias: Tensor | None = None,
    ) -> Tensor:
        return masked_attention(
            query,
            key,
            value,
            key_mask=key_mask,
            query_mask=query_mask,
            key_bias=key_bias,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return "" if self.backend is None else f"backend={self.backend}"


class DenseAttentionCore(AttentionCore):
    """Plain dense attention, every score formed: the baseline, and the easiest core to read.

    Time O(Nq Nk D) and memory O(Nq Nk), whatever is selected. Same results as `SparseAttentionCore`
    for finite inputs; that a NaN in a token that is not selected changes nothing is a promise of
    the sparse core alone.

    Example:
        >>> import torch
        >>> from maskattn_kernels.nn import DenseAttentionCore
        >>> q, k, v = torch.randn(3, 1, 1, 4, 8)
        >>> nothing = torch.zeros(1, 4, dtype=torch.bool)
        >>> DenseAttentionCore()(q, k, v, key_mask=nothing).abs().sum()
        tensor(0.)
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        key_mask: Mask | None = None,
        query_mask: Mask | None = None,
        key_bias: Tensor | None = None,
    ) -> Tensor:
        scores = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-2, -1))
        if key_bias is not None:
            scores = scores + with_heads(key_bias).unsqueeze(-2).to(scores.dtype)
        valid = None  # queries with a result: selected, and at least one key is
        if key_mask is not None:
            key_mask = _as_bool(key_mask)
            # The lowest finite number and not -inf: softmax of a row of -inf is NaN, in the
            # gradient too.
            lowest = torch.finfo(scores.dtype).min
            scores = scores.masked_fill(~key_mask.unsqueeze(-2), lowest)
            valid = key_mask.any(-1, keepdim=True)
        if query_mask is not None:
            query_mask = _as_bool(query_mask)
            valid = query_mask if valid is None else valid & query_mask
        out = torch.matmul(torch.softmax(scores, dim=-1), value)
        return out if valid is None else out.masked_fill(~valid.unsqueeze(-1), 0.0)


class SDPAAttentionCore(AttentionCore):
    """torch's fused `scaled_dot_product_attention` with the mask as ``attn_mask``.

    Never an N x N tensor of its own, but still the time of all N x N products: the fair "dense and
    fused" baseline. Same results as `DenseAttentionCore`.

    Example:
        >>> import torch
        >>> from maskattn_kernels.nn import SDPAAttentionCore
        >>> q, k, v = torch.randn(3, 1, 2, 5, 4)
        >>> SDPAAttentionCore()(q, k, v, query_mask=torch.ones(1, 5, dtype=torch.bool)).shape
        torch.Size([1, 2, 5, 4])
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        key_mask: Mask | None = None,
        query_mask: Mask | None = None,
        key_bias: Tensor | None = None,
    ) -> Tensor:
        attn_mask, valid = None, None
        if key_mask is not None:
            attn_mask = _as_bool(key_mask)
            valid = attn_mask.any(-1, keepdim=True)
        if key_bias is not None:
            bias = with_heads(key_bias).to(query.dtype)
            attn_mask = bias if attn_mask is None else bias.masked_fill(~attn_mask, float("-inf"))
        if query_mask is not None:
            query_mask = _as_bool(query_mask)
            valid = query_mask if valid is None else valid & query_mask
        if attn_mask is not None:
            shape = (query.shape[0], query.shape[1], query.shape[2], key.shape[2])
            attn_mask = attn_mask.unsqueeze(-2).expand(shape)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)
        return out if valid is None else out.masked_fill(~valid.unsqueeze(-1), 0.0)


class IdentityAttentionCore(AttentionCore):
    """Attention products left out: gives ``value`` back, whatever the masks.

    Not attention, and no part of a trained network: benchmarks use it to time what surrounds the
    products (projections, norms, convolutions). Needs Nq == Nk.

    Example:
        >>> import torch
        >>> from maskattn_kernels.nn import IdentityAttentionCore
        >>> q, k, v = torch.randn(3, 1, 1, 4, 8)
        >>> IdentityAttentionCore()(q, k, v) is v
        True
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        key_mask: Mask | None = None,
        query_mask: Mask | None = None,
        key_bias: Tensor | None = None,
    ) -> Tensor:
        return value


def make_core(core: str | AttentionCore, backend: str | None = None) -> AttentionCore:
    """The core that ``core`` names ("sparse", "dense", "sdpa", "identity"), or ``core`` itself.

    Raises:
        ValueError: unknown name, or ``backend`` given for a core other than "sparse".
        TypeError: neither a name nor an `AttentionCore`.

    Example:
        >>> from maskattn_kernels.nn import make_core
        >>> make_core("dense")
        DenseAttentionCore()
    """
    if not isinstance(core, (str, AttentionCore)):
        raise TypeError(
            f"core: expected one of {quoted(_CORES)} or an AttentionCore, got {type(core).__name__}"
        )
    if core == "sparse":
        return SparseAttentionCore(backend)
    if backend is not None:
        raise ValueError(f"backend: expected None with core={core!r}, got {backend!r}")
    if isinstance(core, AttentionCore):
        return core
    if core not in _CORES:
        raise ValueError(
            f"core: expected one of {quoted(_CORES)} or an AttentionCore, got {core!r}"
        )
    return _CORES[core]()


_CORES: dict[str, type[AttentionCore]] = {
    "sparse": SparseAttentionCore,
    "dense": DenseAttentionCore,
    "sdpa": SDPAAttentionCore,
    "identity": IdentityAttentionCore,
}


def _as_bool(mask: Mask) -> Tensor:
    """A mask or a TokenIndex as bool (B|1,H|1,N)."""
    return mask.to_mask() if isinstance(mask, TokenIndex) else with_heads(mask)
