# SPDX-License-Identifier: BSD-3-Clause
"""`FixedCountCore`: masked attention in standard operators, for runtimes that lack our op.

Exporters and other runtimes want shapes that depend on no value, so the number of selected tokens
is fixed: it is known where a selector keeps a share of the tokens. The work stays n x n for n
selected tokens:

    mask -> cumulative sum, scatter -> positions (n)      the k-th selected token is at place k
    query, key, value -> gather -> (n, D)
    product, softmax, product; scatter into zeros (N, D)
"""

import torch
from torch import Tensor

from maskattn_kernels.nn.cores import AttentionCore, Mask
from maskattn_kernels.token_index import TokenIndex, with_heads

__all__ = ["FixedCountCore"]


class FixedCountCore(AttentionCore):
    """Attention over ``count`` selected tokens, by gather, matrix products, softmax and scatter.

    Same results as `SparseAttentionCore` for masks that select ``count`` tokens in every row. Other
    masks give wrong results: there is no check, as a value cannot be looked at in an exported
    program. A mask of None selects all tokens, whatever ``count`` is.

    Args:
        count: of selected tokens in each row of a mask, from 0.

    Shapes:
        As `AttentionCore`; heads share a mask, bool (B|1,N) or (B|1,1,N).

    Example:
        >>> import torch
        >>> from maskattn_kernels.nn import SparseAttentionCore
        >>> from maskattn_kernels.nn.fixed_count import FixedCountCore
        >>> q, k, v = torch.randn(3, 1, 2, 5, 4)
        >>> mask = torch.tensor([[True, False, True, True, False]])
        >>> fixed = FixedCountCore(3)(q, k, v, key_mask=mask, query_mask=mask)
        >>> sparse = SparseAttentionCore()(q, k, v, key_mask=mask, query_mask=mask)
        >>> torch.allclose(fixed, sparse, atol=1e-5)
        True
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

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
        if self.count == 0 and not (key_mask is None and query_mask is None):
            return torch.zeros_like(query)
        whole = query
        at_keys = self._positions(key_mask, key)
        at_queries = at_keys if query_mask is key_mask else self._positions(query_mask, query)
        if at_keys is not None:
            key, value = _rows(key, at_keys), _rows(value, at_keys)
            if key_bias is not None:
                bias = with_heads(key_bias)
                key_bias = bias.gather(-1, at_keys.expand(*bias.shape[:2], -1))
        if at_queries is not None:
            query = _rows(query, at_queries)
        scores = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-2, -1))
        if key_bias is not None:
            scores = scores + with_heads(key_bias).unsqueeze(-2).to(scores.dtype)
        out = torch.matmul(torch.softmax(scores, dim=-1), value)
        if at_queries is None:
            return out
        places = at_queries.unsqueeze(-1).expand_as(out)
        return torch.zeros_like(whole).scatter(2, places, out)

    def _positions(self, mask: Mask | None, tokens: Tensor) -> Tensor | None:
        """int64 (B,1,n), the selected tokens in ascending order; None = all."""
        length = tokens.shape[2]
        if mask is None or self.count == length:
            return None
        if isinstance(mask, TokenIndex):
            raise TypeError("mask: expected a bool Tensor, got a TokenIndex")
        rows = with_heads(mask).expand(tokens.shape[0], -1, -1)
        # Tokens that are not selected are written to place n, which is cut off.
        place = torch.where(rows, rows.long().cumsum(-1) - 1, self.count)
        numbers = torch.arange(length, device=mask.device).expand_as(place)
        written = place.new_zeros((*place.shape[:-1], self.count + 1))
        return written.scatter(-1, place, numbers)[..., : self.count]

    def extra_repr(self) -> str:
        return f"{self.count}"


def _rows(tokens: Tensor, positions: Tensor) -> Tensor:
    """Of (B,H,N,D) the tokens at (B,1,n): (B,H,n,D)."""
    batch, heads, _, channels = tokens.shape
    places = positions.unsqueeze(-1).expand(batch, heads, -1, channels)
    return tokens.gather(2, places)
