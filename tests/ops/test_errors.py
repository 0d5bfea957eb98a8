# SPDX-License-Identifier: BSD-3-Clause
"""Bad input: the right exception, in one line that names the argument, what was expected and what
came, before any work is done, and also under `python -O`.

Every check here is made by pytest.raises, so that the file means the same without assert
statements.
"""

import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from harness import RanOps
from repository import ROOT

from maskattn_kernels import TokenIndex, backends, explain, masked_attention, select_tokens

B, H, NQ, NK, D = 2, 4, 5, 6, 8


def valid(**changes: Any) -> dict[str, Any]:
    return {"query": torch.randn(B, H, NQ, D), "key": torch.randn(B, H, NK, D),
            "value": torch.randn(B, H, NK, D), **changes}  # fmt: skip


def qkv(make: Any, names: str = "query key value") -> dict[str, Any]:
    """A valid call with some of its tensors changed."""
    good = valid()
    return {**good, **{name: make(good[name]) for name in names.split()}}


def index(**changes: Any) -> TokenIndex:
    return select_tokens(torch.ones(B, NK, dtype=torch.bool))._replace(**changes)


def ones(*shape: int, dtype: torch.dtype = torch.bool, device: str = "cpu") -> torch.Tensor:
    return torch.ones(shape, dtype=dtype, device=device)


nested = torch.nested.nested_tensor([torch.randn(H, n, D) for n in (3, 4)])
nested_mask = torch.nested.nested_tensor([torch.ones(3), torch.ones(4)]).bool()
int32 = torch.int32

