# SPDX-License-Identifier: BSD-3-Clause
"""replace_sdpa: which calls it takes, that results are torch's, and that nothing else changes."""

import threading

import pytest
import torch
import torch.nn.functional as F
from harness import ran_on

from maskattn_kernels.integrations.sdpa import replace_sdpa

B, H, N, D = 2, 4, 6, 8
KEPT = torch.arange(N) < torch.tensor([[N], [4]])  # (B, N), True = takes part
ROW = KEPT[:, None, None]  # (B, 1, 1, N)
PAIRS = torch.ones(N, N, dtype=torch.bool).tril()
FLOAT = torch.zeros(B, 1, 1, N).masked_fill(~ROW, -torch.inf)


def qkv(heads=H, dtype=torch.float32, **options):
    """The same numbers at each call, and the same state of torch's generator after it."""
    torch.manual_seed(0)
    return tuple(torch.randn(B, h, N, D, dtype=dtype, **options) for h in (H, heads, heads))


TAKEN = {
    "no mask": None,
    "one row": ROW,
    "expanded row": ROW.expand(B, 1, N, N),
    "row for each head": torch.rand(B, H, 1, N) < 0.7,
    "two dimensions": KEPT[:1].expand(N, N),
    "three dimensions": (torch.rand(H, N) < 0.7)[:, None],
    "float": torch.randn(B, 1, 1, N),
    "float with -inf": FLOAT,
    "float with the lowest number": FLOAT.clamp_min(torch.finfo(torch.float32).min),
    "float with -10000": FLOAT.clamp_min(-10000.0) + torch.randn(B, 1, 1, N),
    "no key": torch.zeros(B, 1, 1, N, dtype=torch.bool),
}


@pytest.mark.parametrize("name", TAKEN)
def test_masks_of_keys_are_taken_with_torchs_results_and_gradients(name):
    theirs, ours = (qkv(requires_grad=True) for _ in range(2))
    right = F.scaled_dot_product_attention(*theirs, attn_mask=TAKEN[name])
    with replace_sdpa() as calls, ran_on("cpu"):
        got = F.scaled_dot_product_attention(*ours, attn_mask=TAKEN[name])
    assert str(calls) == "taken 1, handed on 0"
    torch.testing.assert_close(got, right, atol=1e-5, rtol=1e-4)
    gradients = (
        torch.autograd.grad(o.square().sum(), i) for o, i in ((got, ours), (right, theirs))
    )
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_gradient_of_a_float_mask():
    theirs, ours = (torch.randn(B, 1, 1, N).requires_grad_() for _ in range(2))
    with torch.no_grad():
        ours.copy_(theirs)
    F.scaled_dot_product_attention(*qkv(), theirs.expand(B, 1, N, N)).square().sum().backward()
    with replace_sdpa() as calls:
        out = F.scaled_dot_product_attention(*qkv(), ours.expand(B, 1, N, N))
    out.square().sum().backward()
    assert calls.taken == 1
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)


def test_scale_and_fewer_key_heads():
    options = {"attn_mask": ROW, "scale": 0.1, "enable_gqa": True}
    right = F.scaled_dot_product_attention(*qkv(heads=2), **options)
    with replace_sdpa() as calls:
        got = F.scaled_dot_product_attention(*qkv(heads=2), **options)
    assert calls.taken == 1
    torch.testing.assert_close(got, right)


def test_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        right = F.scaled_dot_product_attention(*qkv(), ROW)
        with replace_sdpa() as calls:
            got = F.scaled_dot_product_attention(*qkv(), ROW)
    assert calls.taken == 1 and got.dtype is right.dtype is torch.bfloat16
    torch.testing.assert_close(got, right, atol=2e-2, rtol=2e-2)


HANDED_ON = {
    "mask of pairs": (qkv(), {"attn_mask": PAIRS}),
    "float mask of pairs": (qkv(), {"attn_mask": torch.randn(B, H, N, N)}),
    "rows that differ": (qkv(), {"attn_mask": torch.randn(N, 1).expand(N, N)}),
    "a mask for each query head": (
        qkv(heads=2),
        {"attn_mask": torch.rand(B, H, 1, N) < 0.7, "enable_gqa": True},
    ),
    "one value for all keys": (qkv(), {"attn_mask": torch.randn(B, 1, 1, 1)}),
    "causal": (qkv(), {"is_causal": True}),
    "dropout": (qkv(), {"dropout_p": 0.5}),
    "no batch": ([t[0] for t in qkv()], {}),
    "values of another size": ([*qkv()[:2], torch.randn(B, H, N, 3)], {}),
    "keys of one image for all": ([qkv()[0], *(t[:1] for t in qkv()[1:])], {}),
    "float64": (qkv(dtype=torch.float64), {"attn_mask": ROW}),
}


