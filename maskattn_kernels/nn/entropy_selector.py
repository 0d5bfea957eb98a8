# SPDX-License-Identifier: BSD-3-Clause
"""`EntropySelector`: masks that need no training, from a first guess at the classes.

A network that classifies coarse maps on the way to its result knows early where it is not sure.
Queries are the tokens that are least sure: they lack information. Keys are the tokens where
something is: any class but the most frequent one of the image.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from maskattn_kernels.nn.checks import (
    at_least_float32,
    fraction,
    positive_int,
    tokens_kept,
)
from maskattn_kernels.nn.score_selectors import highest
from maskattn_kernels.nn.selectors import Selection, Selector

__all__ = ["EntropySelector"]


class EntropySelector(Selector):
    """Selects queries by the entropy of a first guess, and keys by the probability of something.

    Exactly ``max(min_keep, round(keep * H * W))`` queries and as many keys. The score of a query is
    the entropy of its class probabilities, 1 where all classes are equally probable. The score of a
    key is the probability that it is not of the most frequent class of its image. Both are computed
    at the size of the guess and brought to the size of the features. Ties go to the token that
    comes first; scores that are NaN count as the lowest.

    There is nothing to train: no gradient flows through the choice or to the guess, and any network
    that makes a guess can be given this selector after its training.

    Args:
        keep: fraction of tokens, 0 to 1.
        min_keep: at least so many tokens (or all there are) are selected.

    Raises:
        TypeError, ValueError: one line naming the argument, what came, and what was expected.

    Shapes:
        features (B,C,H,W), of which only the size counts; guess (B,K,h,w), logits of K classes, at
        any size. A `Selection` of the keys, with that of the queries in ``queries``.

    Example:
        >>> import torch
        >>> from maskattn_kernels.nn import EntropySelector
        >>> guess = torch.tensor([[[[9.0, 9.0, 9.0, 0.0]], [[0.0, 0.0, 8.0, 9.0]]]])
        >>> selection = EntropySelector(keep=0.25)(torch.zeros(1, 8, 1, 4), guess)
        >>> selection.queries.mask, selection.mask
        (tensor([[[False, False,  True, False]]]), tensor([[[False, False, False,  True]]]))
    """

    takes_guess = True
    keep: float

    def __init__(self, keep: float = 0.25, *, min_keep: int = 1) -> None:
        super().__init__()
        self.keep = fraction("keep", keep)
        self.min_keep = positive_int("min_keep", min_keep)

    def forward(self, features: Tensor, guess: Tensor | None = None) -> Selection:
        batch, _, height, width = features.shape
        if not isinstance(guess, Tensor) or guess.dim() != 4 or guess.shape[0] != batch:
            got = tuple(guess.shape) if isinstance(guess, Tensor) else guess
            raise ValueError(
                f"guess: expected logits ({batch}, K, h, w) of a first guess at the classes, "
                f"which the entropy selector selects by, got {got}"
            )
        scores = F.interpolate(
            _scores(guess.detach()), (height, width), mode="bilinear", align_corners=False
        )
        count = tokens_kept(self.keep, self.min_keep, height * width)
        queries, keys = (
            Selection(highest(score, count)[0], score=score) for score in scores.unbind(1)
        )
        return keys._replace(queries=queries)

    def extra_repr(self) -> str:
        return f"keep={self.keep}, min_keep={self.min_keep}"


def _scores(guess: Tensor) -> Tensor:
    """(B,2,h,w), 0 to 1: the entropy, and the probability of all but the most frequent class."""
    logs = at_least_float32(guess).log_softmax(1)
    chances = logs.exp()
    entropy = -(chances * logs).sum(1) / math.log(max(guess.shape[1], 2))
    frequent = chances.mean((2, 3), keepdim=True).argmax(1, keepdim=True)
    something = 1 - chances.take_along_dim(frequent, 1).squeeze(1)
    return torch.nan_to_num(torch.stack([entropy, something], 1)).clamp(0, 1)
