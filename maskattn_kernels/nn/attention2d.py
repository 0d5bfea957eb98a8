# SPDX-License-Identifier: BSD-3-Clause
"""`MaskAttention2d`: masked self-attention over the pixels of a feature map.

Tokens are pixels in row-major order. With channels_last input everything from input to output is a
view or a result: the pixels are tokens-major in memory already, one linear layer makes queries,
keys and values side by side, cores take them through strides, and the way back is a view again.
"""

from functools import partial

import torch
from torch import Tensor, nn

from maskattn_kernels.functional import check_selection
from maskattn_kernels.nn.checks import check_dtype_of_weights, kind_of, split_in_heads
from maskattn_kernels.nn.cores import AttentionCore, make_core
from maskattn_kernels.nn.mask_head import MaskHead
from maskattn_kernels.nn.score_selectors import ScoreSelector
from maskattn_kernels.nn.selectors import Selection, Selector
from maskattn_kernels.nn.straight_through import straight_through
from maskattn_kernels.token_index import TokenIndex

__all__ = ["MaskAttention2d"]

SPARSITIES = ("qk", "q+k", "k")


class MaskAttention2d(nn.Module):
    """Attention among selected pixels of a feature map, NCHW in and out.

        q, k, v = linear(x);  y = LayerNorm(x + attention(q, k, v, mask))

    There is no output projection and the projections have no bias: heads are put side by side and
    added to the input, and a bias on the keys could not change a softmax. A pixel that is not a
    selected query, or that sees no selected key, becomes ``LayerNorm(x)``.

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
        core: str | AttentionCore = "sparse",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.channels, self.num_heads = split_in_heads("channels", channels, num_heads)
        if sparsity not in SPARSITIES:
            raise ValueError(f'sparsity: expected "qk", "q+k" or "k", got {sparsity!r}')
        if selector is not None and not isinstance(selector, nn.Module):
            raise TypeError(f"selector: expected a Selector or None, got {type(selector).__name__}")
        self.sparsity = sparsity
        self.selector = selector
        self.qkv = nn.Linear(self.channels, 3 * self.channels, bias=False)
        self.core = make_core(core, backend)
        self.norm = nn.LayerNorm(self.channels)
        # Selects queries and keys; keys only when query_head exists.
        self.mask_head: MaskHead | None = None
        self.query_head: MaskHead | None = None
        if isinstance(selector, ScoreSelector):
            head = partial(MaskHead, channels, joins_previous=joins_previous, start=selector.start)
            self.mask_head = head()
            self.query_head = head() if sparsity == "q+k" else None

    def select(
        self, x: Tensor, previous: Selection | None = None, guess: Tensor | None = None
    ) -> Selection | None:
        """What `forward` would attend to for ``x`` when given no mask; None = all pixels.

        Args:
            x: (B,C,H,W).
            previous: of the previous scale, at any size; its logits join those of the mask head.
            guess: logits (B,K,h,w) of a first guess at the classes, at any size, for a selector
                that takes one, such as `EntropySelector`. No gradient flows to it.

        Example:
            >>> import torch
            >>> from maskattn_kernels.nn import MaskAttention2d, RandomSelector
            >>> attention = MaskAttention2d(8, selector=RandomSelector(0.5))
            >>> attention.select(torch.randn(1, 8, 4, 4)).mask.sum()
            tensor(8)
        """
        selector = self.selector
        if selector is None:
            return None
        if self.mask_head is None:
            chosen = selector(x, guess) if selector.takes_guess else selector(x)
            # One set of tokens with "qk": those that ask.
            together = self.sparsity == "qk" and chosen.queries is not None
            return chosen.queries if together else chosen

        def choose(head: MaskHead, previous: Selection | None) -> Selection:
            logits = None if previous is None else previous.logits
            return selector(head(x, None if logits is None else logits.unsqueeze(1)))

        keys = choose(self.mask_head, previous)
        if self.query_head is None:
            return keys
        return keys._replace(
            queries=choose(self.query_head, None if previous is None else previous.queries)
        )

    def set_selector(self, selector: Selector | None) -> None:
        """Exchanges the selector; the module is then as if it had been made with the new one.

        Mask heads stay for a selector that learns, and go with any other. A bias that they have
        for a threshold goes as well: selectors that compare logits do not see it.

        Args:
            selector: new; None = all pixels.

        Raises:
            ValueError: the selector needs mask heads, or their bias, and there are none.

        Example:
            >>> import torch
            >>> from maskattn_kernels.nn import MaskAttention2d, ThresholdSelector, TopKSelector
            >>> attention = MaskAttention2d(8, selector=ThresholdSelector())
            >>> attention.set_selector(TopKSelector(keep=0.5))
            >>> attention.select(torch.randn(1, 8, 4, 4)).mask.sum()
            tensor(8)
        """
        if isinstance(selector, ScoreSelector):
            kind = type(selector).__name__
            if self.mask_head is None:
                raise ValueError(
                    f"selector: {kind} selects by the logits of mask heads, and there are none; "
                    "make the module with a selector that learns, and train it"
                )
            heads = [head for head in (self.mask_head, self.query_head) if head is not None]
            if selector.start is None:
                for head in heads:
                    head.conv.bias = None
            elif any(head.conv.bias is None for head in heads):
                raise ValueError(
                    f"selector: {kind} compares logits with 0, and those of these mask heads have "
                    'no zero; use "topk" or "local"'
                )
        else:
            self.mask_head = self.query_head = None
        if selector is not None:
            selector = selector.to(self.qkv.weight.device).train(self.training)
        self.selector = selector

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
        if mask is None:
            self._check(x, None, key_bias)
            mask = self.select(x)
        score = queries = None
        if isinstance(mask, Selection):
            if key_bias is not None:
                raise ValueError("key_bias: expected None, as a Selection brings its own")
            mask, key_bias, score, _, queries = mask
        self._check(x, mask, key_bias)
        key_mask = _flat(mask)
        # The same object twice: masked_attention then selects once for queries and keys.
        query_mask = key_mask
        if self.sparsity == "k":
            query_mask = score = None
        elif queries is not None:
            self._check(x, queries.mask, None)
            query_mask, score = _flat(queries.mask), queries.score
        if score is not None:
            _check_shape("score", score, x)
        if key_bias is not None:
            key_bias = key_bias.flatten(1)

        batch, channels, height, width = x.shape
        keep_channels_last = x.is_contiguous(memory_format=torch.channels_last)
        # (B,N,C), N in row-major order: a view of channels_last memory, else the one copy in.
        tokens = x.permute(0, 2, 3, 1).contiguous().view(batch, height * width, channels)
        head_dim = channels // self.num_heads
        qkv = self.qkv(tokens).view(batch, height * width, 3, self.num_heads, head_dim)
        query, key, value = (t.transpose(1, 2) for t in qkv.unbind(2))
        out = self.core(
            query, key, value, key_mask=key_mask, query_mask=query_mask, key_bias=key_bias
        )
        if score is not None and score.requires_grad:
            out = straight_through(out, score.flatten(1))
        out = out.transpose(1, 2).reshape(batch, height * width, channels)
        y = self.norm(tokens + out)
        y = y.view(batch, height, width, channels).permute(0, 3, 1, 2)
        return y if keep_channels_last else y.contiguous()

    def _check(self, x: Tensor, mask: Tensor | TokenIndex | None, key_bias: Tensor | None) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a Tensor, got {type(x).__name__}")
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise ValueError(f"x: expected shape (B, {self.channels}, H, W), got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"x: expected a floating point dtype, got {x.dtype}")
        check_dtype_of_weights("x", x, self.qkv.weight)
        if key_bias is not None:
            if not isinstance(key_bias, Tensor) or not key_bias.is_floating_point():
                raise TypeError(
                    f"key_bias: expected a floating point Tensor, got {kind_of(key_bias)}"
                )
            if mask is None:
                raise ValueError("key_bias: expected together with mask, got no mask")
            _check_shape("key_bias", key_bias, x)
        if mask is None:
            return
        if isinstance(mask, TokenIndex):
            tokens = x.shape[2] * x.shape[3]
            check_selection("mask", mask, x.shape[0], self.num_heads, tokens, x.device, "x")
            return
        if isinstance(mask, Tensor) and mask.layout is not torch.strided:
            raise NotImplementedError(f"mask: expected a dense tensor, got a {mask.layout} one")
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise TypeError(
                "mask: expected a bool Tensor (True = selected) or a TokenIndex, "
                f"got {kind_of(mask)}"
            )
        _check_shape("mask", mask, x)

    def extra_repr(self) -> str:
        return f"{self.channels}, num_heads={self.num_heads}, sparsity={self.sparsity!r}"


def _flat(mask: Tensor | TokenIndex | None) -> Tensor | TokenIndex | None:
    return mask.flatten(1) if isinstance(mask, Tensor) else mask


def _check_shape(name: str, t: Tensor, x: Tensor) -> None:
    batch, _, height, width = x.shape
    shape = tuple(t.shape)
    fits = shape[1:] in ((height, width), (1, height, width), (height * width,))
    if not fits or shape[0] not in (1, batch):
        raise ValueError(
            f"{name}: expected shape ({batch}, {height}, {width}), ({batch}, 1, {height}, {width}) "
            f"or ({batch}, {height * width}), got {shape}"
        )
    if t.device != x.device:
        raise ValueError(f"{name}: expected device {x.device} as x, got {t.device}")
