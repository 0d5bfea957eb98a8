# SPDX-License-Identifier: BSD-3-Clause
"""Compiles the Triton kernels ahead of time, for chips that are not here, and reads what came out.

What a compiler makes of a kernel decides half of its speed, and needs no GPU to be seen: registers
and what did not fit into them, shared memory, whether products go to the tensor cores and gathers
through asynchronous copies. `maskattn tiles` prints it as a table; the tests hold it to limits.
"""

import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from maskattn_kernels.backends import tuning
from maskattn_kernels.backends.machine_code import (
    COLUMNS,
    MachineCode,
    cells,
    common_faults,
    count,
    read_cubin,
)
from maskattn_kernels.backends.triton_backward import delta_kernel, dkdv_kernel, dq_kernel
from maskattn_kernels.backends.triton_choices import SELECT_BLOCK, packed_width, small_block
from maskattn_kernels.backends.triton_combine import combine_kernel, combine_keys_kernel
from maskattn_kernels.backends.triton_forward import LOG2E, fwd_kernel
from maskattn_kernels.backends.triton_index import select_tokens_kernel
from maskattn_kernels.backends.triton_pack import pack_kernel
from maskattn_kernels.backends.triton_plans import OPTIONS

TILED = {"fwd": fwd_kernel, "short": fwd_kernel, "dkdv": dkdv_kernel, "dq": dq_kernel}
SMALL = {
    "select_tokens": select_tokens_kernel, "combine": combine_kernel, "delta": delta_kernel,
    "combine_keys": combine_keys_kernel, "pack": pack_kernel,
}  # fmt: skip

# Types of what pointers point to; None is the dtype of query, key and value.
POINTERS = (
    dict.fromkeys(("q", "k", "v", "out", "dout", "dq", "dk", "dv", "a", "b"))
    | dict.fromkeys(("packed_a", "packed_b"))
    | dict.fromkeys(("key_bias", "dbias", "lse", "deltas", "dlse"), "*fp32")
    | dict.fromkeys(("part_out", "part_lse", "part_dk", "part_dv", "part_dbias"), "*fp32")
    | dict.fromkeys(("query_index", "query_counts", "key_index", "key_counts"), "*i32")
    | {"mask": "*u8", "indices": "*i32", "index": "*i32", "counts": "*i32"}
)
# What a kernel reads by packed rows where rows of head_dim numbers do not lie at multiples of 16.
PACKED = {"fwd": ("k", "v"), "dkdv": ("dout", "q", "k", "v"), "dq": ("dout", "q", "k", "v")}
ODD = 46  # a head_dim of such rows


@dataclass(frozen=True)
class Job:
    """One kernel for one chip."""

    kernel: str
    arch: str
    dtype: str  # "bf16", "fp32", or "tf32": float32 where torch's flag allows TF32 products
    head_dim: int
    config: tuning.Config
    default: bool  # the one that a call takes; the others stand in for it on smaller chips
    keys_alone: bool = False  # only keys are masked, as in most calls; else all options are in use


@dataclass(frozen=True, kw_only=True)
class Report(MachineCode):
    """What one compilation gave."""

    job: Job
    shared: int  # bytes a program keeps in shared memory
    narrow_addresses: int  # rows of a tile addressed by 32-bit numbers


