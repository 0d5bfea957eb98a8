# SPDX-License-Identifier: BSD-3-Clause
"""Which backend runs, why another does not, and that nothing falls back in silence."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from harness import BFLOAT16_TIERS, VECTOR_TIERS, RanOps, Target

from maskattn_kernels import backends, explain, masked_attention
from maskattn_kernels.backends import BACKENDS, choose, fa4_ops, native
from maskattn_kernels.backends.base import Backend
from maskattn_kernels.common.processor import has_slow_bfloat16_pairs
from maskattn_kernels.op_table import OPS
from maskattn_kernels.problem import Problem


def available(name: str) -> bool:
    return next(record for record in backends() if record.name == name).available


def run_python(code: str, **env: str) -> str:
    """The output of a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **env},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_records_in_order_of_preference() -> None:
    records = backends()
    assert [r.name for r in records] == ["cpu", "triton", "cuda", "fa4", "reference"]
    for record in records:
        assert record.available != bool(record.reasons)
        assert all("\n" not in reason for reason in record.reasons)
    assert records[-1].available and records[-1].build["torch"] == torch.__version__


def test_record_of_the_compiled_library() -> None:
    record = backends()[0]
    if not record.available:
        pytest.skip("; ".join(record.reasons))
    assert {"compiler", "torch", "tiers", "arch", "tier"} <= record.build.keys()
    assert record.build["tier"] in record.build["tiers"].split()


def forward_op(backend: str) -> str:
    """What a call without gradients runs."""
    return "infer" if OPS[backend].infer else "fwd"


def test_default_is_the_best_that_can_run() -> None:
    q = torch.randn(1, 1, 4, 8)
    expected = "cpu" if available("cpu") else "reference"
    with RanOps() as ran:
        masked_attention(q, q, q)
    assert ran.names == [f"{expected}_{forward_op(expected)}"]
    assert explain(q, q, q).backend == expected


def test_forced_backend_runs(target: Target) -> None:
    q = torch.randn(1, 1, 4, 8).to(target.dtype)
    explanation = explain(q, q, q, backend=target.backend)
    assert explanation.backend == target.backend
    with RanOps() as ran:
        masked_attention(q, q, q, backend=target.backend)
    assert ran.names == [f"{target.backend}_{forward_op(target.backend)}"]
    others = {record.name for record in backends()} - {target.backend}
    assert explanation.reasons.keys() == others and all(explanation.reasons.values())


def test_explain_says_why_not() -> None:
    q = torch.randn(1, 1, 4, 8, dtype=torch.float64)
    explanation = explain(q, q, q)
    assert explanation.backend == "reference"
    assert "float64" in str(explanation.reasons["cpu"]) or not available("cpu")
    assert str(explanation).splitlines()[0] == "reference: runs"
    forced = explain(q, q, q, backend="cpu")
    assert forced.backend is None and forced.reasons.keys() == {b.name for b in BACKENDS}


def test_meta_tensors_are_not_the_compiled_librarys() -> None:
    q = torch.empty(1, 1, 4, 8, device="meta")
    assert explain(q, q, q).backend == "reference"
    with pytest.raises(NotImplementedError, match=r"'cpu' cannot run this call: .*got meta"):
        masked_attention(q, q, q, backend="cpu")


def test_error_lists_every_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unable(Backend):
        def __init__(self, name: str) -> None:
            self.name = name

        def reasons(self, problem: Problem) -> list[str]:
            return [f"no {self.name} here", f"nor {problem.device_type}"]

    module = sys.modules["maskattn_kernels.backends"]  # the attribute of that name is a function
    monkeypatch.setattr(module, "BACKENDS", (Unable("a"), Unable("b")))
    problem = Problem(1, 1, 1, 4, 4, 8, torch.float32, "cpu")
    with pytest.raises(NotImplementedError) as caught:
        choose(problem)
    expected = "no backend can run this call: a (no a here; nor cpu), b (no b here; nor cpu)"
    assert str(caught.value) == expected


