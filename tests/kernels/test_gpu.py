# SPDX-License-Identifier: BSD-3-Clause
"""What only a GPU can show: CUDA graphs, streams, devices, no waiting. Skipped where there is none.

The case table, isolation, strides, determinism and the random sweep run on the GPU's targets too.
"""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from cases import Case, make
from harness import RESULTS, Target, check_against_oracle, moved
from torch import Tensor

from maskattn_kernels import masked_attention

GPU_TARGETS = [
    Target(backend, dtype, device="cuda")
    for backend in ("triton", "cuda")
    for dtype in (torch.float32, torch.bfloat16)
]
FA4 = Target("fa4", torch.bfloat16, device="cuda")  # computes no gradients
FORWARD_TARGETS = [*GPU_TARGETS, FA4]
CASE = Case("gpu", heads=2, query_len=300, key_len=300, bias="normal", keys=0.4, queries=0.5)
SHORT = replace(CASE, query_len=200, key_len=200)  # one launch, where no gradient is wanted
REPEATS = 1000

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


@pytest.fixture(autouse=True)
def backend_is_there(target: Target) -> None:
    reason = target.missing()
    if reason:
        pytest.skip(reason)


class Call:
    """Forward and backward on tensors that stay where they are, as a CUDA graph needs."""

    def __init__(self, target: Target, case: Case = CASE) -> None:
        x = moved(make(case, target.dtype), "cuda")
        self.backend, self.dout = target.backend, x.dout
        self.inputs = [t.detach().requires_grad_() for t in (x.query, x.key, x.value, x.key_bias)]
        self.masks = {"key_mask": x.key_mask, "query_mask": x.query_mask}

    def __call__(self) -> dict[str, Tensor]:
        *qkv, bias = self.inputs
        out, lse = masked_attention(
            *qkv, key_bias=bias, return_lse=True, backend=self.backend, **self.masks
        )
        grads = torch.autograd.grad(out, self.inputs, self.dout)
        return dict(zip(RESULTS, (out.detach(), lse.detach(), *grads), strict=True))

    def new_masks(self, seed: int) -> None:
        generator = torch.Generator("cuda").manual_seed(seed)
        for mask in self.masks.values():
            drawn = torch.rand(mask.shape, generator=generator, device="cuda")
            mask.copy_(drawn < 0.1 * (seed + 1))


class Inference(Call):
    """Forward without gradients: from the masks to the result in one op."""

    def __call__(self) -> dict[str, Tensor]:
        *qkv, bias = self.inputs
        with torch.no_grad():
            out, lse = masked_attention(
                *qkv, key_bias=bias, return_lse=True, backend=self.backend, **self.masks
            )
        return {"out": out, "lse": lse}


CALLS = {
    "training": (Call, CASE),
    "inference": (Inference, CASE),
    "short-inference": (Inference, SHORT),
}
CALLS_ON_TARGETS = [
    pytest.param(target, *CALLS[name], id=f"{target}-{name}")
    for target in FORWARD_TARGETS
    for name in CALLS
    if target is not FA4 or name != "training"
]
KINDS_ON_TARGETS = [
    pytest.param(target, Inference if target is FA4 else Call, id=str(target))
    for target in FORWARD_TARGETS
]


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for name, t in a.items():
        assert torch.equal(t, b[name]), name


@pytest.mark.parametrize(("target", "kind", "case"), CALLS_ON_TARGETS)
def test_graph_replayed_with_other_masks(target: Target, kind: type[Call], case: Case) -> None:
    """Captured once; every replay answers the masks that are there then."""
    call = kind(target, case)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    for seed in (0, 3, 9):
        call.new_masks(seed)
        graph.replay()
        assert_equal(captured, call())


COLD = """
import sys, torch
from maskattn_kernels import masked_attention, warm_up
q, k, v = torch.randn(3, 2, 2, 300, 64, device="cuda", dtype=getattr(torch, sys.argv[2])).unbind()
leaves = [t.requires_grad_() for t in (q, k, v)]
call = {"key_mask": torch.rand(2, 300, device="cuda") < 0.5, "backend": sys.argv[1]}
warm_up(q, k, v, **call)
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    out = masked_attention(q, k, v, **call)
    grads = torch.autograd.grad(out, leaves, torch.ones_like(out))
graph.replay()
again = masked_attention(q, k, v, **call)
assert torch.equal(out, again)
for a, b in zip(grads, torch.autograd.grad(again, leaves, torch.ones_like(out))):
    assert torch.equal(a, b)
"""


