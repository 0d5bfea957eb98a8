# SPDX-License-Identifier: BSD-3-Clause
"""The forward kernels in CuTe-DSL, their PTX run on the CPU (`ptx.py`): results, races, addresses.

What ptxas makes of the PTX, and how fast it is, only a GPU shows.
"""

import re
import sys

import pytest
import torch
from cases import CASES as TABLE
from cases import Case, make
from harness import Target, arguments, expected, moved
from oracle import assert_close, per_head
from ptx import run_block
from ptx_program import Memory, Program
from repository import ROOT
from torch import Tensor

from maskattn_kernels import backends, masked_attention, select_tokens

pytestmark = pytest.mark.skipif(
    not (ROOT / "tools" / "cute_kernels.py").exists(), reason="needs the source tree"
)
sys.path.append(str(ROOT / "tools"))
tool = pytest.importorskip("cute_kernels")
import tile_arithmetic as tiles  # noqa: E402  (the tool knows where it is)

ONE = {"batch": 1, "heads": 1, "kv_heads": 1}
CASES = [
    Case("plain", **ONE, head_dim=64, keys="all", queries="all"),
    Case("many-tiles", **ONE, key_len=300, head_dim=64, keys=0.9),
    Case("many-blocks", **ONE, query_len=260, head_dim=64, queries=0.3),
    Case("group", batch=1, heads=2, kv_heads=1, head_dim=56, per_head=True, bias="normal"),
    Case("bias", **ONE, head_dim=64, bias="some_inf"),
    Case("no-key", **ONE, head_dim=64, keys="none"),
    Case("no-query", **ONE, head_dim=64, queries="none"),
    Case("wide", **ONE, head_dim=128, key_len=150, keys="all"),
    Case("widest", **ONE, head_dim=248, key_len=70, keys="all"),
]
RUNS = [
    (arch, case, dtype)
    for arch in tool.ARCHS
    for case in CASES
    for dtype in (torch.bfloat16, torch.float16)
    if case.head_dim <= tiles.WIDTHS[arch][-1]
    and (dtype is torch.bfloat16 or case.name in ("group", "wide"))
]
GPU_CASES = [*CASES, *(case for case in TABLE if case.head_dim % 8 == 0)]
ON_GPU = [Target("cuda", dtype, device="cuda") for dtype in (torch.bfloat16, torch.float16)]
NO_KERNELS = {"no": "the CUDA library has no kernels in CuTe-DSL", "": "it says nothing of them"}


@pytest.fixture(scope="module")
def ptx_of():
    if tool.missing():
        pytest.skip(tool.missing())
    found: dict[tuple, str] = {}

    def get(arch: str, dtype: torch.dtype, width: int) -> str:
        key = (arch, str(dtype).removeprefix("torch."), width)
        if key not in found:
            found[key] = tool.compile_kernels.compile_kernel(*key).ptx
        return found[key]

    return get