@pytest.mark.parametrize("tier", ["avx1024", ""])
def test_unknown_tier(tier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An instruction set that cannot be had is an error of the call, not a silent other choice."""
    if not available("cpu"):
        pytest.skip("; ".join(backends()[0].reasons))
    monkeypatch.setenv("MASKATTN_CPU_TIER", tier)
    q = torch.randn(1, 1, 4, 8)
    if not tier:  # an empty variable is no choice
        assert masked_attention(q, q, q).isfinite().all()
        return
    with pytest.raises(RuntimeError, match=tier):
        masked_attention(q, q, q)
    record = backends()[0]
    assert not record.available and tier in record.reasons[0]
    assert explain(q, q, q).backend is None


def test_default_tier(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest tier that runs here, but not pairs of bfloat16 where floats are faster."""
    if not available("cpu"):
        pytest.skip("; ".join(backends()[0].reasons))
    runnable = []
    for tier in VECTOR_TIERS + BFLOAT16_TIERS:
        monkeypatch.setenv("MASKATTN_CPU_TIER", tier)
        runnable += [tier] if available("cpu") else []
    monkeypatch.delenv("MASKATTN_CPU_TIER")
    slow = runnable[-1] == "avx512_bf16" and has_slow_bfloat16_pairs()
    assert backends()[0].build["tier"] == runnable[-2 if slow else -1]


def test_dtypes_of_each_backend() -> None:
    """No dtype is taken by accident."""
    shape = (1, 1, 1, 4, 4, 8)
    for backend in BACKENDS:
        why = backend.reasons(Problem(*shape, torch.float64, "cpu"))
        assert any("float64" in reason for reason in why) == (backend.name != "reference")


def test_unmeasured_backend_runs_by_name_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that could run, and comes first, is still not chosen before it is measured."""

    class Unmeasured(Backend):
        name = "new"
        by_name_only = "nobody knows how fast it is"

        def reasons(self, problem: Problem) -> list[str]:
            return []

    everything = (Unmeasured(), *BACKENDS)
    monkeypatch.setattr(sys.modules["maskattn_kernels.backends"], "BACKENDS", everything)
    q = torch.randn(1, 1, 4, 8)
    assert choose(Problem(1, 1, 1, 4, 4, 8, torch.float32, "cpu")).name != "new"
    assert choose(Problem(1, 1, 1, 4, 4, 8, torch.float32, "cpu"), "new").name == "new"
    explanation = explain(q, q, q)
    assert explanation.backend != "new" and "nobody knows" in explanation.reasons["new"][0]
    assert explain(q, q, q, backend="new").backend == "new"


OUT_OF_TREE = """
    import torch
    from maskattn_kernels import backends, explain, masked_attention
    from maskattn_kernels.backends import Backend, register
    from maskattn_kernels.backends.base import SCHEMAS

    class Doubled(Backend):
        name = "doubled"
        def reasons(self, problem):
            return [] if problem.dtype is torch.float64 else ["runs float64 only"]

    def refusal(*args, **kwargs):
        try:
            register(*args, **kwargs)
        except (TypeError, ValueError) as error:
            return f"{type(error).__name__}: {error}"

    print(refusal("doubled"))
    print(refusal(Doubled()))
    library, ops = torch.library.Library("maskattn", "FRAGMENT"), torch.ops.maskattn
    for name, function in {
        "select_tokens": ops.reference_select_tokens,
        "fwd": lambda *args: ops.reference_fwd(*args[:-1], 2 * args[-1]),
        "bwd": lambda *args: ops.reference_bwd(*args[:-1], 2 * args[-1]),
    }.items():
        library.define(f"doubled_{name}{SCHEMAS[name]}")
        library.impl(f"doubled_{name}", function, "CompositeExplicitAutograd")
    print(refusal(Doubled(), before="nothing"))
    register(Doubled())
    print(refusal(Doubled()))
    print([record.name for record in backends()])

    q = torch.randn(2, 1, 5, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, 5) < 0.7
    def gradient(function, **kwargs):
        out = function(q, q, q, key_mask=mask, **kwargs)
        return torch.autograd.grad(out.square().sum(), q)[0]

    assert explain(q, q, q).backend == "doubled"
    right = gradient(masked_attention, backend="reference", scale=1.0)  # 2 / sqrt(4)
    assert torch.equal(gradient(masked_attention), right)
    compiled = torch.compile(masked_attention, backend="aot_eager", fullgraph=True)
    assert torch.equal(gradient(compiled), right)
    print("same gradients")
"""


def test_backend_from_outside() -> None:
    """Registered, it is chosen, explained, differentiated and compiled as those of the package."""
    lines = run_python(OUT_OF_TREE).splitlines()
    names = "('cpu', 'triton', 'cuda', 'fa4', 'reference')"
    assert lines[0] == "TypeError: backend: expected a Backend, got str"
    assert lines[1].startswith("ValueError: backend: expected the ops maskattn::doubled_select_")
    assert lines[2] == f"ValueError: backend: expected None or one of {names}, got 'nothing'"
    assert lines[3].startswith("ValueError: backend: expected a name other than ('cpu', ")
    assert lines[4] == "['cpu', 'triton', 'cuda', 'fa4', 'doubled', 'reference']"
    assert lines[5] == "same gradients"


def test_cuda_says_why_not() -> None:
    record = next(record for record in backends() if record.name == "cuda")
    if record.available:
        pytest.skip("there is a GPU")
    q = torch.randn(1, 1, 4, 8)
    with pytest.raises(NotImplementedError, match=r"'cuda' cannot run this call: .*got cpu"):
        masked_attention(q, q, q, backend="cuda")


def test_fa4_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fa4_ops, "INSTALLED", False)
    monkeypatch.setattr(fa4_ops, "MISSING", fa4_ops.missing(False))
    q = torch.randn(1, 1, 4, 16, dtype=torch.bfloat16)
    with pytest.raises(NotImplementedError) as caught:
        masked_attention(q, q, q, backend="fa4")
    why = "flash_attn is not installed; pip install 'maskattn_kernels[fa4]'"
    assert str(caught.value).startswith(f"backend: 'fa4' cannot run this call: {why}; ")
    assert "\n" not in str(caught.value)
    record = next(record for record in backends() if record.name == "fa4")
    assert not record.available and record.reasons[0] == why and record.build == {}


@pytest.mark.parametrize(
    ("head_dim", "major", "words"),
    [
        (64, 9, ""),
        (192, 9, ""),
        (80, 9, "wrong on Hopper GPUs, got 80"),
        (240, 9, "wrong on Hopper GPUs, got 240"),
        (46, 9, "a multiple of 16, got 46"),
        (256, 10, ""),
        (144, 10, "up to 128, or 256, on this GPU, got 144"),
    ],
)
def test_head_dims_of_fa4(head_dim: int, major: int, words: str) -> None:
    problem = Problem(1, 1, 1, 4, 4, head_dim, torch.float16, "cuda")
    why = fa4_ops.limits(problem, major)
    assert bool(why) == bool(words) and words in "".join(why)


def test_other_limits_of_fa4() -> None:
    problem = Problem(8, 4, 2, 4, 2**27, 64, torch.float32, "cuda", gradients=True)
    numbers, tokens, gradients = fa4_ops.limits(problem, 9)
    assert "got torch.float32" in numbers and "2^31" in tokens and "torch.no_grad()" in gradients


WITH_CUDA = """
    import torch
    torch.version.cuda = "13.0"
    import maskattn_kernels
    record = next(r for r in maskattn_kernels.backends() if r.name == "cuda")
    print(record.available, *record.reasons, sep="|")
"""


@pytest.mark.parametrize(("nvcc", "words"), [("12.9", ""), ("13.0", ""), ("14.1", "CUDA 14")])
def test_a_driver_older_than_the_cuda_library_is_a_reason(nvcc, words, monkeypatch) -> None:
    """The first launch would fail, and `backends()` would have promised it."""
    monkeypatch.setattr(native, "driver_cuda", lambda: 13020)
    why = native._driver_too_old({"compiler": f"nvcc {nvcc}.48, GNU 14.2"})
    assert bool(why) == bool(words) and words in "".join(why)
    assert native._driver_too_old({}) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_library_that_is_not_there_is_a_reason() -> None:
    """What a torch with CUDA meets where the library was not built, or finds no GPU."""
    record = run_python(WITH_CUDA)
    assert record.startswith("False|") and record.endswith("finds no GPU")


BROKEN = """
    import sys
    import torch
    def refuse(path):
        raise {error}
    torch.ops.load_library = refuse
    import maskattn_kernels
    record = maskattn_kernels.backends()[0]
    q = torch.randn(1, 1, 4, 8)
    assert maskattn_kernels.masked_attention(q, q, q).shape == q.shape
    assert maskattn_kernels.explain(q, q, q).backend == "reference"
    try:
        maskattn_kernels.masked_attention(q, q, q, backend="cpu")
    except NotImplementedError as error:
        print(error)
    print(record.available, *record.reasons, sep="|")
"""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("OSError('Could not load') from OSError('undefined symbol: f')", "undefined symbol: f"),
        ("OSError('libtorch_cpu.so: cannot open shared object file')", "cannot open shared object"),
        ("RuntimeError('built for another torch')", "built for another torch"),
    ],
    ids=["symbol", "library", "torch"],
)
@pytest.mark.skipif(not available("cpu"), reason="no compiled library to refuse")
def test_library_that_does_not_load_is_a_reason(error: str, words: str) -> None:
    """The package imports and runs, and says in words what it lacks."""
    *messages, record = run_python(BROKEN.format(error=error)).splitlines()
    assert record.startswith("False|") and words in record
    assert len(messages) == 1 and messages[0].startswith("backend: 'cpu' cannot run this call: ")
    assert words in messages[0]
