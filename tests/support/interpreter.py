# SPDX-License-Identifier: BSD-3-Clause
"""Triton's interpreter made strict: what a GPU would do in silence fails here.

Every kernel that a test launches after `make_strict`

- runs its programs in a shuffled order, since a GPU promises none;
- may touch only memory of the tensors it was given;
- may store to an address once, so no two programs race for one;
- may not overflow a 32-bit integer.

Two things are done here in less time than the interpreter takes, and to the same end: it patches
triton's language anew at each call of a device function, and it looks for overflow with a dozen
operations of its own for each addition.
"""

import inspect
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

EXACT = {"add": np.add, "sub": np.subtract, "mul": np.multiply}


class Watch:
    """The launch under way: the order of its programs, its memory, and what was stored."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.order: list[int] = []
        self.starts, self.ends = np.zeros(0, np.uint64), np.zeros(0, np.uint64)
        self.stored: set[int] = set()
        self.patched: set[int] = set()

    def begin(self, programs: int) -> None:
        self.order = self.random.sample(range(programs), programs)
        self.stored.clear()

    def give(self, tensors: list[torch.Tensor]) -> None:
        storages = [t.untyped_storage() for t in tensors]
        storages = sorted((s.data_ptr(), s.data_ptr() + s.nbytes()) for s in storages)
        self.starts = np.array([s for s, _ in storages], np.uint64)
        self.ends = np.array([e for _, e in storages], np.uint64)
        self.patched.clear()

    def access(self, ptrs: Any, mask: Any) -> np.ndarray:
        """The addresses that an access touches."""
        addresses = np.broadcast_to(ptrs.data, np.broadcast(ptrs.data, mask.data).shape)
        addresses = addresses[np.broadcast_to(mask.data, addresses.shape)]
        size = max(1, ptrs.get_element_ty().primitive_bitwidth // 8)
        within = np.searchsorted(self.starts, addresses, side="right").astype(np.int64) - 1
        ends = self.ends[np.maximum(within, 0)] if len(self.ends) else np.zeros(1, np.uint64)
        if (within < 0).any() or (addresses + np.uint64(size) > ends).any():
            raise MemoryError("a program touches memory outside of the kernel's tensors")
        return addresses

    def store(self, addresses: np.ndarray) -> None:
        new = set(addresses.tolist())
        if len(new) < addresses.size or not self.stored.isdisjoint(new):
            raise RuntimeError("an address is stored twice")
        self.stored |= new


def make_strict(monkeypatch: pytest.MonkeyPatch, seed: int = 0) -> None:
    """Watches all launches until the monkeypatch is undone."""
    from triton.runtime import interpreter

    builder, watch = interpreter.interpreter_builder, Watch(seed)

    def replace(owner: Any, name: str) -> Callable[[Callable], None]:
        return lambda make: monkeypatch.setattr(owner, name, make(getattr(owner, name)))

    @replace(builder, "set_grid_dim")
    def _(original: Callable) -> Callable:
        def set_grid_dim(x: int, y: int, z: int) -> None:
            watch.begin(x)
            original(x, y, z)

        return set_grid_dim

    @replace(builder, "set_grid_idx")
    def _(original: Callable) -> Callable:
        return lambda x, y, z: original(watch.order[x], y, z)

    @replace(builder, "create_masked_load")
    def _(original: Callable) -> Callable:
        def load(ptrs: Any, mask: Any, *rest: Any) -> Any:
            watch.access(ptrs, mask)
            return original(ptrs, mask, *rest)

        return load

    @replace(builder, "create_masked_store")
    def _(original: Callable) -> Callable:
        def store(ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
            watch.store(watch.access(ptrs, mask))
            return original(ptrs, value, mask, *rest)

        return store

    @replace(interpreter.GridExecutor, "_init_args_hst")
    def _(original: Callable) -> Callable:
        def give(self: Any, args: Any, kwargs: Any) -> Any:
            hosted = original(self, args, kwargs)
            watch.give([a for a in (*hosted[0], *hosted[1].values()) if hasattr(a, "data_ptr")])
            return hosted

        return give

    @replace(interpreter.TritonSemantic, "binary_op_sanitize_overflow_impl")
    def _(original: Callable) -> Callable:
        def check(self: Any, lhs: Any, rhs: Any, binary_op: Callable) -> None:
            kind = lhs.type.scalar
            if kind.int_bitwidth < 64:
                bounds = np.iinfo(kind.name)
                exact = EXACT[binary_op.__name__](lhs.handle.data, rhs.handle.data, dtype=np.int64)
                if exact.size and (exact.min() < bounds.min or exact.max() > bounds.max):
                    raise OverflowError(f"{kind.name} overflow in {binary_op.__name__}")

        return check

    modules_of: dict[Any, set[int]] = {}

    @replace(interpreter, "_patch_lang")
    def _(original: Callable) -> Callable:
        def patch(fn: Any) -> Any:
            if fn not in modules_of:
                modules_of[fn] = {id(m) for m in fn.__globals__.values() if inspect.ismodule(m)}
            modules = modules_of[fn]
            if modules <= watch.patched:
                return interpreter._LangPatchScope()
            watch.patched |= modules
            return original(fn)

        return patch
