# SPDX-License-Identifier: BSD-3-Clause
"""torch.compile, torch.export and activation checkpointing."""

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from harness import RanOps, Target
from torch import Tensor, nn
from torch._dynamo.testing import AotEagerAndRecordGraphs, CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from maskattn_kernels import TokenIndex, masked_attention, select_tokens
from maskattn_kernels.op_table import OPS

LENGTHS = (64, 65, 7, 129, 33, 50, 2, 3, 97, 128, 16, 31, 17, 200, 11, 48, 150, 5, 80, 127)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def loss(q: Tensor, k: Tensor, v: Tensor, mask: Any, bias: Tensor, backend: str) -> Tensor:
    out, lse = masked_attention(
        q, k, v, key_mask=mask, query_mask=mask, key_bias=bias, return_lse=True, backend=backend
    )
    return out.square().sum() + torch.where(lse.isfinite(), lse, 0).sum()


def sample(n: int, keep: float) -> tuple[Tensor, ...]:
    q, k, v = (torch.randn(2, 2, n, 8, requires_grad=True) for _ in range(3))
    return q, k, v, torch.rand(2, n) < keep, torch.randn(2, n, requires_grad=True)


def ops_of(graph_module: torch.fx.GraphModule) -> list[str]:
    """The package's ops in a captured graph, in order."""
    targets = (str(node.target).split(".") for node in graph_module.graph.nodes)
    return [target[1] for target in targets if target[0] == "maskattn"]


def gradients(function: Any, args: tuple[Any, ...], backend: str) -> tuple[Tensor, ...]:
    q, k, v, _, bias = args
    return torch.autograd.grad(function(*args, backend), (q, k, v, bias))


def test_two_compilations_serve_all_lengths_and_keep_counts(target: Target) -> None:
    """Lengths that grow and shrink give eager's gradients; a peer's are NaN after the first."""
    if target.dtype is not torch.float32:
        pytest.skip("the compiled program is the same for every tier")
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    lengths = LENGTHS[:6] if target.backend == "triton" else LENGTHS  # its interpreter is slow
    for i, n in enumerate(lengths):
        args = sample(n, (0.0, 0.1, 0.5, 1.0)[i % 4])
        expected = gradients(loss, args, target.backend)
        for ours, eager in zip(gradients(compiled, args, target.backend), expected, strict=True):
            assert torch.equal(ours, eager), n
    assert counter.frame_count <= 2


