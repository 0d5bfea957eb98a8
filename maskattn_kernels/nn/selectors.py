# SPDX-License-Identifier: BSD-3-Clause
"""Token selectors: which tokens of a feature map take part in attention.

A selector is a module that looks at a feature map and gives a `Selection`. `RandomSelector` looks
at its shape only. Those in `score_selectors` choose by the logits of a `MaskHead` and learn: they
return the hard choice as ``mask`` and let gradients reach the logits through ``key_bias``, which
attention adds to the scaled scores of each key, and through ``score``.
"""

import numbers
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from maskattn_kernels.nn.checks import fraction, share_of
from maskattn_kernels.token_index import TokenIndex
from maskattn_kernels.torch_compat import register_tuple

__all__ = ["RandomSelector", "Selection", "Selector"]


@register_tuple
class Selection(NamedTuple):
    """What a selector chose.

    Attributes:
        mask: bool (B,H,W) or (1,H,W), True = selected.
        key_bias: None, or float (B,H,W) added to the scaled score of each key; differentiable.
        score: None, or float (B,H,W) from 0 to 1: the soft score of each token; differentiable.
        logits: None, or float (B,H,W): what the mask head of the next scale joins with its own.
        queries: None, or the selection of queries, if chosen separately; the fields above are then
            the selection of keys.

    Example:
        >>> import torch
        >>> from maskattn_kernels.nn import Selection
        >>> Selection(torch.tensor([[[True, False], [True, True]]])).keep_ratio
        tensor([0.7500])
    """

    mask: Tensor
    key_bias: Tensor | None = None
    score: Tensor | None = None
    logits: Tensor | None = None
    queries: "Selection | None" = None

    @property
    def keep_ratio(self) -> Tensor:
        """float32 (B,): the fraction of tokens selected in each image, on the mask's device."""
        if isinstance(self.mask, TokenIndex):  # as a network's caller may give
            return self.mask.counts.float().mean(1) / max(self.mask.indices.shape[-1], 1)
        return self.mask.flatten(1).float().mean(1)


class Selector(nn.Module):
    """Base of all selectors: ``forward(features (B,C,H,W)) -> Selection``.

    A selector with ``takes_guess = True`` is called as ``forward(features, guess)``: the guess is
    logits (B,K,h,w) of a first guess at the classes, at any size, or None where there is none.

    A selector must choose the same tokens in train and eval mode, but for noise that fades as
    training goes on, and everything it depends on must be in its ``state_dict``, so that a reloaded
    checkpoint selects as the saved one did.

    Example:
        >>> import torch
        >>> from maskattn_kernels.nn import Selection, Selector
        >>> class Brightest(Selector):
        ...     def forward(self, features):
        ...         energy = features.square().mean(1)
        ...         return Selection(energy > energy.mean((1, 2), keepdim=True))
        >>> Brightest()(torch.randn(2, 8, 4, 4)).mask.shape
        torch.Size([2, 4, 4])
    """

    takes_guess = False
    keep: float | None = None

    def forward(self, features: Tensor) -> Selection:
        raise NotImplementedError("Selector.forward: a subclass must implement it")

    def set_keep(self, keep: float) -> None:
        """Sets ``keep``, the fraction of tokens that is selected, 0 to 1; also after training.

        Raises:
            TypeError, ValueError: not a fraction, or the selector has no ``keep``.
        """
        if self.keep is None:
            raise ValueError(f"keep: {type(self).__name__} has no fraction of tokens to set")
        self.keep = fraction("keep", keep)


class RandomSelector(Selector):
    """Selects ``round(keep * H * W)`` tokens of each image, scattered at random but repeatable.

    The choice is a hash of (seed, place in the batch, token), so it depends on nothing else: not on
    the device, the mode, the batch size, or how often it was drawn before. ``seed`` is part of the
    ``state_dict``, so a reloaded checkpoint draws the same masks. No gradient flows through it.

    Args:
        keep: fraction of tokens to select, 0 to 1.
        seed: 0 to 2**32 - 1.

    Raises:
        TypeError: ``keep`` or ``seed`` is not a number.
        ValueError: one is out of its range.

    Example:
        >>> import torch
        >>> from maskattn_kernels.nn import RandomSelector
        >>> selector = RandomSelector(keep=0.25, seed=7)
        >>> mask = selector(torch.randn(2, 8, 16, 16)).mask
        >>> mask.sum((1, 2))
        tensor([64, 64])
        >>> torch.equal(mask[:1], selector(torch.randn(1, 8, 16, 16)).mask)
        True
    """

    keep: float

    def __init__(self, keep: float, seed: int = 0) -> None:
        super().__init__()
        self.keep = fraction("keep", keep)
        if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
            raise TypeError(f"seed: expected an int from 0 to 2**32 - 1, got {type(seed).__name__}")
        if not 0 <= seed <= _MASK32:
            raise ValueError(f"seed: expected an int from 0 to 2**32 - 1, got {seed}")
        self.seed: int = int(seed)

    def forward(self, features: Tensor) -> Selection:
        batch, _, height, width = features.shape
        tokens = height * width
        count = share_of(self.keep, tokens)
        if count == 0 or count == tokens:
            shape = (batch, height, width)
            return Selection(torch.full(shape, count > 0, dtype=torch.bool, device=features.device))
        rows = torch.arange(batch, device=features.device)
        places = torch.arange(tokens, device=features.device)
        row_keys = _hash32(rows ^ _hash32(self.seed))
        # The hash is a bijection of 32-bit words: no two tokens of a row draw the same number, so
        # exactly `count` are at or below the count-th smallest.
        draws = _hash32(places ^ row_keys[:, None])
        # topk and not kthvalue, which exporters to ONNX do not know.
        lowest = draws.topk(count, dim=1, largest=False, sorted=False).values
        threshold = lowest.amax(1, keepdim=True)
        return Selection((draws <= threshold).view(batch, height, width))

    def get_extra_state(self) -> Tensor:
        # A tensor: file formats for weights hold nothing else. On the CPU: reading it never syncs.
        return torch.tensor(self.seed, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        self.seed = int(state)

    def extra_repr(self) -> str:
        return f"keep={self.keep}, seed={self.seed}"


_MASK32 = 0xFFFFFFFF
_MULTIPLIER = 0x45D9F3B  # below 2**31, so products of 32-bit words stay inside int64


_Words = TypeVar("_Words", int, Tensor)


def _hash32(x: _Words) -> _Words:
    """Mixes 32-bit words, one int or an int64 tensor of them (xorshift-multiply, a bijection)."""
    x = ((x ^ (x >> 16)) * _MULTIPLIER) & _MASK32
    x = ((x ^ (x >> 16)) * _MULTIPLIER) & _MASK32
    return x ^ (x >> 16)