T, V, N = TypeError, ValueError, NotImplementedError
# name: (arguments, exception, what the message holds)
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "query_list": (qkv(lambda t: t.tolist(), "query"), T, "query: expected a tensor, got list"),
    "key_numpy": (qkv(lambda t: t.numpy(), "key"), T, "key: expected a tensor, got ndarray"),
    "value_none": (valid(value=None), T, "value: expected a tensor, got NoneType"),
    "query_rank": (qkv(lambda t: t[0], "query"), V, r"query: .*\(B, H, N, D\), got \(4, 5, 8\)"),
    "key_rank": (qkv(lambda t: t[None], "key"), V, r"key: .*\(B, H, N, D\), got \(1, 2"),
    "value_rank": (qkv(lambda t: t.flatten(), "value"), V, r"value: .*\(B, H, N, D\)"),
    "dtype_int": (qkv(torch.Tensor.int), T, "query: expected dtype float32.*got torch.int32"),
    "dtype_bool": (qkv(torch.Tensor.bool), T, "query: expected dtype float32.*got torch.bool"),
    "dtype_complex": (qkv(lambda t: t.cfloat()), T, "query: expected .*got torch.complex64"),
    "dtype_float8": (qkv(lambda t: t.to(torch.float8_e5m2)), T, "query: .*got torch.float8_e5m2"),
    "key_dtype": (qkv(torch.Tensor.half, "key"), T, "key: expected .*float32, got torch.float16"),
    "value_dtype": (qkv(torch.Tensor.double, "value"), T, "value: expected .*got torch.float64"),
    "key_device": (qkv(lambda t: t.to("meta"), "key"), V, "key: .*device cpu, got meta"),
    "value_device": (qkv(lambda t: t.to("meta"), "value"), V, "value: .*device cpu, got meta"),
    "query_device": (qkv(lambda t: t.to("meta"), "query"), V, "key: .*device meta, got cpu"),
    "sparse": (qkv(torch.Tensor.to_sparse, "query"), N, "query: .*dense.*torch.sparse_coo"),
    "sparse_csr": (valid(key_bias=torch.ones(B, NK).to_sparse_csr()), N, "key_bias: .*csr"),
    "nested": (valid(key=nested), N, "key: expected a dense tensor, got a nested one"),
    "head_dim": (qkv(lambda t: t.repeat(1, 1, 1, 33)), V, "query: .*head_dim.*256, got 264"),
    "key_head_dim": (qkv(lambda t: t[..., :7], "key value"), V, r"key: expected shape \(2, Hkv"),
    "key_batch": (qkv(lambda t: t[:1], "key value"), V, r"key: expected .*got \(1, 4, 6, 8\)"),
    "value_length": (qkv(lambda t: t[:, :, :5], "value"), V, r"value: expected key's shape \(2, 4"),
    "value_heads": (qkv(lambda t: t[:, :2], "value"), V, r"value: .*got \(2, 2, 6, 8\)"),
    "gqa_off": (qkv(lambda t: t[:, :2], "key value"), V, "key: expected 4 heads.*got 2; enable"),
    "gqa_ratio": ({**qkv(lambda t: t[:, :3], "key value"), "enable_gqa": True}, ValueError,
                  "query: expected .*multiple of key's 3, got 4"),
    "gqa_zero": ({**qkv(lambda t: t[:, :0], "key value"), "enable_gqa": True}, ValueError,
                 "query: expected .*multiple of key's 0, got 4"),
    "mask_float": (valid(key_mask=torch.ones(B, NK)), T, "key_mask: .*torch.bool.*float32"),
    "mask_uint8": (valid(key_mask=ones(B, NK, dtype=torch.uint8)), T, "key_mask: .*torch.uint8"),
    "mask_int": (valid(query_mask=ones(B, NQ, dtype=int32)), T, "query_mask: .*torch.int32"),
    "mask_list": (valid(key_mask=[[True] * NK]), T, "key_mask: expected a bool tensor.*got list"),
    "mask_numpy": (valid(key_mask=np.ones((B, NK), bool)), T, "key_mask: .*got ndarray"),
    "mask_tuple": (valid(key_mask=tuple(index())), T, "key_mask: .*got tuple"),
    "mask_rank_1": (valid(key_mask=ones(NK)), V, r"key_mask: expected shape .*got \(6,\)"),
    "mask_rank_4": (valid(key_mask=ones(B, 1, 1, NK)), V, r"key_mask: .*got \(2, 1, 1, 6\)"),
    "mask_length": (valid(key_mask=ones(B, NQ)), V, r"key_mask: expected .* 6\).*got \(2, 5\)"),
    "mask_length_1": (valid(key_mask=ones(B, 1)), V, r"key_mask: expected .* 6\).*got \(2, 1\)"),
    "mask_batch": (valid(query_mask=ones(3, NQ)), V, r"query_mask: .*got \(3, 5\)"),
    "mask_heads": (valid(query_mask=ones(B, 2, NQ)), V, r"query_mask: .*got \(2, 2, 5\)"),
    "mask_device": (valid(key_mask=ones(B, NK, device="meta")), V, "key_mask: .*cpu, got meta"),
    "mask_sparse": (valid(key_mask=ones(B, NK).to_sparse()), N, "key_mask: .*sparse"),
    "mask_nested": (valid(key_mask=nested_mask), N, "key_mask: .*nested"),
    "index_dtype": (valid(key_mask=index(indices=index().indices.long())), T,
                    "key_mask.indices: expected dtype torch.int32, got torch.int64"),
    "index_counts_dtype": (valid(key_mask=index(counts=index().counts.float())), T,
                           "key_mask.counts: expected dtype torch.int32, got torch.float32"),
    "index_none": (valid(key_mask=TokenIndex(None, None)), T, "key_mask.indices: .*got NoneType"),
    "index_length": (valid(query_mask=index()), V, r"query_mask.indices: .* 5\).*got \(2, 1, 6\)"),
    "index_rank": (valid(key_mask=index(indices=index().indices[0])), V, "key_mask.indices: "),
    "index_counts_shape": (valid(key_mask=index(counts=index().counts[:1])), V,
                           r"key_mask.counts: expected shape \(2, 1\) as indices, got \(1, 1\)"),
    "index_device": (valid(key_mask=index(counts=index().counts.to("meta"))), V,
                     "key_mask.counts: .*cpu, got meta"),
    "bias_list": (valid(key_bias=[0.0]), T, "key_bias: expected a tensor, got list"),
    "bias_bool": (valid(key_bias=ones(B, NK)), T, "key_bias: .*floating dtype, got torch.bool"),
    "bias_int": (valid(key_bias=ones(B, NK, dtype=int32)), T, "key_bias: .*got torch.int32"),
    "bias_rank": (valid(key_bias=torch.ones(NK)), V, r"key_bias: expected shape .*got \(6,\)"),
    "bias_scores": (valid(key_bias=torch.ones(B, H, NQ, NK)), V, r"key_bias: .*got \(2, 4, 5, 6\)"),
    "bias_length": (valid(key_bias=torch.ones(B, NQ)), V, r"key_bias: .* 6\).*got \(2, 5\)"),
    "bias_device": (valid(key_bias=torch.ones(B, NK, device="meta")), V, "key_bias: .*got meta"),
    "scale_nan": (valid(scale=float("nan")), V, "scale: expected a finite number, got nan"),
    "scale_inf": (valid(scale=float("inf")), V, "scale: expected a finite number, got inf"),
    "scale_huge": (valid(scale=10**400), V, "scale: expected a finite number"),
    "scale_text": (valid(scale="1"), T, "scale: expected a number or None, got str"),
    "scale_tensor": (valid(scale=torch.tensor(1.0)), T, "scale: expected a number.*got Tensor"),
    "scale_bool": (valid(scale=True), T, "scale: expected a number.*got bool"),
    "scale_complex": (valid(scale=1j), T, "scale: expected a number.*got complex"),
    "backend_unknown": (valid(backend="flash"), V, r"backend: .*cpu.*got .flash."),
    "backend_type": (valid(backend=1), T, "backend: expected None or .*got int"),
}  # fmt: skip


