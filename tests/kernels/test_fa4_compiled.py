# SPDX-License-Identifier: BSD-3-Clause
"""What FlashAttention-4 makes of the calls of the backend fa4, for chips that are not here.

Every head dim and dtype, and every kind of call. Seconds a kernel.
"""

import sys

import pytest
from repository import ROOT

pytestmark = pytest.mark.skipif(
    not (ROOT / "tools" / "fa4_kernels.py").exists(), reason="needs the source tree"
)
sys.path.append(str(ROOT / "tools"))
tool = pytest.importorskip("fa4_kernels")


@pytest.mark.parametrize("arch", tool.ARCHS)
def test_machine_code(arch: str) -> None:
    if tool.missing():
        pytest.skip(tool.missing())
    wanted = tool.jobs(arch)
    kernels = list(tool.compile_all(arch, wanted))
    assert [kernel.job for kernel in kernels] == wanted
    assert [tool.line(kernel) for kernel in kernels if tool.faults(kernel)] == []
    if arch == "sm_90":  # the head dims of the networks here
        spilling = {kernel.job.head_dim for kernel in kernels if kernel.spills}
        assert not spilling & {64, 128, 256}
