# SPDX-License-Identifier: BSD-3-Clause
"""The backend fa4: its calls in front of a stand-in for FlashAttention-4, and on a GPU.

`test_fa4_compiled.py` has the kernels, `test_gpu.py` what only a GPU shows: graphs, streams, waits.
"""

from collections.abc import Iterator
from dataclasses import replace

import fa4_stand_in
import pytest
import torch
from cases import BY_NAME, CASES, Case, Inputs, make
from fa4_stand_in import FlashAttention
from harness import Target, arguments, expected, moved, ran_on
from layouts import LAYOUTS
from oracle import assert_close
from poison import poisoned
from torch import Tensor

from maskattn_kernels import explain, masked_attention, select_tokens, warm_up
from maskattn_kernels.backends.fa4_ops import HOPPER_HEAD_DIMS

DTYPES = (torch.bfloat16, torch.float16)
ON_GPU = [
    Target("fa4", dtype, device="cuda") for dtype in DTYPES if torch.cuda.is_available()
]  # fmt: skip
TARGETS = [*(Target("fa4", dtype) for dtype in DTYPES), *ON_GPU]
FITTING = [case for case in CASES if case.head_dim in HOPPER_HEAD_DIMS]
FITTING += [replace(case, head_dim=48) for case in CASES if case.head_dim == 46]
FITTING += [replace(BY_NAME["d128"], name=f"d{d}", head_dim=d) for d in (112, 192)]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[FlashAttention]:
    yield fa4_stand_in.install(monkeypatch)
    fa4_stand_in.uninstall()


@pytest.fixture
def target(request: pytest.FixtureRequest) -> Target:
    """With the stand-in on the CPU; skipped, with the reason, where a GPU lacks something."""
    target = request.param
    if target.device == "cpu":
        request.getfixturevalue("stand_in")
    elif reason := target.missing():
        pytest.skip(reason)
    return target


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for name, t in a.items():
        assert torch.equal(t, b[name]), name


def call(target: Target, x: Inputs) -> dict[str, Tensor]:
    x = moved(x, target.device)
    kwargs = arguments(x) | {"key_bias": x.key_bias, "return_lse": True}
    with torch.no_grad(), ran_on("fa4"):
        out, lse = masked_attention(x.query, x.key, x.value, backend="fa4", **kwargs)
    return {"out": out.cpu(), "lse": lse.cpu()}


@pytest.mark.parametrize("case", FITTING, ids=str)
@pytest.mark.parametrize("target", TARGETS, ids=str, indirect=True)
def test_results(target: Target, case: Case) -> None:
    truth, eager = expected(case, target.dtype)
    results = call(target, make(case, target.dtype))
    assert results["lse"].is_contiguous()
    for name, result in results.items():
        assert_close(name, result, truth[name], [e[name] for e in eager], target.dtype)


@pytest.mark.parametrize("name", ["everything", "index_per_head", "n65", "bias_some_inf", "d64"])
@pytest.mark.parametrize("target", TARGETS, ids=str, indirect=True)
def test_unselected_tokens_are_invisible(target: Target, name: str) -> None:
    case = BY_NAME[name]
    x = make(case, target.dtype, head_dim=48 if case.head_dim == 46 else case.head_dim)
    if x.key_bias is not None:  # a key at -inf is not selected
        dead = x.key_bias == -torch.inf
        key = x.key.masked_fill((dead if dead.dim() == 3 else dead[:, None])[..., None], torch.nan)
        x = replace(x, key=key, value=key * 0 + x.value)
    clean = call(target, x)
    dirty = call(target, poisoned(x, ("query", "key", "value", "key_bias"), torch.nan))
    assert not clean["out"].isnan().any()
    assert_equal(clean, dirty)


