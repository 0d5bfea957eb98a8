# SPDX-License-Identifier: BSD-3-Clause
"""`DisentangledAttention2d`: whitened pairwise and unary attention over selected pixels.

Disentangled non-local attention (Yin et al., "Disentangled Non-Local Neural Networks", 2020) takes
dot-product attention apart: what a query has in common with a key beyond the mean query
("pairwise"), and which keys matter to every query ("unary"). Both are `masked_attention`:

* Keys may be shifted by any vector, a softmax does not feel it; so the pixels are centred once, and
  the centred pixels give queries, keys and the logits of the unary term. The mean is that of the
  selected queries: only pairs that take part are taken apart.
* A single query of zeros has no scores but the biases of the keys: its attention with the unary
  logits as ``key_bias`` is the unary term, at the cost of one query.

Mean and difference are computed in float32: after a cast to bfloat16, a component that all pixels
share would leave few bits for what tells them apart.
"""

import torch
from torch import Tensor, nn

from maskattn_kernels.nn.checks import at_least_float32, positive_number
from maskattn_kernels.nn.cores import AttentionCore
from maskattn_kernels.nn.selecting import SelectiveAttention2d, as_mask, to_map, to_tokens
from maskattn_kernels.nn.selectors import Selection, Selector
from maskattn_kernels.token_index import TokenIndex

__all__ = ["DisentangledAttention2d"]

PAIRWISE = ("whitened", "plain", None)
UNARY = ("keys", "all", None)


