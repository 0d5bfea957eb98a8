# SPDX-License-Identifier: BSD-3-Clause
"""Plans of launches: a repeated call launches what its first one did, with the new addresses."""

from dataclasses import replace

import pytest
import torch
from cases import Case, Inputs, make
from harness import INTERPRETED, arguments, leaves
from stub_driver import Launch, launches, using

from maskattn_kernels import masked_attention, warm_up
from maskattn_kernels.backends import tuning

plans = pytest.importorskip("maskattn_kernels.backends.triton_plans")
pytestmark = [
    pytest.mark.skipif(INTERPRETED, reason="Triton's interpreter keeps no plans"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: no need for a stub"),
]
CASE = Case("plans", heads=2, query_len=300, key_len=300, head_dim=64, bias="per_head")


def call(x: Inputs) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The tensors of the caller and the results of a call, forward and backward."""
    inputs = leaves(x)
    more = arguments(x) | {"key_bias": inputs[3] if len(inputs) > 3 else None}
    out, lse = masked_attention(*inputs[:3], return_lse=True, backend="triton", **more)
    grads = torch.autograd.grad((out, lse), inputs, (x.dout, x.dlse))
    return inputs, [out, lse, *grads]


def fixed(launch: Launch) -> tuple:
    """All of a launch but the addresses."""
    numbers = [value for size, value in launch.arguments if size < 8]
    return launch.kernel, launch.grid, launch.threads, launch.shared, launch.gpu, numbers


@pytest.fixture
def no_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "_PLANS", {})


@pytest.mark.usefixtures("no_plans")
def test_a_repeated_call_launches_the_same_for_other_memory() -> None:
    first, second = make(CASE, torch.bfloat16), make(replace(CASE, name="other"), torch.bfloat16)
    with using("sm_90") as library:
        call(first)
        planned = launches(library)
        library.stub_forget()
        inputs, results = call(second)
        repeated = launches(library)
    assert len(repeated) == 6
    assert [fixed(launch) for launch in repeated] == [fixed(launch) for launch in planned]
    named = {launch.kernel: launch.pointers() for launch in repeated}
    given = [t.data_ptr() for t in inputs[:3]]
    assert named["fwd_kernel"][:3] == given
    assert results[0].data_ptr() in named["fwd_kernel"]
    assert {*given, second.dout.data_ptr()} <= set(named["dkdv_kernel"])
    for result, kernel in zip(results[2:5], ("dq", "dkdv", "dkdv"), strict=True):
        assert result.data_ptr() in named[f"{kernel}_kernel"]


@pytest.mark.usefixtures("no_plans")
@pytest.mark.parametrize("with_lse", [False, True])
def test_nothing_is_compiled_or_loaded_after_a_warm_up(
    with_lse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a stream that is captured into a CUDA graph may refuse."""
    from triton.runtime.jit import JITFunction

    x = make(CASE, torch.bfloat16)
    inputs = leaves(x)
    more = arguments(x) | {"key_bias": x.key_bias, "backend": "triton", "return_lse": with_lse}
    with using("sm_90") as library:
        warm_up(*inputs[:3], **more)
        monkeypatch.setattr(JITFunction, "_do_compile", None)
        library.stub_forget()
        results = masked_attention(*inputs[:3], **more)
        results = results if with_lse else (results,)
        torch.autograd.grad(results, inputs[:3], [torch.ones_like(t) for t in results])
        with torch.no_grad():
            masked_attention(*inputs[:3], **more)
        assert len(launches(library)) == 6 + 3


def test_pieces_of_the_workspace_do_not_overlap() -> None:
    bf16 = plans.Result((5, 16), (16, 1), torch.bfloat16)
    plan = plans.Plan([bf16, plans.Result((3,), (1,)), None, bf16, bf16], 1, [])
    assert plan.offsets == [0, None, 128, 384] and plan.workspace == 640


@pytest.mark.usefixtures("no_plans")
def test_a_repeated_call_passes_its_workspace_on() -> None:
    """What one launch writes is what a later one reads: deltas, and the sums of shared queries."""
    x = make(replace(CASE, batch=1, heads=1, kv_heads=1, query_len=2048), torch.bfloat16)
    with using("sm_90") as library:
        call(x)
        library.stub_forget()
        call(x)
        named = {launch.kernel: launch.pointers() for launch in launches(library)}
    deltas = named["delta_kernel"][4]
    sums = named["combine_keys_kernel"][:3]
    assert deltas == named["dkdv_kernel"][5] == named["dq_kernel"][5]
    assert sums == named["dkdv_kernel"][6:9]
    assert len({deltas, *sums}) == 4


CHANGES = {
    "length": {"query_len": 301},
    "head_dim": {"head_dim": 32},
    "mask": {"queries": None},
    "bias": {"bias": None},
}


@pytest.mark.usefixtures("no_plans")
@pytest.mark.parametrize("change", CHANGES)
def test_another_kind_of_call_has_another_plan(change: str) -> None:
    with using("sm_90") as library:
        call(make(CASE, torch.bfloat16))
        kept = len(plans._PLANS)
        call(make(CASE, torch.bfloat16))
        assert len(plans._PLANS) == kept
        library.stub_forget()
        call(make(replace(CASE, **CHANGES[change]), torch.bfloat16))
    assert len(plans._PLANS) > kept


@pytest.mark.usefixtures("no_plans")
def test_rows_that_are_copied_are_copied_again() -> None:
    """Features that do not lie side by side; the launches read the copy and nothing else."""
    q, k, v = (torch.randn(1, 2, 64, 300).mT.bfloat16().requires_grad_() for _ in range(3))
    with using("sm_90") as library:
        for _ in range(2):
            library.stub_forget()
            masked_attention(q, k, v, backend="triton").sum().backward()
            found = launches(library)
    read = {pointer for launch in found for pointer in launch.pointers()}
    assert not {t.data_ptr() for t in (q, k, v)} & read


@pytest.mark.usefixtures("no_plans")
def test_a_scale_is_no_part_of_a_plan() -> None:
    x = make(CASE, torch.bfloat16)
    with using("sm_90") as library:
        for scale in (0.5, 0.25):
            library.stub_forget()
            call(replace(x, scale=scale))
            kept = len(plans._PLANS)
            values = {value for _, value in launches(library)[-1].arguments}
            bits = int(torch.tensor(scale).view(torch.int32))
            assert bits in values
    assert len(plans._PLANS) == kept


@pytest.mark.usefixtures("no_plans")
def test_a_forced_tile_has_a_plan_of_its_own() -> None:
    x = make(CASE, torch.bfloat16)
    with using("sm_90") as library:
        call(x)
        with tuning.forced("fwd", tuning.Config(32, 32, 4, 2)):
            library.stub_forget()
            call(x)
    grids = {launch.kernel: launch.grid[0] for launch in launches(library)}
    assert grids["fwd_kernel"] == 2 * 2 * -(-300 // 32)


@pytest.mark.usefixtures("no_plans")
def test_memory_that_was_given_back_is_refused_after_a_plan_was_made() -> None:
    x = make(replace(CASE, bias=None), torch.bfloat16)
    with using("sm_90"), torch.no_grad():
        masked_attention(x.query, x.key, x.value, backend="triton")
        x.value.untyped_storage().resize_(0)
        with pytest.raises(ValueError, match="value: expected a storage of"):
            torch.ops.maskattn.triton_infer(x.query, x.key, x.value, None, None, None, 0.1)


@pytest.mark.usefixtures("no_plans")
def test_plans_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "MOST_PLANS", 3)
    with using("sm_90"), torch.no_grad():
        for length in range(300, 308):
            q = torch.randn(1, 1, length, 64).bfloat16()
            masked_attention(q, q, q, backend="triton")
            assert len(plans._PLANS) <= 3
