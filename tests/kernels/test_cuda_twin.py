# SPDX-License-Identifier: BSD-3-Clause
"""The CUDA kernels as they ship, run on the CPU: results against the oracle, races and faults seen.

What only a GPU can show is not here: speed, and whether mma.sync, ldmatrix and cp.async do what
`tests/cuda_twin` says they do.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import twin
from cases import BY_NAME, CASES, Case, make
from harness import RESULTS, Target, arguments, check_against_oracle, run
from oracle import assert_close
from poison import FIELDS, poisoned
from repository import SUPPORT

from maskattn_kernels import TokenIndex, masked_attention, select_tokens

pytestmark = pytest.mark.skipif(
    not shutil.which(twin.COMPILER), reason="needs a C++ compiler to build the twin"
)
BF16 = Target("twin", torch.bfloat16)
# What depends on the dtype: widths of tiles, products, rounding. All else runs in bfloat16.
OTHER_DTYPES = (
    "everything",
    "large_scores",
    "bias_some_inf",
    "keys_none_queries_0.5",
    "cross_37_101",
)
OTHER_DTYPES += tuple(f"d{d}" for d in (1, 15, 17, 46, 64, 80, 128, 200, 256))


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    twin.install(monkeypatch, twin.build())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_and_gradients(case: Case) -> None:
    check_against_oracle(BF16, case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_without_gradients_the_same(case: Case) -> None:
    """From the masks themselves, in one launch where sequences are short, to the same bits."""
    x = make(case, BF16.dtype)
    q, k, v = x.query, x.key, x.value
    kwargs = arguments(x) | {"key_bias": x.key_bias, "return_lse": True, "backend": "twin"}
    long = masked_attention(*(t.detach().requires_grad_() for t in (q, k, v)), **kwargs)
    before = twin.launches(twin.build())
    with torch.no_grad():
        short = masked_attention(q, k, v, **kwargs)
    for got, expected in zip(short, long, strict=True):
        assert torch.equal(got, expected) and got.stride() == expected.stride()
    indexed = any(isinstance(m, TokenIndex) for m in kwargs.values())
    if not indexed and q.numel() > 0 and 0 < k.shape[2] <= 256 and q.shape[2] <= 256:
        assert twin.launches(twin.build()) - before == 1
    dirty = poisoned(x, ("query", "key", "value", "key_bias"), torch.nan)
    kwargs["key_bias"] = dirty.key_bias
    with torch.no_grad():
        again = masked_attention(dirty.query, dirty.key, dirty.value, **kwargs)
    for got, expected in zip(again, long, strict=True):
        assert torch.equal(got, expected)


def test_longer_masks_are_listed_first() -> None:
    """One token too many for a block: the same mask for queries and keys is listed once."""
    q, k, v = (torch.randn(1, 1, 257, 16).bfloat16() for _ in range(3))
    mask = torch.rand(1, 257).lt(0.4)
    other = mask.clone()
    for query_mask, count in ((None, 2), (mask, 2), (other, 3)):
        before = twin.launches(twin.build())
        kwargs = {"key_mask": mask, "query_mask": query_mask, "backend": "twin"}
        out = masked_attention(q, k, v, **kwargs)
        assert twin.launches(twin.build()) - before == count
        grad = masked_attention(q, k, v.requires_grad_(), **kwargs)
        assert torch.equal(out, grad)
        v = v.detach()


@pytest.mark.parametrize("name", OTHER_DTYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_other_dtypes(dtype: torch.dtype, name: str) -> None:
    check_against_oracle(Target("twin", dtype), BY_NAME[name])


@pytest.mark.parametrize("n", [1, 31, 33, 511, 513, 1500])
def test_select_tokens(n: int) -> None:
    """Lengths around a warp and a block; any strides; a True of any byte; entries past the end."""
    g = torch.Generator().manual_seed(n)
    mask = torch.rand(n, 2, 3, generator=g).lt(0.4).permute(1, 2, 0)
    odd_bytes = (mask.to(torch.uint8) * 7).view(torch.bool)
    expected = torch.ops.maskattn.reference_select_tokens(mask)
    for m in (mask, odd_bytes):
        for got, want in zip(torch.ops.maskattn.twin_select_tokens(m), expected, strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize("queries", [5, 100])
def test_few_queries_share_many_keys(queries: int) -> None:
    """Enough keys that several blocks share them; one share of them is empty."""
    case = Case("splits", 1, 1, 1, queries, 2100, 40, keys=0.1, queries=0.5, bias="normal")
    check_against_oracle(BF16, case)


@pytest.mark.parametrize(
    ("head_dim", "queries"), [(40, None), (40, 0.2), (128, 0.5), (128, 0.01), (200, 0.5)]
)
def test_few_keys_share_many_queries(head_dim: int, queries: float | None) -> None:
    """In the backward pass two blocks share them; one share may be empty."""
    case = Case("splits", 1, 4, 2, 700, 70, head_dim, 0.5, queries, per_head=True, bias="some_inf")
    x = make(case, BF16.dtype)
    before = twin.launches(twin.build())
    run(BF16, x)
    listing = 1 if queries is None else 2
    # Forward, delta, dkdv (for dk and dv one by one if rows are wide), the sums of shares, dq.
    attention = 6 if head_dim > 128 else 5
    is_shared = (head_dim, queries) != (40, 0.2)  # tiles of 64 queries, and too few of them
    assert twin.launches(twin.build()) - before == listing + attention - (not is_shared)
    check_against_oracle(BF16, case)


H100, A100 = (132, 228 * 1024), (108, 164 * 1024)


@pytest.mark.parametrize(
    ("chip", "shared", "blocks", "tiles", "splits"),
    [
        (H100, 64 * 1024, 264, 1000, 1),  # as many blocks as the chip runs at a time
        (H100, 64 * 1024, 132, 1000, 2),
        (H100, 64 * 1024, 66, 1000, 4),
        (H100, 99 * 1024, 66, 1000, 4),
        (A100, 64 * 1024, 54, 1000, 4),
        (A100, 99 * 1024, 54, 1000, 2),  # its processors have room for one such block
        (H100, 64 * 1024, 1, 1000, 16),  # at most
        (H100, 64 * 1024, 1, 11, 2),  # a share has four tiles at least
        (H100, 64 * 1024, 1, 3, 1),
        (H100, 64 * 1024, 0, 1000, 16),
        ((0, 0), 64 * 1024, 1, 1000, 1),  # a chip of which nothing is known
    ],
)
def test_splits_fill_the_chip_and_no_more(
    chip: tuple[int, int], shared: int, blocks: int, tiles: int, splits: int
) -> None:
    assert twin.choose_splits(twin.build(), chip, shared, blocks, tiles) == splits


@pytest.mark.parametrize("poison", [torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("name", ["everything", "index_per_head", "d46", "n65"])
def test_unselected_tokens_are_invisible(name: str, poison: float) -> None:
    x = make(BY_NAME[name], BF16.dtype)
    clean, dirty = run(BF16, x), run(BF16, poisoned(x, FIELDS, poison))
    for result in clean:
        assert torch.equal(clean[result], dirty[result]), result


def test_query_without_keys_is_not_read() -> None:
    """Its bias leaves it no key: not even 0 * NaN of it reaches the gradients."""
    x = make(BY_NAME["bias_all_inf"], BF16.dtype)
    results = run(BF16, replace(x, dout=x.dout * torch.nan))
    for name in ("out", "dq", "dk", "dv", "dbias"):
        assert not results[name].any(), name


@pytest.mark.parametrize("layout", ["tokens_major", "odd_offset", "odd_stride", "past_int32"])
def test_strides(layout: str) -> None:
    """Rows that 16-byte copies can and cannot move, and offsets of more than 31 bits."""
    x = make(replace(BY_NAME["heads_4_2"], name=layout, head_dim=24), BF16.dtype)

    def far_strides(t: torch.Tensor) -> tuple[int, ...]:
        b, h, n, d = t.shape
        return d * h, d, max(d * h * b, 2**31 // (n - 1) // 8 * 8 + 8), 1

    def laid_out(t: torch.Tensor) -> torch.Tensor:
        b, h, n, d = t.shape
        if layout == "tokens_major":
            return t.transpose(1, 2).contiguous().transpose(1, 2)
        if layout == "odd_offset":
            return torch.empty(t.numel() + 1, dtype=t.dtype)[1:].view(t.shape).copy_(t)
        if layout == "odd_stride":
            return torch.empty(b, h, n, d + 3, dtype=t.dtype)[..., :d].copy_(t)
        torch.use_deterministic_algorithms(False)  # pages that are not filled take no memory
        return torch.empty_strided(t.shape, far_strides(t), dtype=t.dtype).copy_(t)

    fields = ("query", "key", "value", "dout")
    got = run(BF16, replace(x, **{f: laid_out(getattr(x, f)) for f in fields}))
    for name, result in run(BF16, x).items():
        assert torch.equal(got[name], result), name


@pytest.mark.parametrize(("queries", "head_dim"), [(40, 16), (300, 46)], ids=["", "packed"])
def test_index_made_by_hand_stays_inside(queries: int, head_dim: int) -> None:
    """Entries that name no token count as none, and counts past the end as the end."""
    q, k, v = (torch.randn(1, 1, n, head_dim).bfloat16() for n in (queries, 40, 40))
    wild = [-(2**31), -1, 3, 5, 40, 2**31 - 1, -2, *range(7, 40)]
    wild = torch.tensor([[wild]], dtype=torch.int32)
    counts = torch.tensor([[6]], dtype=torch.int32)
    mask = torch.zeros(1, 40, dtype=torch.bool)
    mask[:, [3, 5]] = True
    got, _ = torch.ops.maskattn.twin_fwd(q, k, v, None, None, wild, counts, None, 0.25)
    kwargs = {"key_mask": mask, "scale": 0.25}
    truth = masked_attention(q.double(), k.double(), v.double(), **kwargs)
    eager = masked_attention(q, k, v, **kwargs, backend="reference")
    assert_close("out", got, truth, [eager], torch.bfloat16)
    torch.ops.maskattn.twin_fwd(k, k, v, wild, counts * 2**20, None, None, None, 0.25)


@pytest.mark.parametrize(("queries", "head_dim"), [(40, 16), (300, 46), (40, 200)])
def test_key_at_minus_infinity_takes_no_part(queries: int, head_dim: int) -> None:
    """Read from where it lies, packed, and where dk and dv take a launch each."""
    x = make(Case("", 1, 2, 1, queries, 300, head_dim, keys=0.9, bias="normal"), BF16.dtype)
    out_of_it = torch.rand(1, 300) < 0.3
    right = run(BF16, replace(x, key_mask=x.key_mask & ~out_of_it))
    bias = x.key_bias.masked_fill(out_of_it, -torch.inf)
    key, value = (t.masked_fill(out_of_it[:, None, :, None], torch.nan) for t in (x.key, x.value))
    got = run(BF16, replace(x, key=key, value=value, key_bias=bias))
    for name in RESULTS:
        torch.testing.assert_close(got[name], right[name], rtol=2e-2, atol=2e-2)
    assert not got["dk"].transpose(1, 2)[out_of_it].any() and not got["dbias"][out_of_it].any()


def test_repeats_bitwise() -> None:
    x = make(BY_NAME["everything"], BF16.dtype)
    first, second = run(BF16, x), run(BF16, x)
    assert all(torch.equal(first[name], second[name]) for name in RESULTS)


# ---- Faults planted on purpose -------------------------------------------------------------------
PLANTED = Case("planted", 1, 1, 1, 40, 200, 64, keys=0.9)


@pytest.mark.parametrize("barrier", [1, 2, 3, 4, 6, 7, 8])
def test_missing_barrier_is_seen(barrier: int) -> None:
    """All of a forward block but the fifth, which only a second loop over the same memory needs."""
    x = make(PLANTED, BF16.dtype)
    index = [t for m in (x.query_mask, x.key_mask) for t in select_tokens(m[:, None])]
    with twin.planted(twin.build(), barrier=barrier), pytest.raises(RuntimeError, match="race"):
        torch.ops.maskattn.twin_fwd(x.query, x.key, x.value, *index, None, 0.125)


def test_missing_barrier_after_listing_masks_is_seen() -> None:
    x = make(PLANTED, BF16.dtype)
    masks = [m[:, None] for m in (x.query_mask, x.key_mask)]
    with twin.planted(twin.build(), barrier=1), pytest.raises(RuntimeError, match="race"):
        torch.ops.maskattn.twin_infer(x.query, x.key, x.value, *masks, None, 0.125)


def test_missing_wait_is_seen() -> None:
    x = make(PLANTED, BF16.dtype)
    with (
        twin.planted(twin.build(), wait=True),
        pytest.raises(RuntimeError, match="read under a copy"),
    ):
        torch.ops.maskattn.twin_fwd(x.query, x.key, x.value, *[None] * 5, 0.125)


SANITIZED = """
import sys
sys.path.insert(0, sys.argv[1])
import pytest, torch, twin
from pathlib import Path
from cases import BY_NAME
from harness import Target, check_against_oracle
from hostile import call_at_random
from maskattn_kernels.op_table import OPS
library, barrier, hostile = Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
twin.install(pytest.MonkeyPatch(), library)
for name in sys.argv[5:]:
    with twin.planted(library, barrier):
        check_against_oracle(Target("twin", torch.bfloat16), BY_NAME[name])
    print(name, "is right")
