# SPDX-License-Identifier: BSD-3-Clause
"""Triton's own way from a call to a launch, without a GPU: specialisation, compiler, launcher.

The interpreter and `maskattn tiles` both go around it. Here a stub of the driver stands at its end
(`stub_driver`), and holds what it gets against the machine code. A few calls run always;
MASKATTN_VARIANTS=all runs every one on every chip (some minutes).
"""

import mmap
import os
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from cases import Case, Inputs, make
from harness import FLOATS, INTERPRETED, arguments, leaves, ran_on
from stub_driver import ARCHS, Launch, launches, using
from torch import Tensor

from maskattn_kernels import masked_attention

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.skipif(INTERPRETED, reason="Triton's interpreter launches nothing"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: no need for a stub"),
]
NORESERVE = 0x4000  # of mmap; Python has no name for it
EVERYTHING = os.environ.get("MASKATTN_VARIANTS") == "all"
BASE = Case("launch", heads=2, query_len=300, key_len=300, head_dim=64)
LONG = replace(BASE, batch=1, heads=1, kv_heads=1, query_len=40, key_len=16_384)


def tokens_major(x: Inputs) -> Inputs:
    """(B, N, H, D) in memory, as a projection split into heads is."""

    def turned(t: Tensor) -> Tensor:
        return t.transpose(1, 2).contiguous().transpose(1, 2)

    return replace(
        x, query=turned(x.query), key=turned(x.key), value=turned(x.value), dout=turned(x.dout)
    )


def every_third(x: Inputs) -> Inputs:
    """Masks whose tokens lie three bytes apart."""

    def spread(mask: Tensor | None) -> Tensor | None:
        return None if mask is None else mask.repeat_interleave(3, -1)[..., ::3]

    return replace(x, key_mask=spread(x.key_mask), query_mask=spread(x.query_mask))


def far_apart(x: Inputs) -> Inputs:
    """Batch items further apart than a 32-bit number says; memory that nothing touches."""

    def spread(t: Tensor) -> Tensor:
        step = 2**31 + 16
        size = (step * (len(t) - 1) + t[0].numel()) * t.element_size()
        storage = torch.frombuffer(mmap.mmap(-1, size, mmap.MAP_PRIVATE | NORESERVE), dtype=t.dtype)
        return storage.as_strided(t.shape, (step, *t.stride()[1:]))

    return replace(x, query=spread(x.query), key=spread(x.key), value=spread(x.value))


VARIANTS: dict[str, tuple[Case, Callable[[Inputs], Inputs]]] = {
    "masks": (BASE, lambda x: x),
    "key_mask": (replace(BASE, queries=None), lambda x: x),
    "query_mask": (replace(BASE, keys=None), lambda x: x),
    "no_mask": (replace(BASE, keys=None, queries=None), lambda x: x),
    "bias": (replace(BASE, bias="per_head"), lambda x: x),
    "bias_without_mask": (replace(BASE, keys=None, queries=None, bias="normal"), lambda x: x),
    "short": (replace(BASE, query_len=200, key_len=200), lambda x: x),
    "short_bias": (replace(BASE, query_len=200, key_len=200, bias="normal"), lambda x: x),
    "short_key_mask": (replace(BASE, query_len=200, key_len=200, queries=None), lambda x: x),
    "groups": (replace(BASE, heads=8, kv_heads=2, per_head=True), tokens_major),
    "one_item": (replace(BASE, batch=1, heads=1, kv_heads=1), lambda x: x),
    "split_keys": (LONG, lambda x: x),
    "split_queries": (replace(LONG, query_len=2048, key_len=300, queries=None), lambda x: x),
    "one_token": (replace(BASE, query_len=1, key_len=1), lambda x: x),
    "odd": (replace(BASE, query_len=1001, key_len=777, bias="normal"), lambda x: x),
    "mask_strides": (BASE, every_third),
    "shared_mask": (replace(BASE, shared=True), lambda x: x),
    "far_apart": (BASE, far_apart),
    "index": (replace(BASE, as_index=True), lambda x: x),
    **{f"d{d}": (replace(BASE, head_dim=d), lambda x: x) for d in (1, 3, 46, 80, 128, 256)},
    "large_d128": (replace(BASE, batch=8, query_len=8192, key_len=8192, head_dim=128), lambda x: x),
}
FEW = [
    ("sm_90", "masks", torch.bfloat16),
    ("sm_90", "bias_without_mask", torch.float32),
    ("sm_90", "short_bias", torch.float16),
    ("sm_90", "split_keys", torch.bfloat16),
    ("sm_90", "split_queries", torch.bfloat16),
    ("sm_90", "d46", torch.bfloat16),
    ("sm_80", "groups", torch.bfloat16),
    ("sm_100", "bias", torch.bfloat16),
]
ALL = [(arch, name, dtype) for arch in ARCHS for name in VARIANTS for dtype in FLOATS]


