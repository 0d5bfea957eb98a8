# SPDX-License-Identifier: BSD-3-Clause
"""`MaskAttention2d`: masked self-attention over the pixels of a feature map.

Tokens are pixels in row-major order. With channels_last input everything from input to output is a
view or a result: the pixels are tokens-major in memory already, one linear layer makes queries,
keys and values side by side, cores take them through strides, and the way back is a view again.
"""

from torch import Tensor, nn

from maskattn_kernels.nn.cores import AttentionCore
from maskattn_kernels.nn.selecting import SelectiveAttention2d, to_map, to_tokens
from maskattn_kernels.nn.selectors import Selection, Selector
from maskattn_kernels.token_index import TokenIndex

__all__ = ["MaskAttention2d"]

NORMS = ("after", "before")


class MaskAttention2d(SelectiveAttention2d):
    """Attention among selected pixels of a feature map, NCHW in and out.

        q, k, v = linear(x);  y = LayerNorm(x + attention(q, k, v, mask))

    There is no output projection and the projections have no bias: heads are put side by side and
    added to the input, and a bias on the keys could not change a softmax. A pixel that sees no
    selected key becomes ``LayerNorm(x)``; and so does one that is not a selected query, unless
    ``unselected`` is "mean". That is the published block. With ``norm="before"`` it is

        q, k, v = linear(LayerNorm(x));  y = x + linear(attention(q, k, v, mask))

    whose last layer is zero at first: the module begins as the identity, as is best inside of a
    network that has been trained without it, and a pixel without attention stays ``x``.

    Args:
        channels: C of the feature map.
        num_heads: divides ``channels``; ``channels / num_heads`` is at most 256.
        selector: draws the mask when `forward` is given none; None = all pixels. With a
            `ScoreSelector` (top-k, threshold, Gumbel) the module gets a `MaskHead`, and the mask
            is learned.
        joins_previous: the mask head joins the logits of the previous scale, see `select`.
        sparsity: "qk" = the selected pixels are queries and keys, work O(n^2) for n selected of N
            pixels; "q+k" = the same work, but queries and keys are selected separately: a learned
            selector gets a mask head for each, `EntropySelector` has a rule for each, and
            `RandomSelector` selects once, as with "qk"; "k" = all pixels are queries, the selected
            ones are keys, work O(N n).
        unselected: what is added to pixels that are not selected queries: "zero", or "mean" = the
            mean of what the selected queries of their image got. Then selected queries differ from
            other pixels only by what they find beyond what all find, and only that teaches a query
            mask.
        norm: of the sum, "after" attention, or of its input, "before" it, see above.
        core: "sparse", "dense", "sdpa", "identity" or an `AttentionCore`; same ``state_dict`` with
            any.
        backend: for the sparse core, as in `masked_attention`.

    Raises:
        TypeError, ValueError: one line naming the argument, what came, and what was expected.

    Shapes:
        ``x`` (B,C,H,W), any H and W, floating point; output the same shape, and channels_last if
        ``x`` is. Gradients flow to ``x``, the parameters and ``key_bias``; to the mask head through
        ``key_bias`` and, where it selects queries, by the estimate of `straight_through`.

    Example:
        >>> import torch
        >>> from maskattn_kernels.nn import MaskAttention2d, RandomSelector
        >>> attention = MaskAttention2d(32, num_heads=2, selector=RandomSelector(0.25))
        >>> x = torch.randn(2, 32, 8, 8)
        >>> attention(x).shape
        torch.Size([2, 32, 8, 8])
        >>> left_half = torch.zeros(2, 8, 8, dtype=torch.bool)
        >>> left_half[:, :, :4] = True
        >>> attention(x, left_half).shape
        torch.Size([2, 32, 8, 8])
    """

    def __init__(
        self,
        channels: int,
        num_heads: int = 1,
        *,
        selector: Selector | None = None,
        joins_previous: bool = False,
        sparsity: str = "qk",
        unselected: str = "zero",
        norm: str = "after",
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
        if norm not in NORMS:
            raise ValueError(f'norm: expected "after" or "before", got {norm!r}')
        self.qkv = nn.Linear(self.channels, 3 * self.channels, bias=False)
        self.norm = nn.LayerNorm(self.channels)
        self.proj: nn.Linear | None = None
        if norm == "before":
            self.proj = nn.Linear(self.channels, self.channels, bias=False)
            nn.init.zeros_(self.proj.weight)
        self._add_mask_heads(joins_previous)

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        if self.proj is None:
            return self.qkv, self.norm
        return self.norm, self.qkv, self.proj

    def forward(
        self,
        x: Tensor,
        mask: Tensor | TokenIndex | Selection | None = None,
        key_bias: Tensor | None = None,
    ) -> Tensor:
        """Attends among the selected pixels of ``x``.

        Args:
            x: (B,C,H,W).
            mask: bool, True = selected: (B,H,W), (B,1,H,W) or (B,H*W), B may be 1; or a
                `TokenIndex` over H*W tokens; or what `select` gave. None = the selector draws it.
            key_bias: float (B,H,W), (B,1,H,W) or (B,H*W), added to the scaled score of each key;
                needs ``mask`` (a `Selection` brings its own).

        Returns:
            (B,C,H,W) in the memory format of ``x``.
        """
        keys, queries, key_bias, score = self._chosen(x, mask, key_bias)
        tokens = to_tokens(x)
        batch, length, channels = tokens.shape
        head_dim = channels // self.num_heads
        read = tokens if self.proj is None else self.norm(tokens)
        qkv = self.qkv(read).view(batch, length, 3, self.num_heads, head_dim)
        query, key, value = (t.transpose(1, 2) for t in qkv.unbind(2))
        out = self.core(query, key, value, key_mask=keys, query_mask=queries, key_bias=key_bias)
        out = self._with_unselected(out, queries, score)
        out = out.transpose(1, 2).reshape(batch, length, channels)
        y = self.norm(tokens + out) if self.proj is None else tokens + self.proj(out)
        return to_map(y, like=x)
