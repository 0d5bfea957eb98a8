# SPDX-License-Identifier: BSD-3-Clause
"""Arguments of the raw ops that do not fit together, at random and repeatable by their seed."""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from maskattn_kernels import masked_attention
from maskattn_kernels.biases import absolute_lse, bias_level
from maskattn_kernels.op_table import OPS, BackendOps
from maskattn_kernels.token_index import TokenIndex, with_heads

REFUSALS = (RuntimeError, ValueError, TypeError, NotImplementedError, IndexError)


class Hostile:
    """Arguments of random shapes, strides and contents."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.rng = random.Random(seed)
        self.dtype = dtype

    def often(self, chance: float) -> bool:
        return self.rng.random() < chance

    def laid_out(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of zeros: contiguous, permuted, strided, expanded or overlapping."""
        kind = self.rng.choice(["plain", "permuted", "strided", "expanded", "overlapping"])
        if kind == "permuted":
            order = self.rng.sample(range(len(shape)), len(shape))
            t = torch.zeros([shape[d] for d in order], dtype=dtype)
            return t.permute([order.index(d) for d in range(len(shape))])
        if kind == "strided":
            steps = [self.rng.choice([1, 1, 2, 3]) for _ in shape]
            t = torch.zeros([n * s for n, s in zip(shape, steps, strict=True)], dtype=dtype)
            return t[tuple(slice(None, None, s) for s in steps)]
        if kind == "expanded":
            base = [1 if self.often(0.5) else n for n in shape]
            return torch.zeros(base, dtype=dtype).expand(shape)
        if kind == "overlapping" and math.prod(shape):
            strides = [self.rng.randrange(4) for _ in shape]
            span = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1
            return torch.zeros(span, dtype=dtype).as_strided(shape, strides)
        return torch.zeros(shape, dtype=dtype)

    def numbers(self, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
        t = self.laid_out(shape, dtype or self.dtype)
        storage = torch.empty(0, dtype=t.dtype).set_(t.untyped_storage())
        few = torch.tensor([self.rng.gauss(0, 1) for _ in range(17)], dtype=t.dtype)
        storage.copy_(few.repeat(len(storage) // 17 + 1)[: len(storage)])
        return t

    def wrong(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape; now and then with another size or number of dimensions."""
        if self.often(0.96):
            return shape
        d = self.rng.randrange(len(shape))
        changed = max(0, shape[d] + self.rng.choice([-1, 1, 7]))
        return self.rng.choice(
            [(*shape[:d], changed, *shape[d + 1 :]), shape[:d] + shape[d + 1 :], (*shape, 1)]
        )

    def index(self, batch: int, heads: int, n: int) -> tuple[Tensor | None, Tensor | None]:
        """Lists of tokens with their counts; now and then of other sizes, or with wrong entries."""
        if self.often(0.2):
            return None, None
        own = [1 if self.often(0.3) else size for size in (batch, heads)]
        mask = torch.tensor([self.often(0.5) for _ in range(math.prod(own) * n)], dtype=torch.bool)
        indices, counts = OPS["reference"].select_tokens(mask.view(*own, n))
        if self.often(0.2):  # one count for several lists
            counts = counts[: self.rng.randint(0, own[0]), : self.rng.randint(0, own[1])]
        extremes = [-(2**31), -1, 0, 1, n - 1, n, n + 1, 2 * n + 7, 10**6, 2**31 - 1]
        for t in (indices, counts):
            if t.numel() and self.often(0.15):
                t[tuple(self.rng.randrange(size) for size in t.shape)] = self.rng.choice(extremes)
        indices, counts = self.written(indices), self.written(counts)
        if self.often(0.02):
            indices = indices.long()
        return (indices, None) if self.often(0.01) else (indices, counts)

    def written(self, values: Tensor) -> Tensor:
        """The values in another layout; of places that share memory, the last is right."""
        t = self.laid_out(self.wrong(tuple(values.shape)), values.dtype)
        if t.shape != values.shape:
            return t
        storage = torch.empty(0, dtype=t.dtype).set_(t.untyped_storage())
        places = torch.full(t.shape, t.storage_offset())
        for d, (size, stride) in enumerate(zip(t.shape, t.stride(), strict=True)):
            places += (torch.arange(size) * stride).view(-1, *[1] * (t.dim() - d - 1))
        storage[places.flatten()] = values.flatten()
        return t

    def mask(self, batch: int, heads: int, n: int) -> Tensor | None:
        """A mask, with heads or without; now and then of other sizes."""
        if self.often(0.2):
            return None
        shape = self.per_token(batch, heads, n)
        values = [self.often(0.5) for _ in range(math.prod(shape))]
        return self.written(torch.tensor(values, dtype=torch.bool).view(shape))

    def per_token(self, batch: int, heads: int, n: int) -> tuple[int, ...]:
        own = [1 if self.often(0.3) else size for size in (batch, heads)]
        return (own[0], n) if self.often(0.5) else (*own, n)

    def sizes(self) -> tuple[int, int, int, int, int, int]:
        """Batch, heads of query and key, lengths of query and key, and head_dim."""
        size = self.rng.choice
        b, kv, d = size([0, 1, 2, 3]), size([1, 1, 2, 3]), size([1, 3, 8, 16, 33])
        h = kv * size([1, 1, 2])
        return b, h, kv, size([0, 1, 5, 17, 40]), size([0, 1, 6, 17, 70]), d

    def qkv(self, b: int, h: int, kv: int, nq: int, nk: int, d: int) -> tuple[Tensor, ...]:
        shapes = ((b, h, nq, d), (b, kv, nk, d), (b, kv, nk, d))
        return tuple(self.numbers(self.wrong(shape)) for shape in shapes)

    def masked_call(self) -> tuple[Any, ...]:
        """The arguments of X_infer."""
        b, h, kv, nq, nk, _ = sizes = self.sizes()
        masks = self.mask(b, h, nq), self.mask(b, kv, nk)
        shape = self.wrong(self.per_token(b, kv, nk))
        bias = self.numbers(shape, torch.float32) if self.often(0.4) else None
        return (*self.qkv(*sizes), *masks, bias, 0.5)

    def call(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """The arguments of X_fwd, and those that X_bwd takes in front of them."""
        b, h, kv, nq, nk, d = sizes = self.sizes()
        query, key, value = self.qkv(*sizes)
        bias = self.numbers(self.wrong((b, kv, nk)), torch.float32) if self.often(0.4) else None
        forward = (query, key, value, *self.index(b, h, nq), *self.index(b, kv, nk), bias, 0.5)
        dout, out = (self.numbers(self.wrong((b, h, nq, d))) for _ in range(2))
        lse = self.numbers(self.wrong((b, h, nq)), torch.float32)
        dlse = self.numbers(self.wrong((b, h, nq)), torch.float32) if self.often(0.5) else None
        return forward, (dout, dlse, query, key, value, out, lse)


def outcome(op: Callable[..., Any], *args: Any) -> tuple[tuple[Tensor, ...], str]:
    """The results of the op and "", or none and why it refuses."""
    try:
        return op(*args), ""
    except REFUSALS as refusal:
        return (), f"{type(refusal).__name__}: {refusal}"
    except Exception as error:
        # What the strict interpreter says of a token listed twice: both stores are the same.
        if "an address is stored twice" not in str(error):
            raise
        return (), str(error)


def absolute(lse: Tensor, bias: Tensor | None, keys: Tensor | TokenIndex | None) -> Tensor:
    """The lse of absolute biases, from that of an op that takes any bias."""
    return lse if bias is None else absolute_lse(lse, bias_level(with_heads(bias), keys))


def compare(results: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    for got, right in zip(results, expected, strict=True):
        torch.testing.assert_close(got, right, atol=tolerance, rtol=tolerance)


def call_with_masks(ops: BackendOps, dtype: torch.dtype, seed: int, calls: int) -> int:
    """Makes hostile calls of infer and masks_bwd; how many were not refused.

    A call is refused if and only if `masked_attention` refuses it, and the others give the bits of
    the ops that take lists.
    """
    hostile, ran = Hostile(seed, dtype), 0

    def validated(
        q: Tensor, k: Tensor, v: Tensor, queries: Any, keys: Any, bias: Any, _: Any
    ) -> Any:
        masks = {"query_mask": queries, "key_mask": keys, "key_bias": bias}
        return masked_attention(q, k, v, **masks, enable_gqa=True, backend="reference")

    for _ in range(calls):
        args = hostile.masked_call()
        results, refusal = outcome(ops.infer, *args)
        why = outcome(validated, *args)[1]
        assert bool(refusal) == bool(why), f"infer: {refusal!r}, masked_attention: {why!r}"
        query, key, value, *masks, bias, scale = args
        if refusal:
            before = (torch.ones_like(query), None, query, key, value, query, query.float().sum(-1))
            assert outcome(ops.masks_bwd, *before, *args[3:])[1], (
                f"masks_bwd runs, infer: {refusal}"
            )
            continue
        ran += 1
        none = (None, None)
        lists = [none if m is None else ops.select_tokens(with_heads(m)) for m in masks]
        whole = None if bias is None else with_heads(bias).expand(key.shape[:3])
        rest = (*lists[0], *lists[1], whole, scale)
        same = ops.fwd(query, key, value, *rest)
        before = (hostile.numbers(query.shape), None, query, key, value, *results)
        *gradients, dbias = ops.masks_bwd(*before, *args[3:])
        *expected, of_heads = ops.bwd(*before, *rest)
        for got, right in zip((*results, *gradients), (*same, *expected), strict=True):
            assert torch.equal(got, right)
        if bias is not None:
            of_heads = of_heads.sum_to_size(with_heads(bias).shape).view(bias.shape)
        torch.testing.assert_close(dbias, of_heads)
    return ran


def call_at_random(ops: BackendOps, dtype: torch.dtype, seed: int, calls: int, agree: bool) -> int:
    """Makes hostile calls forward and backward; how many of the forward calls were not refused.

    With `agree`, a call is refused if and only if the reference refuses it, and the results of the
    others are those of the reference. Without, as on a GPU, index lists are clamped.
    """
    hostile, ran = Hostile(seed, dtype), 0
    tolerance = 1e-3 if dtype is torch.float32 else 2e-2

    def call(name: str, *args: Any) -> tuple[Tensor, ...]:
        results, refusal = outcome(getattr(ops, name), *args)
        if agree:
            expected, why = outcome(getattr(OPS["reference"], name), *args)
            assert bool(refusal) == bool(why), f"{name}: {refusal!r}, the reference: {why!r}"
            assert [t.shape for t in results] == [t.shape for t in expected]
            if results and name == "fwd":
                bias, keys = args[7], None if args[5] is None else TokenIndex(*args[5:7])
                compare((results[0], absolute(results[1], bias, keys)), expected, tolerance)
        return results

    for _ in range(calls):
        forward, before = hostile.call()
        call("bwd", *before, *forward[3:])
        results = call("fwd", *forward)
        if results:
            ran += 1
            gradients = call("bwd", *before[:5], *results, *forward[3:])
            assert not any(t.isnan().any() for t in (*results, *gradients))
    return ran