if hostile:
    ran = call_at_random(OPS["twin"], torch.bfloat16, seed=0, calls=hostile, agree=False)
    print(ran, "hostile calls")
"""


def sanitized(
    flags: tuple[str, ...],
    *cases: str,
    csrc: Path = twin.CSRC,
    barrier: int = 0,
    hostile: int = 0,
) -> subprocess.CompletedProcess:
    """Builds with these sanitizers and runs cases; each thread leaves out its n-th barrier.

    Then so many `hostile` calls: only where memory is watched. A list that names a token twice may
    make two threads write the same word, which is a race, and harmless.
    """

    def runtime(name: str) -> str:
        command = [twin.COMPILER, f"-print-file-name={name}"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    library = twin.build(flags, csrc)
    runtimes = ("libtsan.so",) if flags == twin.THREADS else ("libasan.so", "libubsan.so")
    # Python itself is not sanitized, so the runtimes come first; its own memory is never freed.
    env = os.environ | {
        "LD_PRELOAD": " ".join(map(runtime, (*runtimes, "libstdc++.so"))),
        "ASAN_OPTIONS": "detect_leaks=0:use_sigaltstack=0",
        "TSAN_OPTIONS": "ignore_noninstrumented_modules=1:halt_on_error=1",
        "OMP_NUM_THREADS": "1",
        "PYTHONMALLOC": "malloc",
    }
    arguments = [str(SUPPORT), str(library), str(barrier), str(hostile), *cases]
    command = [sys.executable, "-c", SANITIZED, *arguments]
    done = subprocess.run(command, cwd=twin.ROOT, env=env, capture_output=True, text=True)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("this kernel lays memory out in a way that ThreadSanitizer does not know")
    return done


def changed(folder: Path, right: str, wrong: str) -> Path:
    """The sources with a fault in the forward pass."""
    shutil.copytree(twin.CSRC, folder / "csrc")
    source = folder / "csrc" / "cuda" / "forward.cu"
    assert right in source.read_text()
    source.write_text(source.read_text().replace(right, wrong))
    return folder / "csrc"


def test_sanitizers_find_nothing() -> None:
    names = (
        "d46",
        "n65",
        "cross_37_101",
        "heads_6_1_per_head",
        "shared_mask",
        "d256",
        "cross_1_129",
    )
    done = sanitized(twin.ADDRESSES, *names, hostile=60)
    assert done.returncode == 0, done.stderr[-3000:]
    *right, hostile = done.stdout.splitlines()
    assert right == [f"{name} is right" for name in names]
    assert hostile.endswith("hostile calls") and int(hostile.split()[0]) > 7


def test_read_outside_is_seen(tmp_path: Path) -> None:
    """The same build, but the tokens of a block of queries are read without a look at the count."""
    right = "store_shared(memory.queries + i, queries[first + i]);"
    wrong = right.replace("queries[first + i]", "queries.indices[first + i]")
    done = sanitized(twin.ADDRESSES, "n65", csrc=changed(tmp_path, right, wrong))
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr, done.stderr[-3000:]


def test_thread_sanitizer_finds_nothing() -> None:
    """Not in shared memory, nor in what several threads or blocks might write of the results."""
    done = sanitized(twin.THREADS, "n65", "heads_6_1_per_head")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("is right") == 2


def test_thread_sanitizer_sees_a_missing_barrier() -> None:
    """Without the twin's own check, which is off there."""
    done = sanitized(twin.THREADS, "n65", barrier=7)
    assert done.returncode != 0 and "data race" in done.stderr, done.stderr[-3000:]


def test_thread_sanitizer_sees_a_result_written_twice(tmp_path: Path) -> None:
    """By the rows of a block, all to the first token."""
    right = "lse[token] = lse_row;"
    wrong = "lse[0] = lse_row;"
    done = sanitized(twin.THREADS, "n65", csrc=changed(tmp_path, right, wrong))
    assert done.returncode != 0 and "data race" in done.stderr, done.stderr[-3000:]
