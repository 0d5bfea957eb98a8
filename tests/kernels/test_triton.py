# SPDX-License-Identifier: BSD-3-Clause
"""What is particular to the Triton kernels: every tile of the table, shared keys, guard pages, and
that each check of the strict interpreter catches the bug it is for."""

import ctypes
import itertools
import mmap
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cases import BY_NAME, Case, make
from harness import INTERPRETED, TRITON_TARGETS, Target, check_against_oracle, ran_on, run
from interpreter import make_strict
from repository import SUPPORT
from torch import Tensor

from maskattn_kernels import TokenIndex, explain, masked_attention
from maskattn_kernels.backends import triton_ops, tuning
from maskattn_kernels.problem import Problem

interpreted = pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
every_target = pytest.mark.parametrize("target", TRITON_TARGETS, ids=str, indirect=True)
RAGGED = Case(
    "ragged", 1, 2, 1, 150, 140, head_dim=20, keys=0.5, queries=0.6, bias="normal"
)  # more than one tile of any size, and a part of one


# The table


CONFIGS = sorted({(e.kernel, config[:2]) for e in tuning.TABLE for config in e.configs})


@interpreted
@pytest.mark.parametrize(
    ("kernel", "tile"), CONFIGS, ids=[f"{kernel}_{m}_{n}" for kernel, (m, n) in CONFIGS]
)
def test_every_tile(kernel: str, tile: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """One configuration of a peer's table gave wrong gradients, and no test ran it."""
    make_strict(monkeypatch)
    choose = tuning.choose_config
    forced = tuning.Config(*tile, warps=1, stages=1)
    monkeypatch.setattr(
        tuning, "choose_config", lambda k, *args: forced if k == kernel else choose(k, *args)
    )
    check_against_oracle(Target("triton", torch.float32), RAGGED)


@pytest.mark.parametrize("arch", [*tuning.SHARED_MEMORY, "interpreter"])
@pytest.mark.parametrize("kernel", tuning.KERNELS)
def test_every_call_finds_a_tile(kernel: str, arch: str) -> None:
    relative, limit = tuning.RELATIVES.get(arch, arch), tuning.SHARED_MEMORY.get(arch)
    for bits, head_dim, size in itertools.product(
        (16, 32), (1, 64, 65, 128, 129, 256), ("large", "small")
    ):
        rows = 10**6 if size == "large" else 1
        config = tuning.choose_config(kernel, arch, bits, head_dim, rows, processors=100)
        entry = tuning.find_entry(kernel, relative, bits, head_dim, size)
        assert config in entry.configs
        assert not tuning.refuse(kernel, config, bits, head_dim, relative, limit)


def test_tile_that_does_not_fit_is_refused_and_the_next_is_taken() -> None:
    call = ("fwd", "sm_80", 16, 128, 10**6, 108)
    first, second = tuning.find_entry("fwd", "sm_80", 16, 128, "large").configs
    assert tuning.choose_config(*call) == first
    needs = tuning.shared_memory("fwd", first, 16, 128, "sm_80")
    assert tuning.choose_config(*call, limit=needs) == first
    assert tuning.choose_config(*call, limit=needs - 1) == second
    refusal = tuning.refuse("fwd", first, 16, 128, "sm_80", needs - 1)
    assert str(needs) in refusal and str(needs - 1) in refusal
    with pytest.raises(RuntimeError, match=r"no configuration of fwd fits sm_80: .*1000"):
        tuning.choose_config(*call, limit=1000)
    with pytest.raises(RuntimeError, match="no entry for fwd on sm_50"):
        tuning.choose_config("fwd", "sm_50", 16, 64, 1, 1)


def test_tiles_are_powers_of_two_that_tensor_cores_take() -> None:
    for entry in tuning.TABLE:
        for config in entry.configs:
            assert all(n >= 16 and n & (n - 1) == 0 for n in config[:2]), entry
    assert [tuning.head_dim_pad(d) for d in (1, 16, 17, 46, 64, 200)] == [16, 16, 32, 64, 64, 256]


def test_splits_fill_the_chip_and_no_more() -> None:
    assert tuning.key_splits(132, 10**5, 64, 132) == 1  # as many programs as processors
    assert tuning.key_splits(33, 10**5, 64, 132) == 4
    assert tuning.key_splits(1, 10**5, 64, 132) == tuning.MAX_SPLITS
    assert tuning.key_splits(1, 600, 64, 132) == 2  # a split has KEY_BLOCKS_OF_A_SPLIT blocks
    assert tuning.key_splits(1, 100, 64, 132) == 1
    assert tuning.query_splits(16, 1024, 32, 132) == 8  # of the reference network, one image
    small, large = tuning.Config(64, 64, 4, 2), tuning.Config(128, 64, 8, 3)
    assert tuning.programs_at_a_time("fwd", small, 16, 64, "sm_90", 132) == 264
    assert tuning.programs_at_a_time("fwd", large, 16, 64, "sm_90", 132) == 132
    assert tuning.programs_at_a_time("fwd", small, 16, 64, "gfx942", 304) == 304


# The backend


def test_reasons_are_all_given(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = triton_ops.TritonBackend()
    monkeypatch.setattr(triton_ops, "INSTALLED", False)
    monkeypatch.setattr(triton_ops, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    why = "; ".join(backend.reasons(Problem(1, 1, 1, 4, 4, 0, torch.float64, "cpu")))
    for words in ("not installed", "TRITON_INTERPRET=1", "float64", "head_dim"):
        assert words in why
    assert len(backend.unavailable()) == 2 and "needs a GPU" in backend.unavailable()[1]
    assert "got meta" in "".join(backend.reasons(Problem(1, 1, 1, 4, 4, 8, torch.half, "meta")))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.version, "hip", None)
    why = backend.reasons(Problem(1, 1, 1, 4, 4, 8, torch.half, "cuda"))
    assert any("8.0" in reason and "7.5" in reason for reason in why)


def test_cpu_tensors_prefer_the_cpu() -> None:
    """Also where the interpreter could take them."""
    q = torch.randn(1, 1, 4, 8)
    explanation = explain(q, q, q)
    assert explanation.backend in ("cpu", "reference") or not INTERPRETED
    if not INTERPRETED:
        with pytest.raises(NotImplementedError, match=r"'triton' cannot run .*TRITON_INTERPRET=1"):
            masked_attention(q, q, q, backend="triton")


def test_kernels_are_loaded_at_the_first_call() -> None:
    """torch itself may import triton; the package does not before it runs a kernel."""
    code = """
        import sys, maskattn_kernels
        maskattn_kernels.backends()
        print([name for name in sys.modules if "backends.triton_" in name])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['maskattn_kernels.backends.triton_ops']"


# The kernels


@interpreted
@pytest.mark.parametrize("splits", [2, 8])
@pytest.mark.parametrize("case", ["n97", "keys_one_queries_0.5", "keys_none_queries_0.5", "d46"])
def test_shared_keys(case: str, splits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of the programs that share the keys of a block have none."""
    make_strict(monkeypatch)
    monkeypatch.setattr(tuning, "key_splits", lambda *args: splits)
    check_against_oracle(Target("triton", torch.float32), BY_NAME[case])


@interpreted
@pytest.mark.parametrize("splits", [2, 8])
@pytest.mark.parametrize("case", ["n97", "everything", "all_keys_bias", "keys_none_queries_0.5"])
def test_shared_queries(case: str, splits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same in the backward pass, where programs share the queries of a block of keys."""
    make_strict(monkeypatch)
    monkeypatch.setattr(tuning, "query_splits", lambda *args: splits)
    check_against_oracle(Target("triton", torch.float32), BY_NAME[case])


@every_target
def test_index_entries_out_of_range_are_no_tokens(target: Target) -> None:
    """A GPU cannot raise for them without waiting; memory outside of a tensor stays untouched."""
    if target.device != "cpu":
        pytest.skip("runs where the interpreter watches every access")
    q = torch.randn(1, 1, 8, 4).to(target.dtype)
    bad = torch.tensor([[[-5, 1, 3, 8, 2**31 - 1, 8, 8, 8]]], dtype=torch.int32)
    index = TokenIndex(bad, torch.tensor([[5]], dtype=torch.int32))
    mask = torch.zeros(1, 8, dtype=torch.bool)
    mask[0, [1, 3]] = True
    with ran_on("triton"):
        out = masked_attention(q, q, q, key_mask=index, backend="triton")
        expected = masked_attention(q, q, q, key_mask=mask, backend="triton")
        masked_attention(q, q, q, query_mask=index, backend="triton")
        excess = TokenIndex(torch.arange(8).int().view(1, 1, 8), torch.tensor([[99]]).int())
        masked_attention(q, q, q, key_mask=excess, query_mask=excess, backend="triton")
    assert torch.equal(out, expected)


def at_guard_page(t: Tensor, at_end: bool) -> Tensor:
    """A copy whose last (or first) byte lies next to a page that may not be touched."""
    size, page = max(t.numel() * t.element_size(), 1), mmap.PAGESIZE
    pages = -(-size // page)
    memory = mmap.mmap(-1, (pages + 2) * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    for guard in (start, start + (pages + 1) * page):
        assert libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0
    offset = (pages + 1) * page - size if at_end else page
    GUARDED.append(memory)
    copy = torch.frombuffer(memory, dtype=t.dtype, count=max(t.numel(), 1), offset=offset)
    return copy[: t.numel()].view(t.shape).copy_(t)


GUARDED: list[mmap.mmap] = []  # kept, for a page given back may be read


def guarded_calls(at_end: bool) -> None:
    """Everything that goes into and out of the kernels, at guard pages: a bad access kills."""
    from maskattn_kernels.backends import triton_plans

    allocate = triton_plans.allocate
    triton_plans.allocate = lambda like, result: at_guard_page(allocate(like, result), at_end)
    for name in ("everything", "n17", "d3", "n1", "bias_normal", "heads_6_1_per_head"):
        for dtype in (torch.float32, torch.float16):
            x = make(BY_NAME[name], dtype, batch=1, query_len=37, key_len=35)
            tensors = {
                name: at_guard_page(t.contiguous(), at_end)
                for name, t in vars(x).items()
                if isinstance(t, Tensor)
            }
            run(Target("triton", dtype), replace(x, **tensors))


@interpreted
@pytest.mark.parametrize("at_end", [True, False], ids=["end", "start"])
@pytest.mark.parametrize("planted", [False, True], ids=["kernels", "planted_bug"])
def test_tensors_at_guard_pages(at_end: bool, planted: bool) -> None:
    body = f"guarded_calls({at_end})"
    if planted:  # one element beyond
        body = f"""
            t = at_guard_page(torch.zeros(64), {at_end})
            toy_kernel[(1,)](t, t, {64 if at_end else -1}, BLOCK=1)
        """
    code = f"from test_triton import *\n{textwrap.dedent(body)}\nprint('survived')"
    paths = os.pathsep.join((str(SUPPORT), os.environ.get("PYTHONPATH", "")))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert ("survived" in done.stdout) != planted, done.stderr
    assert done.returncode == (-11 if planted else 0)


# The checks themselves

if INTERPRETED:
    import triton
    import triton.language as tl

    @triton.jit
    def toy_kernel(source, target, shift, BLOCK: tl.constexpr):
        """Each program copies BLOCK numbers, read and written `shift` further on."""
        places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK) + shift
        tl.store(target + places, tl.load(source + places))

    @triton.jit
    def racing_kernel(target):
        tl.store(target, tl.program_id(0))

    @triton.jit
    def wrapping_kernel(target, stride):
        tl.store(target, tl.program_id(0) + stride * 4)

    @triton.jit
    def ordered_kernel(target):
        """Right only if programs run in order: each reads what the one before it wrote."""
        pid = tl.program_id(0)
        tl.store(target + pid + 1, tl.load(target + pid) + 1)


def launch_toy(shift: int) -> None:
    toy_kernel[(4,)](torch.zeros(16), torch.zeros(16), shift, BLOCK=4)


PLANTED: dict[str, tuple[Callable[[], None], str]] = {
    "none": (lambda: launch_toy(0), ""),
    "reads_past_the_end": (lambda: launch_toy(1), "memory outside"),
    "reads_before_the_start": (lambda: launch_toy(-1), "memory outside"),
    "two_programs_store_to_one_address": (
        lambda: racing_kernel[(2,)](torch.zeros(1, dtype=torch.int32)),
        "stored twice",
    ),
    "int32_overflow": (
        lambda: wrapping_kernel[(1,)](torch.zeros(1, dtype=torch.int32), 2**30),
        "int32 overflow",
    ),
}


@interpreted
@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bug_is_caught(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launch, words = PLANTED[bug]
    make_strict(monkeypatch)
    if not words:
        launch()
        return
    with pytest.raises(Exception, match=words):
        launch()


@interpreted
def test_order_of_programs_is_shuffled(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = torch.arange(17, dtype=torch.int32)
    in_order, shuffled = torch.zeros(2, 17, dtype=torch.int32)
    ordered_kernel[(16,)](in_order)
    assert torch.equal(in_order, expected)
    make_strict(monkeypatch)
    ordered_kernel[(16,)](shuffled)
    assert not torch.equal(shuffled, expected)
