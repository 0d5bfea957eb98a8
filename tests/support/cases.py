# SPDX-License-Identifier: BSD-3-Clause
"""The one table of named cases that every target runs, and the tensors of a case."""

import math
import zlib
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

TILES = (16, 32, 64, 128)  # tile sizes of the kernels, in tokens
EMPTY_TILES = {
    "first": 0,
    "middle": 1,
    "last": 2,
}  # of three tiles of 64 tokens, which one is empty

# How many tokens are selected: None (no mask), "none", "one", "all", a fraction, or
# "<which>_tile_empty".
Selection = str | float | None


@dataclass(frozen=True)
class Case:
    name: str
    batch: int = 2
    heads: int = 2
    kv_heads: int = 2
    query_len: int = 40
    key_len: int = 40
    head_dim: int = 16
    keys: Selection = 0.5
    queries: Selection = 0.5
    per_head: bool = False
    shared: bool = False  # one mask for the whole batch
    bias: str | None = None  # "normal", "some_inf", "all_inf", "low", "high", "per_head"
    scale: float | None = None
    magnitude: float = 1.0  # of the queries
    as_index: bool = False

    def __str__(self) -> str:
        return self.name


def _table() -> list[Case]:
    base = Case("")
    lengths = sorted({0, 1, 2, 3, 61, 97, 151} | {t + d for t in TILES for d in (-1, 0, 1)})
    cases = [replace(base, name=f"n{n}", batch=1, query_len=n, key_len=n) for n in lengths]
    cases += [
        replace(base, name=f"d{d}", query_len=37, key_len=70, head_dim=d)
        for d in (1, 3, 15, 16, 17, 46, 64, 80, 128, 200, 256)
    ]
    cases += [
        replace(
            base, name=f"all_keys_n{n}", batch=1, query_len=n, key_len=n, keys=None, queries=None
        )
        for n in (1, 17, 33, 65, 129)
    ]
    cases += [
        replace(base, name=f"cross_{m}_{n}", query_len=m, key_len=n)
        for m, n in ((1, 129), (130, 1), (37, 101), (0, 5), (5, 0))
    ]
    cases += [
        replace(base, name=f"few_{m}_of_{n}_d{d}", query_len=m, key_len=n, head_dim=d, **more)
        for m, n, d, more in (
            (1, 1100, 64, {"keys": None, "queries": None}),
            (8, 600, 46, {"queries": None, "scale": 0.4}),
            (70, 600, 16, {"queries": 0.07, "bias": "per_head"}),
            (1, 700, 128, {"heads": 8, "kv_heads": 1, "queries": None, "bias": "some_inf"}),
        )
    ]  # few queries, many keys
    cases += [
        replace(
            base,
            name=f"heads_{h}_{g}{'_per_head' * p}",
            heads=h,
            kv_heads=g,
            per_head=p,
            key_len=50,
        )
        for h, g in ((4, 2), (6, 1), (3, 3), (8, 4))
        for p in (False, True)
    ]
    cases += [
        replace(base, name=f"keys_{k}_queries_{q}", query_len=130, key_len=200, keys=k, queries=q)
        for k, q in (
            ("none", 0.5),
            ("one", 0.5),
            (0.01, 0.5),
            ("all", "all"),
            (0.5, "none"),
            (0.5, "one"),
            (0.5, 0.01),
            ("one", "one"),
            ("none", "none"),
            (None, 0.1),
            (0.1, None),
            (0.9, 0.9),
        )
    ]
    cases += [
        replace(
            base,
            name=f"{which}_tile_empty",
            query_len=192,
            key_len=192,
            keys=f"{which}_tile_empty",
            queries=f"{which}_tile_empty",
        )
        for which in EMPTY_TILES
    ]
    cases += [
        replace(base, name=f"bias_{bias}", key_len=75, bias=bias, heads=4)
        for bias in ("normal", "some_inf", "all_inf", "low", "high", "per_head")
    ]  # fmt: skip
    cases += [
        replace(base, name="zero_batch", batch=0),
        replace(base, name="zero_heads", heads=0, kv_heads=0),
        replace(base, name="scale_zero", scale=0.0),
        replace(base, name="scale_negative", scale=-0.7),
        replace(base, name="large_scores", magnitude=30.0, key_len=150),
        replace(base, name="shared_mask", batch=3, shared=True),
        replace(base, name="index", as_index=True),
        replace(base, name="index_per_head", as_index=True, per_head=True, heads=4, bias="normal"),
        replace(base, name="all_keys_bias", keys=None, queries=None, bias="normal"),
        replace(
            base,
            name="everything",
            batch=3,
            heads=6,
            query_len=133,
            key_len=171,
            head_dim=46,
            keys=0.3,
            queries=0.4,
            per_head=True,
            bias="per_head",
            scale=0.4,
        ),
    ]
    return cases