def test_under_autocast(target: Target) -> None:
    """In one graph; the reference and the compiled backends see bfloat16."""
    q, k, v, mask, bias = sample(40, 0.5)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    args = (q, k, v, mask, bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = loss(*args, target.backend)
        assert torch.equal(compiled(*args, target.backend), expected)
    assert not torch.equal(loss(*args, target.backend), expected)


def test_one_tensor_in_many_places(target: Target) -> None:
    """q = k = v and one mask for both: an autograd.Function cannot be compiled so."""
    x, mask = torch.randn(1, 2, 20, 8, requires_grad=True), torch.rand(1, 20) < 0.5

    def function(x: Tensor, mask: Tensor) -> Tensor:
        return masked_attention(
            x, x, x, key_mask=mask, query_mask=mask, backend=target.backend
        ).sum()

    (expected,) = torch.autograd.grad(function(x, mask), x)
    recorder = AotEagerAndRecordGraphs()
    compiled = torch.compile(function, fullgraph=True, backend=recorder)
    (ours,) = torch.autograd.grad(compiled(x, mask), x)
    assert torch.equal(ours, expected)
    assert ops_of(recorder.fw_graphs[0]) == [
        f"{target.backend}_select_tokens",
        f"{target.backend}_fwd",
    ]
    assert ops_of(recorder.bw_graphs[0]) == [f"{target.backend}_bwd"]


def test_index_made_outside_or_inside(target: Target) -> None:
    q, mask = torch.randn(1, 2, 20, 8), torch.rand(1, 20) < 0.5

    def given(q: Tensor, index: TokenIndex) -> Tensor:
        return masked_attention(q, q, q, key_mask=index, backend=target.backend)

    def made(q: Tensor, mask: Tensor) -> Tensor:
        return given(q, select_tokens(mask))

    expected = given(q, select_tokens(mask))
    assert torch.equal(
        torch.compile(given, fullgraph=True, backend="eager")(q, select_tokens(mask)), expected
    )
    assert torch.equal(torch.compile(made, fullgraph=True, backend="eager")(q, mask), expected)


@pytest.mark.parametrize("shape", [(1, 20), (2, 1, 20), (1, 2, 20)])
def test_gradient_of_a_bias_that_broadcasts(target: Target, shape: tuple[int, ...]) -> None:
    """A learned bias that is broadcast gets broken gradients in a compiled peer."""
    q, bias = torch.randn(2, 2, 20, 8), torch.randn(shape, requires_grad=True)

    def function(q: Tensor, bias: Tensor) -> Tensor:
        return masked_attention(q, q, q, key_bias=bias, backend=target.backend).square().sum()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    (expected,) = torch.autograd.grad(function(q, bias), bias)
    (ours,) = torch.autograd.grad(compiled(q, bias), bias)
    assert torch.equal(ours, expected)


def test_scale_that_changes() -> None:
    """A number that differs from call to call is no tensor, and no reason to leave the graph."""
    q = torch.randn(1, 2, 20, 8)

    def function(q: Tensor, scale: float) -> Tensor:
        return masked_attention(q, q, q, scale=scale)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for scale in (0.1, 0.2, 0.3, 2):
        assert torch.equal(compiled(q, scale), function(q, scale))


@pytest.mark.parametrize("tokens_first", [False, True])
def test_compiled_by_inductor(tokens_first: bool) -> None:
    """Generated code believes in the strides that the fake tensors promise."""

    def function(x: Tensor, mask: Tensor) -> Tensor:
        q = x.view(2, 20, 2, 8).transpose(1, 2) if tokens_first else x.view(2, 2, 20, 8)
        out = masked_attention(q, q, q, key_mask=mask)
        return out.transpose(1, 2).flatten(2) * 2

    x, mask = torch.randn(2, 20, 16), torch.rand(2, 20) < 0.5
    compiled = torch.compile(function, fullgraph=True)
    torch.testing.assert_close(compiled(x, mask), function(x, mask))


class Layer(nn.Module):
    def __init__(self, backend: str) -> None:
        super().__init__()
        self.qkv, self.backend = nn.Linear(16, 48), backend

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        out = masked_attention(q, k, v, key_mask=mask, query_mask=mask, backend=self.backend)
        return out.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("strict", [False, True])
def test_export_with_dynamic_length(target: Target, strict: bool) -> None:
    layer = Layer(target.backend)
    n = torch.export.Dim("n", min=2, max=4096)
    args = (torch.randn(2, 20, 16), torch.rand(2, 20) < 0.5)
    program = torch.export.export(layer, args, dynamic_shapes=({1: n}, {1: n}), strict=strict)
    assert ops_of(program.graph_module) == [
        f"{target.backend}_select_tokens",
        f"{target.backend}_fwd",
    ]
    for length in (20, 33, 2):
        x, mask = torch.randn(2, length, 16), torch.rand(2, length) < 0.5
        assert torch.equal(program.module()(x, mask), layer(x, mask))


def test_exported_program_takes_an_index(tmp_path: Any) -> None:
    """A TokenIndex is a pytree: it is an input of an exported program that is saved and loaded."""

    class Given(nn.Module):
        def forward(self, q: Tensor, index: TokenIndex) -> Tensor:
            return masked_attention(q, q, q, key_mask=index)

    q, index = torch.randn(1, 2, 9, 8), select_tokens(torch.rand(1, 9) < 0.5)
    program = torch.export.export(Given(), (q, index))
    torch.export.save(program, tmp_path / "program.pt2")
    loaded = torch.export.load(tmp_path / "program.pt2").module()
    assert torch.equal(loaded(q, index), masked_attention(q, q, q, key_mask=index))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(target: Target, use_reentrant: bool) -> None:
    layer = Layer(target.backend).to(target.dtype)
    x = torch.randn(2, 20, 16).to(target.dtype).requires_grad_()
    mask = torch.rand(2, 20) < 0.5
    (expected,) = torch.autograd.grad(layer(x, mask).sum(), x)
    with RanOps() as ran:
        checkpoint(layer, x, mask, use_reentrant=use_reentrant).sum().backward()
    assert torch.equal(x.grad, expected)
    lists_masks = OPS[target.backend].masks_bwd is not None
    forward = ["infer"] if lists_masks else ["select_tokens", "fwd"]
    first = ["infer"] if use_reentrant and OPS[target.backend].infer else forward
    ran_names = [name.removeprefix(f"{target.backend}_") for name in ran.names]
    assert ran_names == [*first, *forward, "masks_bwd" if lists_masks else "bwd"]


def test_checkpointing_frees_what_it_saved() -> None:
    """A backward under checkpointing leaves no tensor behind."""

    def alive() -> int:
        gc.collect()
        return sum(type(o) is Tensor for o in gc.get_objects())

    layer, x = Layer("reference"), torch.randn(2, 20, 16, requires_grad=True)
    mask = torch.rand(2, 20) < 0.5

    def step() -> None:
        checkpoint(layer, x, mask, use_reentrant=False).sum().backward()

    step()
    before = alive()
    for _ in range(5):
        step()
    assert alive() <= before
