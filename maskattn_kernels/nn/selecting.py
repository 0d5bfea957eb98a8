# SPDX-License-Identifier: BSD-3-Clause
"""`SelectiveAttention2d`: what attention modules over selected pixels of a feature map share.

Which pixels: the selector, its mask heads, and every form in which a caller gives masks. Where they
lie: tokens are pixels in row-major order, and with channels_last input the way from pixels to
tokens and back is a view.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from maskattn_kernels.nn.checks import (
    at_least_float32,
    check_dtype_of_weights,
    kind_of,
    split_in_heads,
)
from maskattn_kernels.nn.cores import AttentionCore, make_core
from maskattn_kernels.nn.mask_head import MaskHead
from maskattn_kernels.nn.score_selectors import ScoreSelector
from maskattn_kernels.nn.selectors import Selection, Selector
from maskattn_kernels.nn.straight_through import straight_through
from maskattn_kernels.token_index import TokenIndex, with_heads
from maskattn_kernels.validation import check_selection

__all__ = ["SelectiveAttention2d"]

SPARSITIES = ("qk", "q+k", "k")
UNSELECTED = ("zero", "mean")


class Chosen(NamedTuple):
    """The tokens of a call, as cores take them: masks (B|1,N) or `TokenIndex`, None = all.

    Attributes:
        key_mask, query_mask: the same object where keys and queries are the same tokens.
        key_bias: float (B,N) or None.
        score: soft score (B,N) of each query, where its selector learns; else None.
    """

    key_mask: Tensor | TokenIndex | None
    query_mask: Tensor | TokenIndex | None
    key_bias: Tensor | None
    score: Tensor | None


class SelectiveAttention2d(nn.Module):
    """Base of `MaskAttention2d` and `DisentangledAttention2d`: selector, mask heads, core, checks.

    A subclass makes its layers in its constructor, then calls ``_add_mask_heads``; names the layers
    in ``layers``; and implements ``forward(x, mask=None, key_bias=None)`` with ``_chosen``.

    Args:
        channels, num_heads, selector, sparsity, unselected, core, backend: as in
            `MaskAttention2d`.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        *,
        selector: Selector | None,
        sparsity: str,
        unselected: str,
        core: str | AttentionCore,
        backend: str | None,
    ) -> None:
        super().__init__()
        self.channels, self.num_heads = split_in_heads("channels", channels, num_heads)
        if sparsity not in SPARSITIES:
            raise ValueError(f'sparsity: expected "qk", "q+k" or "k", got {sparsity!r}')
        if unselected not in UNSELECTED:
            raise ValueError(f'unselected: expected "zero" or "mean", got {unselected!r}')
        if selector is not None and not isinstance(selector, nn.Module):
            raise TypeError(f"selector: expected a Selector or None, got {type(selector).__name__}")
        self.sparsity, self.unselected = sparsity, unselected
        self.selector = selector
        self.core = make_core(core, backend)
        # Selects queries and keys; keys only when query_head exists.
        self.mask_head: MaskHead | None = None
        self.query_head: MaskHead | None = None

    def _add_mask_heads(self, joins_previous: bool) -> None:
        """Gives a selector that learns its heads; last, so that no other layer draws after them."""
        if isinstance(self.selector, ScoreSelector):
            start = self.selector.start
            head = partial(MaskHead, self.channels, joins_previous=joins_previous, start=start)
            self.mask_head = head()
            self.query_head = head() if self.sparsity == "q+k" else None

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        """The layers that `forward` calls, each once; the first one reads the tokens of ``x``."""
        raise NotImplementedError("SelectiveAttention2d.layers: a subclass must implement it")

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
            selector = selector.to(next(self.parameters()).device).train(self.training)
        self.selector = selector

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

    def _chosen(
        self, x: Tensor, mask: Tensor | TokenIndex | Selection | None, key_bias: Tensor | None
    ) -> Chosen:
        """The tokens of a call with these arguments of `forward`, all of them checked."""
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
            score = score.flatten(1)
        if key_bias is not None:
            key_bias = key_bias.flatten(1)
        return Chosen(key_mask, query_mask, key_bias, score)

    def _with_unselected(
        self, out: Tensor, queries: Tensor | TokenIndex | None, score: Tensor | None
    ) -> Tensor:
        """Attention's output (B,H,N,D) with what tokens that are not queries get in its place.

        And with the gradient that the scores of the queries get from it.
        """
        base = None
        if self.unselected == "mean" and queries is not None:
            asking = as_mask(queries).unsqueeze(-1)
            total = at_least_float32(out).sum(2, keepdim=True)
            base = (total / asking.sum(2, keepdim=True).clamp_min(1)).to(out.dtype)
            out = torch.where(asking, out, base)
        if score is not None and score.requires_grad:
            out = straight_through(out, score, base)
        return out

    def _check(self, x: Tensor, mask: Tensor | TokenIndex | None, key_bias: Tensor | None) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a Tensor, got {type(x).__name__}")
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise ValueError(f"x: expected shape (B, {self.channels}, H, W), got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"x: expected a floating point dtype, got {x.dtype}")
        check_dtype_of_weights("x", x, self.layers[0].weight)
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


def to_tokens(x: Tensor) -> Tensor:
    """(B,C,H,W) as (B,N,C), N in row-major order: a view of channels_last memory, else a copy."""
    batch, channels, height, width = x.shape
    return x.permute(0, 2, 3, 1).contiguous().view(batch, height * width, channels)


def to_map(tokens: Tensor, like: Tensor) -> Tensor:
    """(B,N,C) as (B,C,H,W) in the size and the memory format of the map ``like``."""
    batch, channels, height, width = like.shape
    y = tokens.view(batch, height, width, channels).permute(0, 3, 1, 2)
    return y if like.is_contiguous(memory_format=torch.channels_last) else y.contiguous()


def as_mask(tokens: Tensor | TokenIndex) -> Tensor:
    """Selected tokens as bool (B|1,H|1,N)."""
    return tokens.to_mask() if isinstance(tokens, TokenIndex) else with_heads(tokens)


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
