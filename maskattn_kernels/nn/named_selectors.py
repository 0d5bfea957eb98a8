# SPDX-License-Identifier: BSD-3-Clause
"""`make_selector`: selectors by name, as configs give them."""

from maskattn_kernels.common.text import quoted
from maskattn_kernels.nn.entropy_selector import EntropySelector
from maskattn_kernels.nn.gumbel_selectors import GumbelSelector, GumbelTopKSelector
from maskattn_kernels.nn.score_selectors import LocalTopKSelector, ThresholdSelector, TopKSelector
from maskattn_kernels.nn.selectors import RandomSelector, Selector

__all__ = ["SELECTORS", "make_selector"]

SELECTORS = ("random", "topk", "gumbel-topk", "local", "threshold", "gumbel", "entropy", "none")
"""The names that `make_selector` knows."""


def make_selector(
    name: str, keep: float = 0.25, *, seed: int = 0, min_keep: int = 1
) -> Selector | None:
    """The selector of a name in `SELECTORS`; None for "none", which selects all tokens.

    Args:
        name: which.
        keep: fraction of tokens, as each selector takes it.
        seed: of `RandomSelector`.
        min_keep: of the learned ones and of "entropy".

    Raises:
        TypeError, ValueError: one line naming the argument, what came, and what was expected.

    Example:
        >>> from maskattn_kernels.nn import make_selector
        >>> make_selector("topk", keep=0.1)
        TopKSelector(keep=0.1, min_keep=1)
    """
    if name == "none":
        return None
    if name == "random":
        return RandomSelector(keep, seed)
    others = {
        "topk": TopKSelector,
        "gumbel-topk": GumbelTopKSelector,
        "local": LocalTopKSelector,
        "threshold": ThresholdSelector,
        "gumbel": GumbelSelector,
        "entropy": EntropySelector,
    }
    if name not in others:
        raise ValueError(f"selector: expected one of {quoted(SELECTORS)}, got {name!r}")
    return others[name](keep, min_keep=min_keep)
