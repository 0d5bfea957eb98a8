# SPDX-License-Identifier: BSD-3-Clause
"""The CUDA sources: what nvcc makes of them for chips that are not here, and their house rules.

In bfloat16, which stands for float16; `python tools/cuda_kernels.py` has every dtype.
"""

import re
import sys
from dataclasses import replace

import pytest
from repository import ROOT

pytestmark = pytest.mark.skipif(
    not (ROOT / "tools" / "cuda_kernels.py").exists(), reason="needs the source tree"
)
sys.path.append(str(ROOT / "tools"))
tool = pytest.importorskip("cuda_kernels")

KERNELS = {
    "fwd_kernel": 8, "combine_kernel": 4, "delta_kernel": 1, "dq_kernel": 4, "dkdv_kernel": 5,
    "combine_keys_kernel": 4, "select_tokens_kernel": 1, "pack_keys_kernel": 1,
}  # fmt: skip


@pytest.mark.parametrize("arch", tool.ARCHS)
def test_machine_code(arch: str) -> None:
    if tool.missing():
        pytest.skip(tool.missing())
    kernels = list(tool.compile_all((arch,), ("-DMASKATTN_ONLY_BFLOAT16",)))
    found = [kernel.name.split("<")[0] for kernel in kernels]
    assert {name: found.count(name) for name in found} == KERNELS
    assert [tool.line(kernel) for kernel in kernels if tool.faults(kernel)] == []


GOOD = tool.Kernel(
    arch="sm_90", name="fwd_kernel<BFloat16, 64>", registers=200, stack=0, spills=0, tensor=128,
    wgmma=0, async_copies=15, float_atomics=0, global_addresses=40, narrow_addresses=0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"stack": 8}, "8 bytes of stack"),
        ({"spills": 2}, "2 spills"),
        ({"tensor": 0}, "tensor cores"),
        ({"async_copies": 0}, "asynchronous copy"),
        ({"float_atomics": 1}, "not repeatable"),
        ({"narrow_addresses": 3}, "less than 64 bits"),
    ],
)
def test_faults_are_seen(change: dict, fault: str) -> None:
    assert tool.faults(GOOD) == []
    assert fault in "; ".join(tool.faults(replace(GOOD, **change)))


SOURCES = {
    path.name: re.sub(r"//.*", "", path.read_text())
    for path in (ROOT / "csrc" / "cuda").iterdir()
    if path.suffix in (".cu", ".cuh", ".cpp", ".h")
}


def test_one_place_launches() -> None:
    """On the caller's stream, in one dimension, with its error read at once."""
    assert [name for name, text in SOURCES.items() if "<<<" in text] == ["device.cuh"]
    launch = SOURCES["device.cuh"].split("int launch(")[1]
    assert "const auto on = static_cast<cudaStream_t>(stream);" in launch
    assert "const auto grid = static_cast<uint32_t>(blocks);" in launch
    assert re.search(r"<<<grid, [^;]*, on>>>\(params\);\s*return cudaGetLastError\(\);", launch)
    assert "if (blocks > INT32_MAX) return" in launch


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_no_launch_is_unchecked(name: str) -> None:
    """Every launch is returned to the torch side or compared, none is dropped."""
    for line in SOURCES[name].splitlines():
        if re.search(r"\blaunch(_\w+)?(<[^>]*>)?\(\w", line) and not re.match(
            r"\s*(int|template)\b", line
        ):
            assert re.search(r"return |error = |check_launch\(", line), line


def test_torch_side_guards_the_device() -> None:
    """Each op makes the tensors' device current before it allocates, and launches on its stream."""
    parts = re.split(r"\nstd::tuple<", SOURCES["masked_attention.cpp"])[1:]
    # What allocates and launches; the others hand on to them.
    allocates = re.compile(r"\b(new_like|allocate)\(")
    ops = [part for part in parts if allocates.search(part) or "launch_cuda" in part]
    assert len(parts) == 6 and len(ops) == 3
    for op in ops:
        first = allocates.search(op)
        assert first and 0 < op.index("const OnDevice device(") < first.start()
        launches = re.findall(r"launch_cuda_\w+\(([^;]*);", op)
        assert len(launches) == 1 and "device.stream()" in launches[0]


def test_nothing_waits_for_the_device() -> None:
    for name, text in SOURCES.items():
        assert not re.search(r"cuda\w*Synchronize|cudaMemcpy|cudaMalloc|atomicAdd", text), name