def jobs(archs: tuple[str, ...] = tuning.ARCHS) -> Iterator[Job]:
    """Every configuration of the table, and the kernels that need none, for these chips."""
    seen = set()
    for entry in tuning.TABLE:
        for arch in (a for a in entry.archs if a in archs):
            for place, config in enumerate(entry.configs):
                for dtype in _dtypes(entry.bits, arch):
                    job = Job(entry.kernel, arch, dtype, entry.head_dim, config, place == 0)
                    kinds = [job]
                    is_small = entry.size == "small" and job.default
                    if job.kernel == "fwd" and is_small and dtype != "tf32":
                        kinds.append(replace(job, kernel="short"))
                    if job.kernel == "dkdv" and job.default and dtype == "bf16":
                        # Rows of queries that lie side by side take more registers than lists.
                        kinds.append(replace(job, keys_alone=True))
                    if job.default and dtype == "bf16" and tuning.head_dim_pad(ODD) == job.head_dim:
                        kinds.append(replace(job, head_dim=ODD))
                    yield from (kind for kind in kinds if kind not in seen)
                    seen.update(kinds)
    for arch in archs:
        for name in SMALL:
            head_dim = ODD if name == "pack" else 128
            config = tuning.Config(small_block(head_dim), 64, 4, 1)
            yield Job(name, arch, "bf16", head_dim, config, True)


def _dtypes(bits: int, arch: str) -> tuple[str, ...]:
    if bits == 16:
        return ("bf16",)
    return ("fp32", "tf32") if arch.startswith("sm_") else ("fp32",)


def compile_job(job: Job) -> Report:
    """Compiles a kernel with all its options in use (indices, bias), or as the job says."""
    kernel = (TILED | SMALL)[job.kernel]
    signature, attributes = _signature(kernel, job)
    if job.kernel == "short":  # masks in place of indices
        signature |= {"query_index": "*u8", "key_index": "*u8"}
    constants = {(kernel.arg_names.index(n),): v for n, v in _constants(kernel, job).items()}
    source = ASTSource(kernel, signature, constants, attributes)
    options = OPTIONS | {"num_warps": job.config.warps, "num_stages": job.config.stages}
    compiled = triton.compile(source, target=_target(job.arch), options=options)
    text = compiled.asm["ttir"]
    narrow = count(r"tt\.addptr .*: tensor<\d+x1x!tt\.ptr<\w+>>, tensor<\d+x1xi32>", text)
    facts = (
        _amd(compiled.asm["amdgcn"]) if "amdgcn" in compiled.asm else _nvidia(compiled.asm["cubin"])
    )
    return Report(job=job, shared=compiled.metadata.shared, narrow_addresses=narrow, **facts)


def _target(arch: str) -> GPUTarget:
    if arch.startswith("sm_"):
        return GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    return GPUTarget("hip", arch, 64)


def _constants(kernel: Any, job: Job) -> dict[str, Any]:
    values = {
        "HAS_QUERY_INDEX": not job.keys_alone, "HAS_BIAS": not job.keys_alone,
        "HAS_KEY_INDEX": True, "HAS_DLSE": True,
        "SPLITS": 4 if job.kernel.startswith("combine") else 1,
        "SHORT": 256 if job.kernel == "short" else 0,
        "PRECISION": "tf32" if job.dtype == "tf32" else "ieee",
        "UNIT": LOG2E.value if job.dtype == "bf16" else 1.0,
        "D": job.head_dim, "D_READ": packed_width(job.head_dim),
        "D_PAD": tuning.head_dim_pad(job.head_dim),
        "HAS_INDEX": True, "BLOCK": job.config.block_m if job.kernel == "pack" else SELECT_BLOCK,
        "BLOCK_M": job.config.block_m, "BLOCK_N": job.config.block_n,
    }  # fmt: skip
    return {p.name: values[p.name] for p in kernel.params if p.is_constexpr}


def _signature(kernel: Any, job: Job) -> tuple[dict[str, Any], dict[tuple[int, ...], Any]]:
    """Types of a kernel's arguments, and which are multiples of 16, as dense tensors have them.

    Without the latter a gather loads number by number, and no copy is asynchronous.
    """
    aligned = [["tt.divisibility", 16]]
    signature: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for place, parameter in enumerate(kernel.params):
        name = parameter.name
        if parameter.is_constexpr:
            signature[name] = "constexpr"
        elif name.endswith("strides"):
            count = 4 if "index" in name else 3
            signature[name] = ("i32",) * count
            of = name.removesuffix("_strides")
            in_chunks = job.head_dim % 16 == 0 or of in PACKED.get(job.kernel, ())
            if POINTERS.get(of, "") is None and in_chunks:
                attributes |= {(place, i): aligned for i in range(count)}
        elif name in POINTERS:
            signature[name] = POINTERS[name] or ("*bf16" if job.dtype == "bf16" else "*fp32")
            attributes[place,] = aligned
        else:
            signature[name] = "fp32" if name in ("scale", "score_scale") else "i32"
    return signature, attributes


