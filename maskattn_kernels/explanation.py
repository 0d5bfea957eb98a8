# SPDX-License-Identifier: BSD-3-Clause
"""What there is to run a call, and why: `backends` and `explain`."""

from dataclasses import dataclass

from torch import Tensor

from maskattn_kernels.backends import by_name, registered, why_not_chosen
from maskattn_kernels.functional import autocast
from maskattn_kernels.problem import Problem
from maskattn_kernels.token_index import TokenIndex
from maskattn_kernels.validation import validated

__all__ = ["BackendRecord", "Explanation", "backends", "explain"]


@dataclass(frozen=True)
class BackendRecord:
    """One backend on this machine.

    Attributes:
        name: what `masked_attention(backend=...)` takes.
        available: whether it can run anything here.
        reasons: why it cannot; empty when available.
        build: what was compiled, by what, for which processors.
    """

    name: str
    available: bool
    reasons: tuple[str, ...]
    build: dict[str, str]


def backends() -> list[BackendRecord]:
    """What this installation has, best first, and why not the rest.

    Example:
        >>> from maskattn_kernels import backends
        >>> [record.name for record in backends() if record.available][-1]
        'reference'
    """
    records = []
    for backend in registered():
        why = tuple(backend.unavailable())
        records.append(BackendRecord(backend.name, not why, why, backend.build()))
    return records


@dataclass(frozen=True)
class Explanation:
    """Which backend runs a call, and why each other one does not.

    Attributes:
        backend: the name of the backend that runs the call; None when the call would raise.
        reasons: for every other backend, in order of preference, why it does not run.
    """

    backend: str | None
    reasons: dict[str, tuple[str, ...]]

    def __str__(self) -> str:
        lines = [f"{self.backend}: runs" if self.backend else "no backend runs this call"]
        lines += [f"{name}: {'; '.join(why)}" for name, why in self.reasons.items()]
        return "\n".join(lines)


def explain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    key_mask: Tensor | TokenIndex | None = None,
    query_mask: Tensor | TokenIndex | None = None,
    key_bias: Tensor | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    backend: str | None = None,
) -> Explanation:
    """For this very call of `masked_attention`: which backend runs, and why each other does not.

    Takes the arguments of `masked_attention`, checks them in the same way, and computes nothing.

    Raises:
        TypeError, ValueError, NotImplementedError: as `masked_attention` for a bad argument; but a
            backend that cannot run is an answer here and no error.

    Example:
        >>> import torch
        >>> from maskattn_kernels import explain
        >>> q = torch.zeros(1, 1, 4, 8, dtype=torch.float64)
        >>> explain(q, q, q).backend
        'reference'
    """
    query, key, value = autocast(query, key, value)
    problem, _ = validated(query, key, value, key_mask, query_mask, key_bias, scale, enable_gqa)
    return _explained(problem, backend)


def _explained(problem: Problem, name: str | None) -> Explanation:
    known = registered()
    asked = known if name is None else (by_name(name),)
    why_nots = {
        b.name: why_not_chosen(b, problem) if name is None else b.reasons(problem) for b in known
    }
    chosen = next((b for b in asked if not why_nots[b.name]), None)
    broken = chosen.unavailable() if chosen else []  # chosen all the same: the call raises
    reasons: dict[str, tuple[str, ...]] = {}
    for backend in known:
        why = why_nots[backend.name]
        if backend is chosen:
            why = broken
        elif not why and name is not None:
            why = [f"could run, but backend={name!r} was asked for"]
        elif not why and chosen:
            why = [f"could run, but {chosen.name!r} is preferred"]
        if why:
            reasons[backend.name] = tuple(why)
    return Explanation(chosen.name if chosen and not broken else None, reasons)
