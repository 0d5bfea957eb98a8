# SPDX-License-Identifier: BSD-3-Clause
"""`SelectorDial`: networks whose selectors can be changed after training.

The attention modules compute with any mask, so how many tokens take part, and by which rule they
are chosen, is decided where a network is used: by what a device can afford.
"""

from collections.abc import Collection, Mapping

from torch import nn

from maskattn_kernels.common.text import quoted
from maskattn_kernels.nn import ExploringSelector, Selector, make_selector
from maskattn_kernels.nn.checks import fraction
from maskattn_kernels.nn.selecting import SelectiveAttention2d

__all__ = ["Keep", "SelectorDial"]

Keep = float | Mapping[str, float]
#: Of the scales that a mapping leaves out.
DEFAULT = 0.25


class SelectorDial(nn.Module):
    """Base of networks with attention at several scales; `MaskAttnUNet` is one.

    A subclass implements `attentions` and `has_guess`, and sets the attributes in its constructor.

    Attributes:
        keep: fraction of tokens that the selectors select, or of scales by name.
        min_keep, seed: of the selectors, as in `make_selector`.

    Example:
        >>> from maskattn_kernels.models import MaskAttnUNet, SelectorDial
        >>> network = MaskAttnUNet(width=8, depth=1, selector="topk", keep=0.5)
        >>> isinstance(network, SelectorDial)
        True
        >>> network.set_keep({"up1": 0.1})
        >>> network.keep
        {'down1': 0.5, 'up1': 0.1}
    """

    keep: Keep
    min_keep: int
    seed: int

    @property
    def scales(self) -> tuple[str, ...]:
        """Names of the attention modules, in the order in which they run."""
        raise NotImplementedError("SelectorDial.scales: a subclass must implement it")

    def attentions(self) -> Mapping[str, SelectiveAttention2d]:
        """The attention modules by the names of their scales, in the order in which they run."""
        raise NotImplementedError("SelectorDial.attentions: a subclass must implement it")

    def has_guess(self, scale: str) -> bool:
        """Whether there is a first guess at the classes where this scale selects."""
        raise NotImplementedError("SelectorDial.has_guess: a subclass must implement it")

    def new_selector(self, name: str, scale: str) -> Selector | None:
        """A selector of a name for a scale; without a guess, "entropy" is "random"."""
        if name == "entropy" and not self.has_guess(scale):
            name = "random"
        seed = (self.seed + self.scales.index(scale)) % 2**32
        return make_selector(name, keep_at(self.keep, scale), seed=seed, min_keep=self.min_keep)

    def set_keep(self, keep: Keep) -> None:
        """Sets the fraction of tokens that the selectors select; also after training.

        Args:
            keep: 0 to 1; or of some scales by their names. 1 = all tokens: then each query sees
                each key, and selectors that learn still weight the keys by their scores.

        Raises:
            TypeError, ValueError: not a fraction, not a scale, or a selector that has no fraction:
                "threshold", "gumbel" and "none".

        Example:
            >>> import torch
            >>> from maskattn_kernels.models import MaskAttnUNet
            >>> network = MaskAttnUNet(width=8, depth=1, selector="topk", keep=0.5)
            >>> network.set_keep({"up1": 0.25})
            >>> _, selections = network.features(torch.randn(1, 3, 8, 8))
            >>> {name: selection.keep_ratio.item() for name, selection in selections.items()}
            {'down1': 0.5, 'up1': 0.25}
        """
        _turn({scale: a.selector for scale, a in self.attentions().items()}, keep)
        self.keep = self._joined(keep)

    def set_selector(self, name: str, keep: Keep | None = None) -> None:
        """Gives all scales the selector of a name; also after training.

        The network is then as if it had been made with that selector: mask heads go with one that
        does not learn.

        Args:
            name: "entropy", "random" and "none" fit every network; "topk", "gumbel-topk" and
                "local" one that was trained with mask heads.
            keep: as in `set_keep`; None = as it is now.

        Raises:
            TypeError, ValueError: no such selector, the network has no mask heads for it, or as in
                `set_keep`.

        Example:
            >>> from maskattn_kernels.models import MaskAttnUNet
            >>> trained = MaskAttnUNet(width=8, depth=1, selector="none")
            >>> trained.set_selector("random", keep=0.1)
            >>> trained.attentions()["up1"].selector
            RandomSelector(keep=0.1, seed=1)
        """
        attentions = self.attentions()
        selectors = {scale: self.new_selector(name, scale) for scale in attentions}
        if keep is not None:
            _turn(selectors, keep)
        for scale, attention in attentions.items():
            attention.set_selector(selectors[scale])
        if keep is not None:
            self.keep = self._joined(keep)

    def anneal(self, progress: float) -> None:
        """Tells Gumbel selectors the ``progress`` of training, from 0 to 1; others ignore it."""
        for module in self.modules():
            if isinstance(module, ExploringSelector):
                module.anneal(progress)

    def _joined(self, keep: Keep) -> Keep:
        """``keep``, with what the scales have that it does not name."""
        if not isinstance(keep, Mapping):
            return keep
        return {scale: keep.get(scale, keep_at(self.keep, scale)) for scale in self.attentions()}


def keep_at(keep: Keep, scale: str) -> float:
    """The fraction of a scale."""
    return keep.get(scale, DEFAULT) if isinstance(keep, Mapping) else keep


def check_keep(keep: Keep, scales: Collection[str]) -> None:
    """Raises unless all are fractions, and those of a mapping have names among ``scales``."""
    for scale, ratio in (keep if isinstance(keep, Mapping) else {"": keep}).items():
        if scale and scale not in scales:
            raise ValueError(f"keep: expected scales among {quoted(scales)}, got {scale!r}")
        fraction("keep", ratio)


def _turn(selectors: Mapping[str, Selector | None], keep: Keep) -> None:
    check_keep(keep, selectors)
    for scale in keep if isinstance(keep, Mapping) else selectors:
        selector = selectors[scale]
        if selector is None:
            raise ValueError(
                "keep: expected a network that selects, and in this one all tokens take part; "
                'give it a selector too, such as "entropy"'
            )
        selector.set_keep(keep_at(keep, scale))
