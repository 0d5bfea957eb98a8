# SPDX-License-Identifier: BSD-3-Clause
"""Memory that is missing is told in the words by which torch's tools and Lightning know it."""

import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from pytorch_lightning.utilities.memory import is_oom_error

from maskattn_kernels import backends, masked_attention
from maskattn_kernels.common.failures import known_failure

MANY = (16, 64, 65536, 64)  # 16 GiB in float32, though all rows are one

pytestmark = pytest.mark.skipif(
    not next(backend for backend in backends() if backend.name == "cpu").available,
    reason="the compiled library is not built",
)


@contextmanager
def little_memory() -> Iterator[None]:
    """Let this process have 1 GiB more than it has."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def attend() -> None:
    row = torch.zeros(1, 1, 1, MANY[-1]).expand(MANY)
    masked_attention(row, row[:, :, :8], row[:, :, :8], backend="cpu")


def list_mask() -> None:
    """The workspace of a call, which torch does not allocate."""
    query, rows = torch.zeros(8192, 1, 1, 8), torch.zeros(1, 1, 1, 8).expand(8192, 1, 1 << 16, 8)
    mask = torch.ones(8192, 1, 1, dtype=torch.bool).expand(8192, 1, 1 << 16)  # lists of 2 GiB
    with torch.inference_mode():
        masked_attention(query, rows, rows, key_mask=mask, backend="cpu")


@pytest.mark.parametrize("call", [attend, list_mask], ids=lambda call: call.__name__)
def test_out_of_memory_is_recognised(call):
    with little_memory(), pytest.raises(RuntimeError) as caught:
        call()
    text = str(caught.value)
    assert re.search(
        r"DefaultCPUAllocator: can't allocate memory for (a tensor|the workspace) of mask", text
    )
    assert is_oom_error(caught.value)
    assert known_failure(caught.value).startswith("out of memory (")
    torch.testing.assert_close(
        masked_attention(*[torch.ones(1, 1, 4, 8)] * 3, backend="cpu"), torch.ones(1, 1, 4, 8)
    )