def kernels(found: list[Launch]) -> list[str]:
    return [launch.kernel.removesuffix("_kernel") for launch in found]


@pytest.mark.parametrize(
    ("arch", "name", "dtype"),
    ALL if EVERYTHING else FEW,
    ids=lambda p: str(p).removeprefix("torch."),
)
def test_a_call_is_compiled_and_launched(arch: str, name: str, dtype: torch.dtype) -> None:
    """Forward alone, then with gradients: the kernels, and whose memory they get."""
    case, change = VARIANTS[name]
    x = change(make(case, dtype))
    inputs = leaves(x)
    bias = inputs[3] if x.key_bias is not None else None
    with using(arch) as library:
        more = arguments(x) | {"key_bias": bias, "backend": "triton"}
        with torch.no_grad():
            masked_attention(*inputs[:3], **more)
        inference = launches(library)
        library.stub_forget()
        with ran_on("triton"):
            out, lse = masked_attention(*inputs[:3], return_lse=True, **more)
            grads = torch.autograd.grad((out, lse), inputs, (x.dout, x.dlse))
        training = launches(library)

    masks = [] if x.as_index else [m for m in (x.key_mask, x.query_mask) if m is not None]
    short = max(case.query_len, case.key_len) <= 256
    # Small tiles, as those of float32, are shared in other calls too.
    forward = ["fwd", "combine"] if "combine" in kernels(training) else ["fwd"]
    assert len(forward) == 2 or name != "split_keys"
    listing = ["select_tokens"] * len(masks)
    is_packed = case.head_dim % 16 > 0
    pack = ["pack"] * is_packed
    assert kernels(inference) == ([] if short else listing + pack) + forward
    keys = ["dkdv", "combine_keys"] if "combine_keys" in kernels(training) else ["dkdv"]
    assert len(keys) == 2 or name != "split_queries"
    assert kernels(training) == [*listing, *pack, *forward, "delta", *pack, *pack, *keys, "dq"]
    by_kernel = {launch.kernel.removesuffix("_kernel"): launch for launch in training}
    q, k, v = (t.data_ptr() for t in inputs[:3])  # the kernels get bias and lse in another form
    dout, dlse = x.dout.data_ptr(), x.dlse.data_ptr()
    dq, dk, dv = (t.data_ptr() for t in grads[:3])
    read = [q, k, v, dout]
    if is_packed:  # keys; queries and keys: each reads two tensors and writes two
        packs = [launch.pointers()[:4] for launch in training if launch.kernel == "pack_kernel"]
        assert [two[:2] for two in packs] == [[k, v], [dout, q], [k, v]]
        assert by_kernel["fwd"].pointers()[:3] == [q, *packs[0][2:]]
        read = packs[1][2:] + packs[2][2:]
    else:
        assert by_kernel["fwd"].pointers()[:3] == [q, k, v]
    results = {out.data_ptr()} if x.key_bias is not None else {out.data_ptr(), lse.data_ptr()}
    assert results <= set(by_kernel[forward[-1]].pointers())
    assert {dout, dlse} <= set(by_kernel["delta"].pointers())
    assert set(read) <= set(by_kernel["dkdv"].pointers())
    assert {dk, dv} <= set(by_kernel[keys[-1]].pointers())
    assert {*read, dq} <= set(by_kernel["dq"].pointers())
    for launch in training:
        assert launch.gpu == list(ARCHS).index(arch)
        assert launch.threads % 32 == 0


def test_the_stub_reads_arguments_as_the_machine_code_takes_them() -> None:
    """Lengths are no constants of the kernel: one of each, in its place, between the pointers."""
    x = make(replace(BASE, query_len=301, key_len=303), torch.bfloat16)
    with using("sm_90") as library:
        masked_attention(x.query, x.key, x.value, backend="triton")
        (launch,) = launches(library)
    assert {301, 303} <= {value for size, value in launch.arguments if size == 4}
    assert launch.pointers()[:3] == [t.data_ptr() for t in (x.query, x.key, x.value)]
