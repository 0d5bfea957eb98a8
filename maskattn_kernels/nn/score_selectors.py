# SPDX-License-Identifier: BSD-3-Clause
"""Selectors that learn: from the logits of a `MaskHead` to the tokens that attend.

The choice is hard and made by one rule in training and inference. Two things let it learn:

* ``key_bias`` is the log of the soft score, so the softmax weight of a selected key is multiplied
  by its score: a true gradient, no estimate. A softmax does not feel a shift of all biases; what
  it teaches is which selected keys are worth more than others.
* ``score`` is what `straight_through` differentiates: the estimated value of a query's output.

Tokens that are not selected have no gradient of their own. The head is shared by all tokens, so the
logit of a token rises when similar tokens were useful; a token that resembles no selected one is
never found. `gumbel_selectors` select every token now and then. Estimates of what tokens that were
not selected would have contributed were tried: they were mostly noise, and networks learned worse.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from maskattn_kernels.nn.checks import at_least_float32, fraction, positive_int, tokens_kept
from maskattn_kernels.nn.rows import first_above, highest_of_rows
from maskattn_kernels.nn.selectors import Selection, Selector

__all__ = [
    "LocalTopKSelector",
    "ScoreSelector",
    "ThresholdSelector",
    "TopKSelector",
    "keep_ratio_loss",
]


class ScoreSelector(Selector):
    """Base of selectors over the logits of a `MaskHead`: ``forward((B,1,H,W)) -> Selection``.

    `MaskAttention2d` makes the head for such a selector. Logits that are NaN count as the lowest.

    Args:
        keep: fraction of tokens, 0 to 1; each subclass says what it means.
        min_keep: at least so many tokens (or all there are) are selected, whatever the logits.

    Raises:
        TypeError, ValueError: one line naming the argument, what came, and what was expected.

    Example:
        >>> import torch
        >>> from maskattn_kernels.nn import ScoreSelector, Selection
        >>> class AboveMean(ScoreSelector):
        ...     def choose(self, logits):
        ...         gate = logits - logits.mean((1, 2), keepdim=True)
        ...         return Selection(gate > 0, gate.sigmoid().log(), gate.sigmoid(), logits)
        >>> AboveMean()(torch.tensor([[[[3.0, 1.0], [2.0, 0.0]]]])).mask
        tensor([[[ True, False],
                 [ True, False]]])
    """

    keep: float

    def __init__(self, keep: float = 0.25, *, min_keep: int = 1) -> None:
        super().__init__()
        self.keep = fraction("keep", keep)
        self.min_keep = positive_int("min_keep", min_keep)

    @property
    def start(self) -> float | None:
        """What the mask head's bias should select at first; None: it needs no bias."""
        return self.keep

    def forward(self, features: Tensor) -> Selection:
        return self.choose(_finite(features))

    def choose(self, logits: Tensor) -> Selection:
        """The selection by finite logits (B,H,W), float32 at least."""
        raise NotImplementedError("ScoreSelector.choose: a subclass must implement it")

    def extra_repr(self) -> str:
        return f"keep={self.keep}, min_keep={self.min_keep}"


class TopKSelector(ScoreSelector):
    """Selects exactly ``max(min_keep, round(keep * H * W))`` tokens: those of the highest logits.

    Ties go to the token that comes first. The score is ``sigmoid(logit - k-th highest logit)``:
    0.5 on the border of the selection, where its gradient is largest.
    Raising all logits alike changes nothing, so the gradient to the logits sums to 0 in each image;
    only the order is learned, and scores cannot all drift into saturation.

    Example:
        >>> import torch
        >>> from maskattn_kernels.nn import TopKSelector
        >>> selection = TopKSelector(keep=0.5)(torch.tensor([[[[3.0, 1.0], [2.0, 0.0]]]]))
        >>> selection.mask
        tensor([[[ True, False],
                 [ True, False]]])
        >>> selection.keep_ratio
        tensor([0.5000])
    """

    @property
    def start(self) -> None:
        return None

    def choose(self, logits: Tensor) -> Selection:
        count = tokens_kept(self.keep, self.min_keep, logits.shape[1] * logits.shape[2])
        mask, border = highest(logits, count)
        gate = logits - border
        if gate.requires_grad:  # by any such number: the border moves with all logits
            mean = logits.mean((1, 2), keepdim=True)
            gate = gate - (mean - mean.detach())
        return _selection(mask, gate)