@pytest.mark.parametrize("target", GPU_TARGETS, ids=str)
def test_the_first_call_after_a_warm_up_can_be_captured(target: Target) -> None:
    """In a process of its own, which has loaded no kernel."""
    words = [target.backend, str(target.dtype).removeprefix("torch.")]
    run = subprocess.run([sys.executable, "-c", COLD, *words], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(("target", "kind", "case"), CALLS_ON_TARGETS)
def test_nothing_waits_for_the_gpu(target: Target, kind: type[Call], case: Case) -> None:
    call = kind(target, case)
    call()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("target", "kind"), KINDS_ON_TARGETS)
def test_a_thousand_repeats(target: Target, kind: type[Call]) -> None:
    call = kind(target)
    first = {name: t.clone() for name, t in call().items()}
    for _ in range(REPEATS):
        assert_equal(call(), first)


@pytest.mark.parametrize(
    ("queries", "keys", "head_dim"),
    [(40, 8000, 64), (8000, 40, 64), (8000, 40, 200), (700, 600, 46)],
)
@pytest.mark.parametrize("target", GPU_TARGETS, ids=str)
def test_shared_work_and_packed_rows(
    target: Target, queries: int, keys: int, head_dim: int
) -> None:
    """Few queries whose keys are shared, few keys whose queries are, and rows of no whole 16
    bytes."""
    case = Case("shared", 1, 4, 2, queries, keys, head_dim, 0.5, 0.5, bias="normal")
    check_against_oracle(target, case)


@pytest.mark.parametrize(("target", "kind"), KINDS_ON_TARGETS)
def test_streams_and_threads(target: Target, kind: type[Call]) -> None:
    """Eight threads, each on a stream of its own."""
    right = kind(target)()
    torch.cuda.synchronize()

    def on_a_stream(_: int) -> None:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            call = kind(target)
            for _ in range(8):
                result = call()
        stream.synchronize()
        assert_equal(result, right)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(on_a_stream, range(16)))


@pytest.mark.parametrize("target", FORWARD_TARGETS, ids=str)
def test_tensors_of_the_last_device(target: Target) -> None:
    """The launch goes where the tensors are, not to the current device."""
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    x = moved(make(CASE, target.dtype), f"cuda:{torch.cuda.device_count() - 1}")
    there = masked_attention(x.query, x.key, x.value, key_mask=x.key_mask, backend=target.backend)
    x = moved(make(CASE, target.dtype), "cuda:0")
    here = masked_attention(x.query, x.key, x.value, key_mask=x.key_mask, backend=target.backend)
    assert torch.equal(there.cpu(), here.cpu())


@pytest.mark.parametrize("target", FORWARD_TARGETS, ids=str)
def test_offsets_beyond_int32(target: Target) -> None:
    """The last batch item lies 2**31 numbers behind the first."""
    tokens, head_dim = 64, 64
    step = 2**31 + 2**20
    if torch.cuda.mem_get_info()[0] < 3 * (step + 2**20) * target.dtype.itemsize:
        pytest.skip("the GPU has not enough free memory")
    generator = torch.Generator("cuda").manual_seed(0)

    def spread() -> Tensor:
        storage = torch.empty(step + tokens * head_dim, dtype=target.dtype, device="cuda")
        t = storage.as_strided((2, 1, tokens, head_dim), (step, 0, head_dim, 1))
        values = torch.randn(t.shape, generator=generator, device="cuda")
        return t.copy_(values)

    query, key, value = spread(), spread(), spread()
    mask = torch.rand(2, tokens, generator=generator, device="cuda") < 0.5
    far = masked_attention(query, key, value, key_mask=mask, backend=target.backend)
    near = masked_attention(
        *(t.contiguous() for t in (query, key, value)), key_mask=mask, backend=target.backend
    )
    assert torch.equal(far, near)


@pytest.mark.parametrize("target", GPU_TARGETS, ids=str)
def test_more_programs_than_a_grid_dimension_has(target: Target) -> None:
    """70,000 heads: grids of other dimensions than the first end at 65,535."""
    case = Case("wide", batch=70, heads=1000, query_len=2, key_len=3, head_dim=16)
    check_against_oracle(target, case)