class DisentangledAttention2d(SelectiveAttention2d):
    """What each selected pixel of a feature map finds in the others, and what all of them find.

    For a selected query i, over the selected keys j, with m the mean of the selected queries:

        pair_i = sum_j softmax_j( q_i . k_j / (temperature sqrt(d)) ) v_j     q, k of x - m
        pooled = sum_j softmax_j( u_j ) v_j                                   v of x, u of x - m
        y_i    = out(pair_i + pooled)

    and 0 where no key is selected, and for every pixel that is not a query unless ``unselected`` is
    "mean". There is no residual and no norm. No layer has a bias: it could not change a softmax, or
    it would reach pixels that are not selected.

    Args:
        channels, num_heads, selector, joins_previous, sparsity, unselected, core, backend: as in
            `MaskAttention2d`. With ``sparsity="k"`` all pixels are queries, and m is the mean of
            all.
        pairwise: "whitened" = as above; "plain" = without subtracting m, which with ``unary=None``
            is attention as everywhere; None = no pairwise term.
        unary: "keys" = as above; "all" = pooled over all pixels, also where no key is selected, so
            that the unary term is learned from every pixel; None = no unary term. One of both terms
            must be there.
        temperature: above 0; the scores are divided by it.

    Raises:
        TypeError, ValueError: one line naming the argument, what came, and what was expected.

    Shapes:
        ``x`` (B,C,H,W), any H and W, floating point; output the same shape, and channels_last if
        ``x`` is. Gradients flow to ``x``, the parameters and ``key_bias``; to the mask heads as in
        `MaskAttention2d`. ``key_bias`` is added to the scores of both terms, but not to those of
        ``unary="all"``.

    With the sparse core and ``unary`` other than "all", what a pixel holds that is neither query
    nor key (NaN, anything) changes no bit of the output.

    Example:
        >>> import torch
        >>> from maskattn_kernels.nn import DisentangledAttention2d, TopKSelector
        >>> attention = DisentangledAttention2d(32, num_heads=2, selector=TopKSelector(0.25))
        >>> x = torch.randn(2, 32, 8, 8)
        >>> context = attention(x)
        >>> context.shape
        torch.Size([2, 32, 8, 8])
        >>> (context[0].abs().sum(0) > 0).sum()
        tensor(16)
    """

    def __init__(
        self,
        channels: int,
        num_heads: int = 4,
        *,
        selector: Selector | None = None,
        joins_previous: bool = False,
        sparsity: str = "q+k",
        unselected: str = "zero",
        pairwise: str | None = "whitened",
        unary: str | None = "keys",
        temperature: float = 1.0,
        core: str | AttentionCore = "sparse",
        backend: str | None = None,
    ) -> None:
        super().__init__(
            channels,
            num_heads,
            selector=selector,
            sparsity=sparsity,
            unselected=unselected,
            core=core,
            backend=backend,
        )
        if pairwise not in PAIRWISE:
            raise ValueError(f'pairwise: expected "whitened", "plain" or None, got {pairwise!r}')
        if unary not in UNARY:
            raise ValueError(f'unary: expected "keys", "all" or None, got {unary!r}')
        if pairwise is None and unary is None:
            raise ValueError("unary: expected a term where there is no pairwise one, got None")
        self.pairwise, self.unary = pairwise, unary
        self.temperature = positive_number("temperature", temperature)
        self.qk = (
            None if pairwise is None else nn.Linear(self.channels, 2 * self.channels, bias=False)
        )
        self.value = nn.Linear(self.channels, self.channels, bias=False)
        self.saliency = (
            None if unary is None else nn.Linear(self.channels, self.num_heads, bias=False)
        )
        self.out = nn.Linear(self.channels, self.channels, bias=False)
        self._add_mask_heads(joins_previous)

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        layers = (self.value, self.qk, self.saliency, self.out)
        return tuple(layer for layer in layers if layer is not None)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | TokenIndex | Selection | None = None,
        key_bias: Tensor | None = None,
    ) -> Tensor:
        """The context of the selected pixels of ``x``.

        Args:
            x, mask, key_bias: as in `MaskAttention2d.forward`. A `Selection` with ``queries``
                selects queries and keys apart.

        Returns:
            (B,C,H,W) in the memory format of ``x``.
        """
        keys, queries, key_bias, score = self._chosen(x, mask, key_bias)
        tokens = to_tokens(x)
        asking = None if queries is None else as_mask(queries)
        centred, means = self._centred(tokens, asking)
        value = self._heads(self.value(tokens))
        terms = []
        if self.qk is not None:
            query, key = (self._heads(t) for t in self.qk(centred).chunk(2, -1))
            if means is not None:
                query = query - _own(self._heads(self.qk(means).chunk(2, -1)[0]))
            if self.temperature != 1.0:
                query = query / self.temperature
            masks = {"key_mask": keys, "query_mask": queries}
            terms.append(self.core(query, key, value, **masks, key_bias=key_bias))
        if self.saliency is not None:
            bias = at_least_float32(self.saliency(centred)).transpose(1, 2)
            if self.unary == "all":
                keys = None
            elif key_bias is not None:
                bias = bias + key_bias.unsqueeze(1)
            zero = torch.zeros_like(value[:, :, :1])
            pooled = self.core(zero, value, value, key_mask=keys, key_bias=bias)
            terms.append(pooled if asking is None else torch.where(asking[..., None], pooled, 0.0))
        out = sum(terms).expand_as(value)
        out = self._with_unselected(out, queries, score)
        return to_map(self.out(out.transpose(1, 2).reshape(tokens.shape)), like=x)

    def _centred(self, tokens: Tensor, asking: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Tokens (B,N,C) less the mean of the queries; and what the mean of each head has beyond.

        That is (B,H,C), or None where all heads have the same queries.
        """
        if self.pairwise != "whitened":
            return tokens, None
        wide = at_least_float32(tokens)
        means = _mean(wide.unsqueeze(1), asking)
        common = means.mean(1, keepdim=True)
        centred = (wide - common).to(tokens.dtype)
        return centred, None if means.shape[1] == 1 else (means - common).to(tokens.dtype)

    def _heads(self, tokens: Tensor) -> Tensor:
        """(B,N,C) as (B,H,N,d), a view."""
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def extra_repr(self) -> str:
        own = f"pairwise={self.pairwise!r}, unary={self.unary!r}, temperature={self.temperature}"
        return f"{super().extra_repr()}, {own}"


def _own(tokens: Tensor) -> Tensor:
    """Of (B,H,H,d), a token for each head as all heads see it: each head's view of its own."""
    return tokens.diagonal(dim1=1, dim2=2).transpose(1, 2).unsqueeze(2)


def _mean(tokens: Tensor, asking: Tensor | None) -> Tensor:
    """The mean (B,H|1,C) of the tokens (B,1,N,C) that ask; 0 where none does."""
    if asking is None:
        count = tokens.new_full((1, 1, 1), tokens.shape[2])
    else:
        # Not a product with the mask: 0 times NaN is NaN.
        tokens = torch.where(asking.unsqueeze(-1), tokens, 0.0)
        count = asking.sum(-1, keepdim=True).to(tokens.dtype)
    return tokens.sum(2) / count.clamp_min(1)
