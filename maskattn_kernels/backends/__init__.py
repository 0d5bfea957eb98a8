# SPDX-License-Identifier: BSD-3-Clause
"""The backends in order of preference, and the choice among them."""

from collections.abc import Callable

import torch
from torch import Tensor

from maskattn_kernels.backends.base import SCHEMAS, Backend
from maskattn_kernels.backends.fa4_ops import Fa4Backend
from maskattn_kernels.backends.native import CpuBackend, CudaBackend
from maskattn_kernels.backends.reference import ReferenceBackend
from maskattn_kernels.backends.triton_ops import TritonBackend
from maskattn_kernels.problem import Problem

__all__ = ["Backend", "register", "registered"]

# Best first. A new backend of this package is one more entry here.
BACKENDS: tuple[Backend, ...] = (
    CpuBackend(),
    TritonBackend(),
    CudaBackend(),
    Fa4Backend(),
    ReferenceBackend(),
)
_FOLLOWERS: list[Callable[[Backend], None]] = []


def registered() -> tuple[Backend, ...]:
    """All backends, best first."""
    return BACKENDS


def register(backend: Backend, *, before: str = "reference") -> None:
    """Adds a backend from outside of this package to those of `masked_attention`.

    Args:
        backend: its ops `maskattn::NAME_select_tokens`, `_fwd` and `_bwd` (and `_infer`, if it has
            one) are defined already, with the schemas and conventions of `backends/base.py`. They
            get fakes, gradients, autocast, vmap and FLOP formulas.
        before: the backend that it is preferred to.

    Raises:
        TypeError: backend is not a `Backend`.
        ValueError: the name is taken, an op is missing, or there is no backend called `before`.

    Example::

        from maskattn_kernels.backends import Backend, register

        register(MyBackend())                        # chosen before the reference, if it can run
        masked_attention(q, k, v, backend="mine")
    """
    global BACKENDS
    if not isinstance(backend, Backend):
        raise TypeError(f"backend: expected a Backend, got {type(backend).__name__}")
    if backend.name in _names():
        raise ValueError(f"backend: expected a name other than {_names()}, got {backend.name!r}")
    ops = [f"{backend.name}_{name}" for name in SCHEMAS]
    missing = [f"maskattn::{op}" for op in ops if not hasattr(torch.ops.maskattn, op)]
    if missing:
        raise ValueError(f"backend: expected the ops {', '.join(missing)}, got none of that name")
    place = [known.name for known in BACKENDS].index(by_name(before).name)
    BACKENDS = (*BACKENDS[:place], backend, *BACKENDS[place:])
    for follow in _FOLLOWERS:
        follow(backend)


def on_register(follow: Callable[[Backend], None]) -> None:
    """Calls `follow` with every backend, those that are still to come too."""
    _FOLLOWERS.append(follow)
    for backend in BACKENDS:
        follow(backend)


def choose(problem: Problem, name: str | None = None) -> Backend:
    """The backend that runs `problem`: the one asked for by `name`, or else the best that can.

    Raises:
        TypeError: name is neither None nor a string.
        ValueError: there is no backend of that name.
        NotImplementedError: the backend asked for, or every backend, has reasons not to run the
            call.
    """
    if name is None:
        for backend in BACKENDS:
            if not why_not_chosen(backend, problem):
                return backend
        refusals = [f"{b.name} ({'; '.join(why_not_chosen(b, problem))})" for b in BACKENDS]
        raise NotImplementedError(f"no backend can run this call: {', '.join(refusals)}")
    backend = by_name(name)
    why = backend.reasons(problem)
    if why:
        raise NotImplementedError(f"backend: {name!r} cannot run this call: {'; '.join(why)}")
    return backend


def why_not_chosen(backend: Backend, problem: Problem) -> list[str]:
    """Why a call that names no backend does not come to this one; empty when it can."""
    if backend.by_name_only:
        hint = f"runs only if asked for by backend={backend.name!r}: {backend.by_name_only}"
        return backend.reasons(problem) or [hint]
    return backend.reasons(problem)


def by_name(name: str) -> Backend:
    """The backend called `name`."""
    if not isinstance(name, str):
        raise TypeError(f"backend: expected None or one of {_names()}, got {type(name).__name__}")
    for backend in BACKENDS:
        if backend.name == name:
            return backend
    raise ValueError(f"backend: expected None or one of {_names()}, got {name!r}")


def _names() -> tuple[str, ...]:
    return tuple(backend.name for backend in BACKENDS)


def _select_tokens(mask: Tensor) -> tuple[Tensor, Tensor]:
    """The best backend's select_tokens, for callers who have a mask but no call in hand yet."""
    batch, heads, length = mask.shape
    problem = Problem(batch, heads, heads, length, length, 1, torch.float32, mask.device.type)
    return getattr(torch.ops.maskattn, f"{choose(problem).name}_select_tokens")(mask)


_LIBRARY = torch.library.Library("maskattn", "FRAGMENT")
_LIBRARY.define("select_tokens(Tensor mask) -> (Tensor indices, Tensor counts)")
_LIBRARY.impl("select_tokens", _select_tokens, "CompositeImplicitAutograd")