@dataclass(frozen=True)
class Inputs:
    """The tensors of one call, and the gradients that come back to it."""

    query: Tensor
    key: Tensor
    value: Tensor
    key_mask: Tensor | None
    query_mask: Tensor | None
    key_bias: Tensor | None
    dout: Tensor
    dlse: Tensor
    scale: float | None = None
    as_index: bool = False
    extra: dict[str, Any] = field(default_factory=dict)


def make(case: Case, dtype: torch.dtype, **changes: Any) -> Inputs:
    """The tensors of a case, the same ones every time."""
    case = replace(case, **changes)
    g = torch.Generator().manual_seed(zlib.crc32(case.name.encode()))
    b, h, hkv, nq, nk, d = (
        case.batch, case.heads, case.kv_heads, case.query_len, case.key_len, case.head_dim,
    )  # fmt: skip

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    accumulate = torch.float64 if dtype is torch.float64 else torch.float32
    mask_batch = 1 if case.shared else b
    return Inputs(
        query=(case.magnitude * normal(b, h, nq, d)).to(dtype),
        key=normal(b, hkv, nk, d).to(dtype),
        value=normal(b, hkv, nk, d).to(dtype),
        key_mask=_mask(case.keys, (mask_batch, hkv, nk), case.per_head, g),
        query_mask=_mask(case.queries, (mask_batch, h, nq), case.per_head, g),
        key_bias=_bias(case.bias, (b, hkv, nk), g, accumulate),
        dout=normal(b, h, nq, d).to(dtype),
        dlse=normal(b, h, nq).to(accumulate),
        scale=case.scale,
        as_index=case.as_index,
    )


def _mask(
    selection: Selection, shape: tuple[int, int, int], per_head: bool, g: torch.Generator
) -> Tensor | None:
    if selection is None:
        return None
    b, h, n = shape
    rows = (b, h) if per_head else (b,)
    if isinstance(selection, float):
        return torch.rand(*rows, n, generator=g) < selection
    mask = torch.zeros(*rows, n, dtype=torch.bool)
    if selection == "one" and n > 0:
        places = torch.randint(n, (math.prod(rows),), generator=g)
        mask.view(-1, n)[torch.arange(len(places)), places] = True
    elif selection == "all":
        mask[:] = True
    elif selection.endswith("_tile_empty"):
        start = 64 * EMPTY_TILES[selection.removesuffix("_tile_empty")]
        mask[:] = True
        mask[..., start : start + 64] = False
    return mask


def _bias(
    kind: str | None, shape: tuple[int, int, int], g: torch.Generator, dtype: torch.dtype
) -> Tensor | None:
    if kind is None:
        return None
    b, h, n = shape
    bias = (
        torch.randn(b, h, n, generator=g) if kind == "per_head" else torch.randn(b, n, generator=g)
    )
    if kind == "some_inf":
        bias = bias.masked_fill(torch.rand(b, n, generator=g) < 0.3, -torch.inf)
    elif kind == "all_inf":
        bias = torch.full_like(bias, -torch.inf)
    elif kind == "low":
        bias = bias - 5e4  # within float16, so that eager PyTorch can follow
    elif kind == "high":
        bias = 100 * bias
    return bias.to(dtype)


CASES = _table()
BY_NAME = {case.name: case for case in CASES}