@pytest.mark.parametrize("name", HANDED_ON)
def test_all_else_is_handed_on_unchanged(name):
    args, options = HANDED_ON[name]
    torch.manual_seed(0)  # for the dropout
    right = F.scaled_dot_product_attention(*args, **options)
    torch.manual_seed(0)
    with replace_sdpa() as calls:
        got = F.scaled_dot_product_attention(*args, **options)
    assert torch.equal(got, right)
    assert calls.taken == 0 and calls.handed_on.total() == 1


def test_reasons_are_told():
    with replace_sdpa() as calls:
        F.scaled_dot_product_attention(*qkv(), ROW)
        F.scaled_dot_product_attention(*qkv(), PAIRS)
        F.scaled_dot_product_attention(*qkv(), PAIRS)
        F.scaled_dot_product_attention(*qkv(), dropout_p=0.5)
        F.scaled_dot_product_attention(*qkv(dtype=torch.float64))
    assert str(calls) == (
        "taken 1, handed on 4 (mask of pairs 2, dropout 1, no kernel for torch.float64 on cpu 1)"
    )


@pytest.mark.parametrize("mask", [ROW[..., :3], ROW.long()], ids=["size", "dtype"])
def test_bad_masks_raise_as_outside(mask):
    with pytest.raises(RuntimeError) as outside:
        F.scaled_dot_product_attention(*qkv(), mask)
    with replace_sdpa(), pytest.raises(RuntimeError) as inside:
        F.scaled_dot_product_attention(*qkv(), mask)
    assert str(inside.value) == str(outside.value)


def test_tokens_take_part_and_others_do_not():
    q, k, v = qkv()
    tokens = torch.tensor([True, False, True, True, False, False])
    right = F.scaled_dot_product_attention(q, k, v, ROW & tokens)
    right = right.masked_fill(~tokens[:, None], 0)
    few = q[:, :, :3]  # other numbers of queries and keys: not theirs
    right_of_few = F.scaled_dot_product_attention(few, k, v, ROW)
    with replace_sdpa(tokens) as calls:
        torch.testing.assert_close(F.scaled_dot_product_attention(q, k, v, ROW), right)
        torch.testing.assert_close(F.scaled_dot_product_attention(few, k, v, ROW), right_of_few)
    assert str(calls) == "taken 2 (1 with tokens), handed on 0"
    with replace_sdpa(tokens.expand(B, N)):
        torch.testing.assert_close(F.scaled_dot_product_attention(q, k, v, ROW), right)


@pytest.mark.parametrize(
    ("tokens", "kind", "words"),
    [
        (torch.ones(N), TypeError, r"tokens: expected a bool Tensor .*, got torch\.float32"),
        ([True], TypeError, "tokens: .* got list"),
        (PAIRS[None], ValueError, r"tokens: expected shape \(N,\) or \(B, N\), got \(1, 6, 6\)"),
        (torch.ones(3, N, dtype=torch.bool), ValueError, "tokens: expected batch size 2 or 1, got"),
    ],
)
def test_bad_tokens(tokens, kind, words):
    with pytest.raises(kind, match=words), replace_sdpa(tokens):
        F.scaled_dot_product_attention(*qkv())


def test_contexts_nest_and_end_with_an_error():
    with replace_sdpa() as outer:
        with pytest.raises(ZeroDivisionError), replace_sdpa() as inner:
            F.scaled_dot_product_attention(*qkv(), ROW)
            _ = 1 / 0
        F.scaled_dot_product_attention(*qkv(), PAIRS)
    F.scaled_dot_product_attention(*qkv(), ROW)
    assert str(inner) == "taken 1, handed on 0"
    assert str(outer) == "taken 0, handed on 1 (mask of pairs 1)"


def test_each_thread_has_its_own():
    """Threads in contexts of their own and outside of any, all at once."""
    ready, counts = threading.Barrier(3), {}

    def attend(times):
        ready.wait()
        for _ in range(times):
            F.scaled_dot_product_attention(*qkv(), ROW)

    def attend_inside(times):
        with replace_sdpa() as calls:
            attend(times)
        counts[times] = calls.taken

    with replace_sdpa() as here:
        work = ((attend_inside, 20), (attend_inside, 30), (attend, 40))
        threads = [threading.Thread(target=target, args=(times,)) for target, times in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert counts == {20: 20, 30: 30} and here.taken == 0


def test_compiled_calls_run_on_the_op_in_one_graph():
    """Also in a function that was compiled and called outside before."""
    graphs = []

    def backend(graph, _):
        graphs.append(str(graph.code))
        return graph

    def attend(q, k, v, mask):
        return F.scaled_dot_product_attention(q, k, v, mask) + 1

    torch._dynamo.reset()
    compiled = torch.compile(attend, backend=backend, fullgraph=True)
    right = compiled(*qkv(), ROW)
    with replace_sdpa() as calls:
        got = compiled(*qkv(), ROW)
    again = compiled(*qkv(), ROW)
    torch.testing.assert_close(got, right)
    assert torch.equal(again, right)
    ops = [("maskattn" in code, "scaled_dot_product" in code) for code in graphs]
    assert ops == [(False, True), (True, False)]
    assert str(calls) == "taken 0, handed on 0"
