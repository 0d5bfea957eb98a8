# SPDX-License-Identifier: BSD-3-Clause
"""pytest-benchmark over the U-Net with each core of its attention modules."""

import pytest

from maskattn_kernels.benchmark.network import CORES, network_call, network_errors


@pytest.fixture(scope="module")
def errors():
    """The sparse network gives the right answer, or nothing is timed."""
    return network_errors()


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("trains", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.benchmark(min_rounds=3, max_time=2.0)
def test_unet(benchmark, errors, core, trains):
    benchmark.group = "U-Net forward+backward" if trains else "U-Net forward"
    benchmark.extra_info.update(error=errors.get(core))
    benchmark(network_call(core, trains))