class LocalTopKSelector(ScoreSelector):
    """Selects the tokens of the highest logits within each small window: learned, and spread out.

    The highest of the whole image (`TopKSelector`) tend to lie together, and whole regions get no
    attention. Here every window of the image has its share, ``max(min_keep, round(keep * H * W))``
    in all: the highest logits of the window, so no part of the image is left out. The score
    is ``sigmoid(logit - lowest selected logit of the window)``. Ties go to the token that comes
    first. Windows at the right and lower edge may be smaller.

    Args:
        keep, min_keep: as in `TopKSelector`.
        window: side in tokens.

    Example:
        >>> import torch
        >>> from maskattn_kernels.nn import LocalTopKSelector
        >>> logits = torch.tensor([[[[9.0, 8.0, 1.0, 0.0], [7.0, 6.0, 0.0, 2.0]]]])
        >>> LocalTopKSelector(keep=0.25, window=2)(logits).mask
        tensor([[[ True, False, False, False],
                 [False, False, False,  True]]])
    """

    def __init__(self, keep: float = 0.25, *, min_keep: int = 1, window: int = 4) -> None:
        super().__init__(keep, min_keep=min_keep)
        self.window = positive_int("window", window)

    @property
    def start(self) -> None:
        return None

    def choose(self, logits: Tensor) -> Selection:
        batch, height, width = logits.shape
        side, device = self.window, logits.device
        rows, columns = -(-height // side), -(-width // side)
        padded = F.pad(
            logits.detach(),
            (0, columns * side - width, 0, rows * side - height),
            value=-float("inf"),
        )
        windows = padded.view(batch, rows, side, columns, side).transpose(2, 3)
        cells = windows.reshape(batch, rows * columns, side * side)
        counts = self._counts(height, width, device).view(1, -1, 1)
        ordered = cells.sort(dim=-1, descending=True).values
        border = ordered.gather(-1, (counts - 1).clamp_min(0).expand(batch, -1, 1))
        mask = first_above(cells, border, counts)
        # Where a window has no share, its best must score less than those that are selected.
        border = (border + (counts == 0)).expand_as(cells)

        def back(cells: Tensor) -> Tensor:
            cells = cells.reshape(batch, rows, columns, side, side).transpose(2, 3)
            return cells.reshape(batch, rows * side, columns * side)[:, :height, :width]

        gate = logits - back(border)
        return Selection(back(mask), F.logsigmoid(gate), gate.sigmoid(), logits)

    def _counts(self, height: int, width: int, device: torch.device) -> Tensor:
        """Tokens to select in each window, in row-major order; rounded so that their sum is right.

        Computed on the device: nothing is copied there, and nothing waits.
        """
        side, tokens = self.window, height * width
        share = max(self.keep, min(1.0, self.min_keep / max(tokens, 1)))
        tall, wide = (
            (size - side * torch.arange(-(-size // side), device=device)).clamp_max(side)
            for size in (height, width)
        )
        area = (tall.unsqueeze(1) * wide).flatten()
        upto = (area.cumsum(0).double() * share).round().long()
        return torch.diff(upto, prepend=upto.new_zeros(1))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, window={self.window}"


class ThresholdSelector(ScoreSelector):
    """Selects the tokens whose score ``sigmoid(logit)`` is above 0.5, as many as there are.

    How many is up to the head: train it with `keep_ratio_loss`, or it may select everything.
    ``keep`` is the fraction at the start of training.

    Example:
        >>> import torch
        >>> from maskattn_kernels.nn import ThresholdSelector
        >>> ThresholdSelector()(torch.tensor([[[[3.0, -1.0], [2.0, 0.0]]]])).mask
        tensor([[[ True, False],
                 [ True, False]]])
    """

    def set_keep(self, keep: float) -> None:
        raise ValueError(
            f"keep: {type(self).__name__} selects every token with a positive logit; for a given "
            'fraction use the selector "topk", which selects by the same logits'
        )

    def choose(self, logits: Tensor) -> Selection:
        tokens = logits.shape[1] * logits.shape[2]
        floor, _ = highest(logits, min(self.min_keep, tokens))
        return _selection((logits > 0) | floor, logits)


def keep_ratio_loss(selections: Iterable[Selection], target: float) -> Tensor:
    """Mean over scales and images of ``(fraction selected - target) ** 2``.

    The fraction is that of the hard mask; its gradient is that of the mean score (straight
    through), so the gradient is zero exactly where the masks have the asked size. It is a mean
    over images, so processes with equal shares of a batch average to the loss of the whole batch.
    `TopKSelector` keeps its ratio by itself; its gradient here is negligible.

    Args:
        selections: of learned selectors, one a scale; those without a score are passed over, and
            those with ``queries`` of their own are two.
        target: fraction of tokens, 0 to 1.

    Returns:
        float32 (); 0 without any score.

    Source: the ratio loss of Rao et al., DynamicViT, 2021.

    Example:
        >>> import torch
        >>> from maskattn_kernels.nn import ThresholdSelector, keep_ratio_loss
        >>> selection = ThresholdSelector()(torch.tensor([[[[3.0, -1.0], [2.0, 4.0]]]]))
        >>> keep_ratio_loss([selection], target=0.25)
        tensor(0.2500)
    """
    target = fraction("target", target)
    losses = []
    for choice in (c for s in selections for c in (s, s.queries)):
        if choice is None or choice.score is None:
            continue
        soft = choice.score.mean((1, 2))
        ratio = choice.keep_ratio + (soft - soft.detach())
        losses.append((ratio - target).square().mean())
    return torch.stack(losses).mean() if losses else torch.zeros(())


_LIMIT = 1e4  # a gate is 0 or 1 to the last bit long before, and sums of such logits stay finite


def _finite(features: Tensor) -> Tensor:
    """Logits (B,1,H,W) as (B,H,W), float32 at least, without NaN or Inf."""
    logits = at_least_float32(features)
    logits = torch.nan_to_num(logits, nan=-_LIMIT, posinf=_LIMIT, neginf=-_LIMIT)
    return logits.clamp(-_LIMIT, _LIMIT).squeeze(1)


def highest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` highest logits of each image as a mask (B,H,W), and the lowest of them."""
    if count == 0:
        return torch.zeros_like(logits, dtype=torch.bool), logits.new_zeros(len(logits), 1, 1)
    mask, border = highest_of_rows(logits.flatten(1), count)
    return mask.view_as(logits), border.unsqueeze(-1)


def _selection(mask: Tensor, logits: Tensor) -> Selection:
    return Selection(mask, F.logsigmoid(logits), logits.sigmoid(), logits)
