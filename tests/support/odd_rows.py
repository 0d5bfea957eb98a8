# SPDX-License-Identifier: BSD-3-Clause
"""Tensors whose rows no vector load may touch, and what must hold for kernels that pack them."""

from dataclasses import replace

import torch
from cases import Case, Inputs, make
from harness import RESULTS, Target, run
from poison import FIELDS, poisoned
from torch import Tensor

STREAMED = ("query", "key", "value", "dout")


def odd_stride(t: Tensor) -> Tensor:
    """The same values with NaN between the rows, which start at odd places."""
    return torch.full((*t.shape[:3], t.shape[3] + 3), torch.nan, dtype=t.dtype)[..., :-3].copy_(t)


def laid_out(x: Inputs, fields: tuple[str, ...] = STREAMED) -> Inputs:
    return replace(x, **{name: odd_stride(getattr(x, name)) for name in fields})


def check_unselected_are_invisible(target: Target, case: Case, poison: float) -> None:
    x = laid_out(make(case, target.dtype))
    clean, dirty = run(target, x), run(target, laid_out(poisoned(x, FIELDS, poison)))
    for result in clean:
        assert torch.equal(clean[result], dirty[result]), result


def check_query_without_keys_is_not_read(target: Target, case: Case) -> None:
    """Its row is packed with the others, NaN and all, and never used."""
    x = make(replace(case, bias="all_inf"), target.dtype)
    results = run(target, laid_out(replace(x, dout=x.dout * torch.nan)))
    for name in RESULTS:
        assert name == "lse" or not results[name].any(), name