def _nvidia(cubin: bytes) -> dict[str, int]:
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        ((_, _, facts),) = read_cubin(Path(file.name), str(cuobjdump))
    return facts


def _amd(code: str) -> dict[str, int]:
    return {
        "registers": _number(r"\.vgpr_count:\s*(\d+)", code),
        "stack": _number(r"\.private_segment_fixed_size:\s*(\d+)", code),
        "spills": _number(r"\.vgpr_spill_count:\s*(\d+)", code),
        "tensor": count(r"\bv_mfma", code),
        "wgmma": 0,
        "async_copies": count(r"\b(global|buffer)_load_lds", code),
        "float_atomics": count(r"_atomic_(pk_)?(add|fadd)_(f|bf)", code),
    }


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"no {pattern!r} in what the compiler says of a kernel")
    return int(found[1])


def faults(report: Report) -> list[str]:
    """What a kernel must not be, whatever it is tuned for."""
    job, why = report.job, []
    limit = tuning.SHARED_MEMORY[job.arch]
    if report.shared > limit:
        why.append(f"{report.shared} bytes of shared memory, the chip has {limit}")
    if report.narrow_addresses:
        why.append(f"{report.narrow_addresses} rows addressed by 32-bit numbers")
    is_tiled, bits = job.kernel not in SMALL, 16 if job.dtype == "bf16" else 32
    if is_tiled:
        expected = tuning.shared_memory(job.kernel, job.config, bits, job.head_dim, job.arch)
        if report.shared > expected:
            why.append(
                f"{report.shared} bytes of shared memory, tuning.py expects {expected} at most"
            )
    is_judged = is_tiled and job.default
    # wgmma has 64 rows: of dK and dV at head_dim 256 they would fill more than all registers.
    rows = job.config.block_n if job.kernel == "dkdv" else job.config.block_m
    has_rows = rows >= 64 and not (job.kernel == "dkdv" and job.head_dim > 128)
    if is_judged and bits == 16 and job.arch == "sm_90" and not report.wgmma and has_rows:
        why.append("no wgmma")
    return why + common_faults(
        report,
        # TF32 borrows the tiles of float32, and spills a little; its own tiles wait for a GPU.
        # Where dk and dv are stored number by number, sm_80 keeps three words outside the loop.
        spills=is_judged and job.dtype != "tf32" and (job.kernel, job.head_dim) != ("dkdv", ODD),
        tensor=is_judged and job.dtype != "fp32",
        copies=is_judged and job.arch.startswith("sm_") and job.config.stages > 1,
    )


HEADER = f"kernel         arch    dtype    D  tile             shared blocks {COLUMNS}"


def blocks(report: Report) -> int | str:
    """How many blocks of it an NVIDIA processor runs at a time; one leaves its tensor cores idle
    whenever it does anything else."""
    job = report.job
    if job.arch not in tuning.PROCESSOR:
        return "-"
    return tuning.blocks_of_processor(job.arch, report.registers, job.config.warps, report.shared)


def line(report: Report) -> str:
    """A row of the table under HEADER."""
    job = report.job
    tile = f"{job.config.block_m}x{job.config.block_n} w{job.config.warps} s{job.config.stages}"
    kernel = f"{job.kernel} (keys)" if job.keys_alone else job.kernel
    return (
        f"{kernel:14} {job.arch:7} {job.dtype:5} {job.head_dim:4}  {tile:15} "
        f"{report.shared:7} {blocks(report):6} {cells(report, faults(report))}"
    )