@pytest.mark.parametrize("target", TARGETS, ids=str, indirect=True)
def test_a_list_made_by_hand_reads_nothing_outside(target: Target) -> None:
    """It is clamped to the sequence; entries past the count are those of no other batch entry."""
    x = moved(make(Case("by hand", heads=1, kv_heads=1, queries=None), target.dtype), target.device)
    index = select_tokens(x.key_mask)
    past = torch.arange(40, device=target.device) >= index.counts.unsqueeze(-1)
    wild = torch.where(past, index.indices.new_tensor(2**30), index.indices)
    wild[:, :, -1] = -7
    with torch.no_grad():
        tame = masked_attention(x.query, x.key, x.value, key_mask=index, backend="fa4")
        args = (x.query, x.key, x.value, None, None)
        same, _ = torch.ops.maskattn.fa4_fwd(*args, wild, index.counts, None, 0.25)
        assert torch.equal(tame, same)
        counts = index.counts.new_tensor([[99], [-3]])
        for lists in ((None, None, wild, counts), (wild, counts, None, None)):
            out, lse = torch.ops.maskattn.fa4_fwd(*args[:3], *lists, None, 0.25)
            assert out.isfinite().all() and (out[1] == 0).all() and (lse[1] == -torch.inf).all()


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
@pytest.mark.parametrize("target", TARGETS[:1] + ON_GPU[:1], ids=str, indirect=True)
def test_layouts(target: Target, layout, per_head: bool) -> None:
    case = Case("layouts", heads=4, key_len=70, per_head=per_head, bias="per_head" * per_head)
    x = make(case, target.dtype)
    strided = replace(x, **{name: layout(getattr(x, name)) for name in ("query", "key", "value")})
    here, there = call(target, x), call(target, strided)
    assert_equal(here, there)
    result = masked_attention(
        *(t.detach() for t in (strided.query, strided.key, strided.value)), enable_gqa=True
    )
    assert there["out"].stride() == result.stride()


@pytest.mark.parametrize("layout", ["contiguous", "tokens_first", "fused_tokens_first"])
@pytest.mark.parametrize("per_head", [False, True])
def test_keys_are_read_where_they_lie(
    layout: str, per_head: bool, stand_in: FlashAttention
) -> None:
    """No copy is made of them; but for heads that lie apart and have lists of their own."""
    case = Case("in place", heads=2, queries=None, per_head=per_head)
    x = make(case, torch.bfloat16)
    key = LAYOUTS[layout](x.key)
    with torch.no_grad():
        masked_attention(x.query, key, key, key_mask=x.key_mask, backend="fa4")
    copied = stand_in.calls[-1].key.data_ptr() != key.data_ptr()
    assert copied == (per_head and layout != "contiguous")


def test_queries_are_packed(stand_in: FlashAttention) -> None:
    """Those that are not selected are no work for the kernel; but for query lists of a group."""
    x = make(BY_NAME["heads_4_2"], torch.bfloat16)
    call(Target("fa4", torch.bfloat16), x)
    index = select_tokens(x.query_mask)
    for item, count in enumerate(index.counts[:, 0].tolist()):
        tokens = index.indices[item, 0, :count].long()
        packed = stand_in.calls[-1].query.unflatten(0, (2, -1))[item, 0, :count, 0]
        assert torch.equal(packed, x.query[item, 0, tokens])


def test_gradients_are_refused(stand_in: FlashAttention) -> None:
    q = torch.randn(1, 1, 4, 16, dtype=torch.bfloat16, requires_grad=True)
    why = "computes no gradients: call it under torch.no_grad()"
    with pytest.raises(NotImplementedError) as caught:
        masked_attention(q, q, q, backend="fa4")
    assert str(caught.value) == f"backend: 'fa4' cannot run this call: {why}"
    assert explain(q, q, q, backend="fa4").reasons["fa4"] == (why,)
    with torch.no_grad():
        assert explain(q, q, q, backend="fa4").backend == "fa4"
        warm_up(q, q, q, backend="fa4")  # a forward pass only
    assert len(stand_in.calls) == 1


def test_compiled_code_calls_it(stand_in: FlashAttention) -> None:
    x = make(BY_NAME["n33"], torch.bfloat16)

    def attention(query: Tensor) -> Tensor:
        return masked_attention(query, x.key, x.value, key_mask=x.key_mask, backend="fa4")

    with torch.no_grad():
        compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(x.query), attention(x.query))
