# SPDX-License-Identifier: BSD-3-Clause
"""The Triton kernels compiled for chips that are not here: what is in the machine code.

Slow (seconds a kernel), so `make test` shares them among processes. All tiles of all
chips are in `maskattn tiles --all`.
"""

from dataclasses import replace
from typing import Any

import pytest

from maskattn_kernels.backends import tuning
from maskattn_kernels.backends.triton_ops import INTERPRETED

tiles = pytest.importorskip("maskattn_kernels.backends.triton_compile")
pytestmark = pytest.mark.skipif(INTERPRETED, reason="Triton's interpreter compiles nothing")

# In float32 one chip stands for all: nothing but multiply-adds, or with TF32 the same products.
DEFAULTS = [j for j in tiles.jobs() if j.default and (j.dtype == "bf16" or j.arch == "sm_90")]


def name(job: Any) -> str:
    tile = f"{job.config.block_m}x{job.config.block_n}"
    kind = "-keys" if job.keys_alone else ""
    return f"{job.kernel}{kind}-{job.arch}-{job.dtype}-{job.head_dim}-{tile}"


@pytest.mark.parametrize("job", DEFAULTS, ids=name)
def test_machine_code(job: Any) -> None:
    assert tiles.faults(tiles.compile_job(job)) == []


GOOD = tiles.Report(
    job=tiles.Job("fwd", "sm_90", "bf16", 64, tuning.Config(64, 64, 4, 3), True),
    registers=200, stack=0, spills=0, shared=40_000, tensor=8, wgmma=8, async_copies=8,
    float_atomics=0, narrow_addresses=0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"stack": 8}, "8 bytes of stack"),
        ({"spills": 2}, "2 spills"),
        ({"shared": 300_000}, "the chip has 232448"),
        ({"shared": 100_000}, "tuning.py expects 57344 at most"),
        ({"tensor": 0}, "tensor cores"),
        ({"wgmma": 0}, "no wgmma"),
        ({"async_copies": 0}, "asynchronous copy"),
        ({"float_atomics": 1}, "not repeatable"),
        ({"narrow_addresses": 3}, "32-bit"),
    ],
)
def test_faults_are_seen(change: dict, fault: str) -> None:
    assert tiles.faults(GOOD) == []
    assert fault in "; ".join(tiles.faults(replace(GOOD, **change)))


def test_tf32_must_use_the_tensor_cores() -> None:
    report = replace(GOOD, job=replace(GOOD.job, dtype="tf32"), spills=4)
    assert tiles.faults(report) == []
    assert "tensor cores" in tiles.faults(replace(report, tensor=0))[0]
