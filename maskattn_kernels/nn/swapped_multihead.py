# SPDX-License-Identifier: BSD-3-Clause
"""`SwappedMultiheadAttention`: what `swap_attention` puts in the place of an nn.MultiheadAttention.

Calls that masked_attention cannot run are handed to the module that was there before, counted, and
told once.
"""

import warnings
from collections import Counter

import torch
from torch import Tensor, nn

from maskattn_kernels.nn.multihead import MaskedMultiheadAttention, share_parameters

__all__ = ["SwappedMultiheadAttention"]


class SwappedMultiheadAttention(MaskedMultiheadAttention):
    """A `MaskedMultiheadAttention` that remembers the module it replaces, and falls back to it.

    Made by `swap_attention` only. A call with ``attn_mask``, ``is_causal``, ``need_weights=True``,
    or with dropout in training mode runs on the original module with today's parameters: its result
    is that of torch. The first such call of each kind gives a warning; all are counted in
    `SwapReport.handed_on`, but for those in code that torch.compile compiled.
    """

    # In a tuple, so that nn.Module does not take it for a submodule.
    _swapped_from: tuple[nn.MultiheadAttention]
    _name: str
    _handed_on: Counter[tuple[str, str]]

    @classmethod
    def of(
        cls,
        original: nn.MultiheadAttention,
        name: str,
        handed_on: Counter[tuple[str, str]],
        backend: str | None,
    ) -> "SwappedMultiheadAttention":
        """One that shares the parameters of a module and falls back to it.

        Args:
            original: to replace.
            name: of the module in its model.
            handed_on: where calls are counted, by name and argument.
            backend: as in `masked_attention`.
        """
        new = cls.from_mha(original, backend)
        new._swapped_from = (original,)
        new._name = name
        new._handed_on = handed_on
        # torch.fx takes modules of torch.nn as leaves, as the original is.
        new.__module__ = "torch.nn"
        return new

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        refusal = self.refusal(need_weights, attn_mask, is_causal)
        inputs = (query, key, value, key_padding_mask)
        if refusal is None:
            return super().forward(*inputs)
        if not torch.compiler.is_compiling():
            self._tell(refusal.partition(":")[0])
        (original,) = self._swapped_from
        share_parameters(self, original)
        original.training = self.training
        return original(*inputs, need_weights, attn_mask, average_attn_weights, is_causal)

    def _tell(self, argument: str) -> None:
        told = any(kind == argument for _, kind in self._handed_on)
        self._handed_on[self._name, argument] += 1
        if not told:
            warnings.warn(
                f"{self._name}: a call with {argument} was handed to the nn.MultiheadAttention "
                "that was swapped; further ones are counted in SwapReport.handed_on",
                stacklevel=2,
            )
