# SPDX-License-Identifier: BSD-3-Clause
"""Runs a case on a target (backend, instruction-set tier, dtype) and proves that it ran there."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any
from unittest.mock import patch

import pytest
import torch
from cases import Case, Inputs, make
from interpreter import make_strict
from oracle import assert_close, dense_attention, dense_by_lse
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from maskattn_kernels import backends, masked_attention, select_tokens
from maskattn_kernels.backends.triton_ops import INTERPRETED

RESULTS = ("out", "lse", "dq", "dk", "dv", "dbias")
REORDERINGS = 3  # more looks at eager PyTorch's error, by other orders of summation
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Target:
    backend: str
    dtype: torch.dtype
    tier: str | None = None
    device: str = "cpu"

    def __str__(self) -> str:
        device = "" if self.device in ("cpu", self.backend) else self.device
        parts = (self.backend, device, self.tier, str(self.dtype).removeprefix("torch."))
        return "-".join(part for part in parts if part)

    def missing(self) -> str | None:
        """Why this target cannot run here, with its tier in the environment; None if it can."""
        record = next(r for r in backends() if r.name == self.backend)
        if self.tier and self.tier not in record.build.get("tiers", "").split():
            built = record.build.get("tiers") or "; ".join(record.reasons)
            return f"the library is built without the {self.tier} tier: {built}"
        return None if record.available else "; ".join(record.reasons)


VECTOR_TIERS = ("generic", "avx2", "avx512")
# These multiply bfloat16 only: their other dtypes are rows of a vector tier.
BFLOAT16_TIERS = ("avx512_bf16", "amx", "neon_bf16")
TARGETS = [Target("reference", dtype) for dtype in (torch.float64, *FLOATS)]
TARGETS += [Target("cpu", dtype, tier) for tier in VECTOR_TIERS for dtype in FLOATS]
TARGETS += [Target("cpu", torch.bfloat16, tier) for tier in BFLOAT16_TIERS]
# The Triton kernels need a GPU, or TRITON_INTERPRET=1: `make test` runs pytest once more with it.
TRITON_DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
TRITON_TARGETS = [
    Target("triton", dtype, device=TRITON_DEVICE)
    for dtype in FLOATS
    if INTERPRETED or TRITON_DEVICE == "cuda"
]
TARGETS += TRITON_TARGETS
# The CUDA kernels need a GPU; `test_cuda_twin.py` runs them without one.
CUDA_TARGETS = [
    Target("cuda", dtype, device="cuda") for dtype in FLOATS if torch.cuda.is_available()
]
TARGETS += CUDA_TARGETS
# One dtype a tier, for what does not depend on rounding.
ONE_DTYPE_TARGETS = [Target("reference", torch.float32)]
ONE_DTYPE_TARGETS += [Target("cpu", torch.float32, tier) for tier in VECTOR_TIERS]
ONE_DTYPE_TARGETS += [Target("cpu", torch.bfloat16, tier) for tier in BFLOAT16_TIERS]
ONE_DTYPE_TARGETS += [t for t in TRITON_TARGETS[:1] if t.device == "cpu"]


def untested_tiers() -> dict[str, str]:
    """The CPU tiers whose tests are skipped here, each with the reason."""
    reasons = {}
    for tier in VECTOR_TIERS + BFLOAT16_TIERS:
        with patch.dict(os.environ, MASKATTN_CPU_TIER=tier):
            reason = Target("cpu", torch.bfloat16, tier).missing()
        if reason:
            reasons[tier] = reason
    return reasons


def activate(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forces the target's tier, or skips the test and says why; makes the interpreter strict."""
    if target.tier:
        monkeypatch.setenv("MASKATTN_CPU_TIER", target.tier)
    reason = target.missing()
    if reason:
        pytest.skip(reason)
    if target.tier:
        record = next(r for r in backends() if r.name == target.backend)
        assert record.build["tier"] == target.tier
    if target.backend == "triton" and INTERPRETED:
        make_strict(monkeypatch)