@pytest.mark.parametrize("function", [masked_attention, explain])
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str, grad: bool, function: Any) -> None:
    """With and without gradients, whose ways through the code differ."""
    kwargs, error, message = BAD[name]
    mode = torch.set_grad_enabled(grad)
    with mode, RanOps() as ran, pytest.raises(error, match=f"^{message}") as caught:
        function(**kwargs)
    if type(caught.value) is not error or "\n" in str(caught.value) or ran.names:
        pytest.fail(f"expected one line of {error.__name__} before any work, got {caught.value!r}")


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.ones(2, 3), TypeError, "mask: expected dtype torch.bool"),
        ([True], TypeError, "mask: expected a bool tensor"),
        (ones(3), ValueError, r"mask: expected shape \(B, N\) or \(B, H, N\), got \(3,\)"),
        (ones(2, 3).to_sparse(), NotImplementedError, "mask: expected a dense tensor"),
    ],
)
def test_bad_mask_of_select_tokens(mask: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        select_tokens(mask)


INDICES, COUNTS = torch.arange(NK, dtype=int32)[None, None], torch.tensor([[NK]], dtype=int32)
# What a direct call of a compiled op says: (arguments of fwd that differ from a valid call, words).
OP = {
    "dtype": ({n: torch.ones(B, H, 5, D).double() for n in ("query", "key", "value")},
              "query: expected dtype float32, float16 or bfloat16, got torch.float64"),
    "key_dtype": ({"key": torch.ones(B, H, NK, D).double()},
                  "key: expected query's dtype torch.float32, got torch.float64"),
    "key_dtype_rare": ({"key": torch.ones(B, H, NK, D).to(torch.float8_e5m2)},
                       "key: expected query's dtype torch.float32, got torch.float8_e5m2"),
    "key_shape": ({"key": torch.ones(B, H, NK, 7)},
                  "key: expected shape (2, 4, 6, 8), got (2, 4, 6, 7)"),
    "heads": ({"key": torch.ones(B, 3, NK, D), "value": torch.ones(B, 3, NK, D)},
              "query: expected a number of heads that is a multiple of key's 3, got 4"),
    "head_dim": ({n: torch.ones(B, H, 5, 257) for n in ("query", "key", "value")},
                 "query: expected a head_dim of 1 to 256, got 257"),
    "indices_alone": ({"key_indices": INDICES},
                      "key_mask: expected both indices and counts, or neither, got one of them"),
    "indices_dtype": ({"key_indices": INDICES.long(), "key_counts": COUNTS},
                      "key_mask: expected dtype torch.int32, got torch.int64"),
    "indices_range": ({"key_indices": INDICES * 2, "key_counts": COUNTS},
                      "key_mask.indices: expected ascending tokens from 0 to 5, got 6 at place 3"),
    "counts": ({"key_indices": INDICES, "key_counts": COUNTS + 1},
               "key_mask.counts: expected 0 to 6, got 7"),
    "bias": ({"key_bias": torch.ones(B, H, NK).half()},
             "key_bias: expected dtype torch.float32, got torch.float16"),
}  # fmt: skip


@pytest.mark.skipif(not backends()[0].available, reason="; ".join(backends()[0].reasons))
@pytest.mark.parametrize("name", OP)
def test_compiled_ops_say_what_they_expected_and_got(name: str) -> None:
    changes, message = OP[name]
    optional = ("query_indices", "query_counts", "key_indices", "key_counts", "key_bias")
    arguments = valid() | dict.fromkeys(optional) | {"scale": 1.0} | changes
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        torch.ops.maskattn.cpu_fwd(*arguments.values())


def test_forced_backend_gives_its_reasons() -> None:
    q = torch.randn(1, 1, 4, 8, dtype=torch.float64)
    with pytest.raises(NotImplementedError, match=r"^backend: 'cpu' cannot run this call: .*"):
        masked_attention(q, q, q, backend="cpu")


def test_unknown_keyword() -> None:
    with pytest.raises(TypeError, match="attn_mask"):
        masked_attention(**valid(), attn_mask=ones(NQ, NK))


@pytest.mark.skipif(sys.flags.optimize > 0, reason="this is the run without assert statements")
def test_all_of_it_without_assert_statements() -> None:
    """A check made by `assert` is gone under `python -O`."""
    command = [sys.executable, "-O", "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.fail(done.stdout + done.stderr)