def run(
    text: str, arch: str, width: int, case: Case, dtype: torch.dtype, seed: int = 0
) -> dict[str, Tensor]:
    """out and lse of the kernel, with NaN in every row that must not be read."""
    x = make(case, dtype)
    memory, kept = Memory(), []

    def address(t: Tensor) -> int:
        kept.append(t.contiguous())
        return memory.add(kept[-1].view(torch.uint8).numpy())

    def selected(mask: Tensor | None, heads: int, n: int) -> Tensor:
        whole = torch.ones(case.batch, heads, n, dtype=torch.bool)
        return whole if mask is None else whole & per_head(mask, heads)

    def lists(mask: Tensor) -> list[int]:
        if mask.all():
            return [0] * 6
        index = select_tokens(mask)
        return [
            address(index.indices), *index.indices.stride()[:2],
            address(index.counts), *index.counts.stride(),
        ]  # fmt: skip

    queries = selected(x.query_mask, case.heads, case.query_len)
    keys = selected(x.key_mask, case.kv_heads, case.key_len)
    bias = x.key_bias if x.key_bias is None else per_head(x.key_bias, case.kv_heads).float()
    read = keys if bias is None else keys & (bias != -torch.inf)
    query = x.query.detach().masked_fill(~queries[..., None], torch.nan)
    key, value = (t.detach().masked_fill(~read[..., None], torch.nan) for t in (x.key, x.value))
    out = torch.full_like(query, torch.nan)
    lse = torch.full(queries.shape, torch.nan)

    call: list = []
    for t in (query, key, value, out):
        call += [address(t), *t.contiguous().stride()[:3]]
    at = len(kept) - 1
    call += [address(lse), *lists(queries), *lists(keys)]
    call += [0] * 4 if bias is None else [address(bias), *bias.contiguous().stride()]
    call += [case.heads, case.kv_heads, case.query_len, case.key_len, case.head_dim]
    scale = case.head_dim**-0.5 if case.scale is None else case.scale
    program = Program(text)
    blocks = -(-case.query_len // tiles.QUERIES) * case.batch * case.heads
    for index in range(blocks):
        run_block(
            program, memory, [*call, float(scale)], index,
            tiles.threads_of(arch) // 32, tiles.memory_of(width, arch).end, seed + index,
        )  # fmt: skip
    return {"out": kept[at], "lse": kept[at + 1]}


@pytest.mark.parametrize(("arch", "case", "dtype"), RUNS, ids=str)
def test_results(ptx_of, arch: str, case: Case, dtype: torch.dtype) -> None:
    width = next(width for width in tiles.WIDTHS[arch] if width >= case.head_dim)
    results = run(ptx_of(arch, dtype, width), arch, width, case, dtype)
    truth, eager = expected(case, dtype)
    for name, result in results.items():
        assert_close(name, result, truth[name], [e[name] for e in eager], dtype)


@pytest.mark.parametrize("arch", tool.ARCHS)
def test_results_repeat_in_every_order_of_the_warps(ptx_of, arch: str) -> None:
    case, dtype = CASES[1], torch.bfloat16
    text = ptx_of(arch, dtype, 64)
    first, second = (run(text, arch, 64, case, dtype, seed) for seed in (1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)


FAULTS = {
    "no-fence": ("sm_90a", r"fence\.proxy\.async[^;]*;", ""),
    "no-wait-for-copies": ("sm_90a", r"cp\.async\.wait_group\s+1;", ""),
    "no-wait-for-a-tile": ("sm_90a", r"@P1 bra\.uni DONE;", "bra.uni DONE;"),
    "no-wait-for-a-product": ("sm_90a", r"wgmma\.wait_group[^;]*;", ""),
    "an-arrival-too-few": ("sm_90a", r"(mbarrier\.init[^;]*84480\], )%r\d+", r"\g<1>129"),
    "no-fence-blackwell": ("sm_100a", r"fence\.proxy\.async[^;]*;", ""),
    "no-wait-blackwell": ("sm_100a", r"@P1 bra\.uni DONE;", "bra.uni DONE;"),
    "no-wait-for-loads": ("sm_100a", r"tcgen05\.wait::ld[^;]*;", ""),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_seen(ptx_of, fault: str) -> None:
    """What the emulator is for: a wait, a fence or an arrival that is missing shows."""
    arch, pattern, change = FAULTS[fault]
    broken, changes = re.subn(pattern, change, ptx_of(arch, torch.bfloat16, 64))
    assert changes
    try:
        results = run(broken, arch, 64, CASES[1], torch.bfloat16)
    except AssertionError:
        return
    assert results["out"].isnan().any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize("target", ON_GPU, ids=str)
@pytest.mark.parametrize("case", GPU_CASES, ids=str)
def test_on_a_gpu(target: Target, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The op of the backend cuda with the kernel switched on, in training and in inference."""
    cuda = next(record for record in backends() if record.name == "cuda")
    if reason := target.missing() or NO_KERNELS.get(cuda.build.get("cute", "")[:2]):
        pytest.skip(reason)
    major, minor = torch.cuda.get_device_capability()
    widths = tiles.WIDTHS.get(f"sm_{major}{minor}a", (0,))
    if case.head_dim > widths[-1]:
        pytest.skip(f"no kernel for compute capability {major}.{minor} at this head dim")
    monkeypatch.setenv("MASKATTN_CUDA_CUTE", "1")
    x = moved(make(case, target.dtype), "cuda")
    truth, eager = expected(case, target.dtype)
    for gradients in (True, False):
        q, k, v = (t.detach().requires_grad_(gradients) for t in (x.query, x.key, x.value))
        more = arguments(x) | {"key_bias": x.key_bias, "return_lse": True, "backend": "cuda"}
        found = dict(zip(("out", "lse"), masked_attention(q, k, v, **more), strict=True))
        for name, result in found.items():
            own = [e[name] for e in eager]
            assert_close(name, result.detach().cpu(), truth[name], own, target.dtype)