class RanOps(TorchDispatchMode):
    """Notes which of the package's ops run: the only proof that a backend did the work."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace == "maskattn":  # and it did not raise
            self.names.append(func._opname)
        return result


@contextmanager
def ran_on(backend: str) -> Iterator[None]:
    """Fails unless the block ran ops of this backend and of no other."""
    with RanOps() as ran:
        yield
    ran_backends = {name.split("_")[0] for name in ran.names}
    assert ran_backends == {backend}, f"expected ops of {backend}, ran {ran.names}"


def arguments(x: Inputs) -> dict[str, Any]:
    """The keyword arguments of `masked_attention` for a case."""
    key_mask, query_mask = x.key_mask, x.query_mask
    if x.as_index:
        key_mask, query_mask = select_tokens(key_mask), select_tokens(query_mask)
    return {
        "key_mask": key_mask,
        "query_mask": query_mask,
        "scale": x.scale,
        "enable_gqa": x.query.shape[1] != x.key.shape[1],
    }


def leaves(x: Inputs, dtype: torch.dtype | None = None) -> list[Tensor]:
    """query, key, value and, if there is one, key_bias as leaves; strides are kept unless cast."""
    tensors = [t for t in (x.query, x.key, x.value, x.key_bias) if t is not None]
    return [t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors]


def moved(x: Inputs, device: str) -> Inputs:
    """The tensors on another device, in the same places of the same storages."""
    if device == "cpu":
        return x

    def move(t: Tensor) -> Tensor:
        there = torch.empty(0, dtype=t.dtype, device=device)
        place = (t.storage_offset(), t.size(), t.stride())
        return there.set_(t.untyped_storage().to(device=device), *place)

    tensors = {f.name: getattr(x, f.name) for f in fields(x)}
    return replace(x, **{name: move(t) for name, t in tensors.items() if isinstance(t, Tensor)})


def run(target: Target, x: Inputs) -> dict[str, Tensor]:
    """Forward and backward of the op on the target."""
    x = moved(x, target.device)
    inputs = leaves(x)
    bias = inputs[3] if x.key_bias is not None else None
    kwargs = arguments(x)
    with ran_on(target.backend):
        out, lse = masked_attention(
            *inputs[:3], key_bias=bias, return_lse=True, backend=target.backend, **kwargs
        )
        grads = torch.autograd.grad((out, lse), inputs, (x.dout, x.dlse))
    results = (out.detach(), lse.detach(), *grads)
    return {name: t.cpu() for name, t in zip(RESULTS, results, strict=False)}


def run_dense(x: Inputs, dtype: torch.dtype) -> dict[str, Tensor]:
    """The same by dense attention in the dtype."""
    inputs = leaves(x, dtype)
    bias = inputs[3] if x.key_bias is not None else None
    out, lse = dense_attention(*inputs[:3], x.key_mask, x.query_mask, bias, x.scale)
    dlse = x.dlse.to(dtype).masked_fill(lse == -torch.inf, 0)
    grads = torch.autograd.grad((out, lse), inputs, (x.dout.to(dtype), dlse))
    return dict(zip(RESULTS, (out.detach(), lse.detach(), *grads), strict=False))


def run_by_lse(x: Inputs) -> dict[str, Tensor]:
    """The same by dense formulas, which autograd has no part in."""
    qkv, masks = (x.query, x.key, x.value), (x.key_mask, x.query_mask)
    results = dense_by_lse(*qkv, *masks, x.key_bias, x.scale, x.dout, x.dlse)
    return dict(zip(RESULTS, results, strict=False))


def reordered(x: Inputs, generator: torch.Generator) -> tuple[Inputs, dict[str, Callable]]:
    """The call with tokens and features in another order, and the way back of each result."""
    queries = torch.randperm(x.query.shape[2], generator=generator)
    keys = torch.randperm(x.key.shape[2], generator=generator)
    features = torch.randperm(x.query.shape[3], generator=generator)

    def rows(tokens: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda t: t[:, :, tokens][..., features]

    def back(tokens: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda t: t[:, :, tokens.argsort()][..., features.argsort()]

    changed = replace(
        x,
        query=rows(queries)(x.query),
        key=rows(keys)(x.key),
        value=rows(keys)(x.value),
        key_mask=x.key_mask[..., keys] if x.key_mask is not None else None,
        query_mask=x.query_mask[..., queries] if x.query_mask is not None else None,
        key_bias=x.key_bias[..., keys] if x.key_bias is not None else None,
        dout=rows(queries)(x.dout),
        dlse=x.dlse[..., queries],
    )
    ways_back = {"out": back(queries), "dq": back(queries), "dk": back(keys), "dv": back(keys)}
    ways_back["lse"] = lambda t: t[..., queries.argsort()]
    ways_back["dbias"] = lambda t: t[..., keys.argsort()]
    return changed, ways_back


@cache
def expected(case: Case, dtype: torch.dtype) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """(truth, eager PyTorch's answers) of a case: once for all backends and tiers."""
    x = make(case, dtype)
    eager = [run_dense(x, dtype), run_by_lse(x)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(REORDERINGS):
        y, ways_back = reordered(x, generator)
        eager += [
            {name: ways_back[name](t) for name, t in results.items()}
            for results in (run_dense(y, dtype), run_by_lse(y))
        ]
    return run_dense(x, torch.float64), eager


def is_slow(target: Target) -> bool:
    """Whether it runs in Triton's interpreter."""
    return target.backend == "triton" and target.device == "cpu"


def trimmed(case: Case, target: Target) -> Case:
    """A case with fewer tokens for a slow target, where it is large; of the same kind."""
    pairs = case.batch * case.heads * case.query_len * case.key_len
    if not is_slow(target) or pairs < 50_000:
        return case
    if "tile_empty" in case.name:  # needs its three tiles
        return replace(case, batch=1, heads=1, kv_heads=1)
    shorter = {"query_len": min(case.query_len, 70), "key_len": min(case.key_len, 75)}
    return replace(case, batch=min(case.batch, 2), **shorter)


def check_against_oracle(target: Target, case: Case) -> None:
    """Every result of the target within the error rule."""
    results = run(target, make(case, target.dtype))
    truth, eager = expected(case, target.dtype)
    assert results.keys() == truth.keys()
    for name, result in results.items():
        assert_close(name, result, truth[name], [e[name] for e in eager], target.dtype)
