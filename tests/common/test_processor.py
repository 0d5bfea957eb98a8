# SPDX-License-Identifier: BSD-3-Clause
"""What is known of a processor: its name, and whether its bfloat16 is faster than its float32."""

from pathlib import Path

import pytest
import torch

from maskattn_kernels.common.processor import has_slow_bfloat16_pairs, processor_name
from maskattn_kernels.models import fast_bfloat16

INTEL, AMD = "GenuineIntel", "AuthenticAMD"
CPU = torch.device("cpu")


def on(monkeypatch: pytest.MonkeyPatch, vendor: str, flags: str) -> None:
    """Pretend to run on such a processor."""
    text = f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: One\nflags\t\t: fpu {flags} sse\n"
    monkeypatch.setattr(Path, "read_text", lambda *args, **kwargs: text)
    names = {"_is_amx_tile_supported": "amx_tile", "_is_avx512_bf16_supported": "avx512_bf16"}
    for function, flag in names.items():
        has = flag in flags.split()
        monkeypatch.setattr(torch.cpu, function, lambda has=has: has)


@pytest.mark.parametrize(
    ("vendor", "flags", "slow", "fast"),
    [
        (INTEL, "avx2", False, False),
        (INTEL, "avx512f avx512_bf16", False, True),  # Cooper Lake
        (INTEL, "avx512f avx512_bf16 avx512_fp16", True, False),  # Emerald Rapids, AMX hidden
        (INTEL, "avx512f avx512_bf16 avx512_fp16 amx_tile", True, True),
        (AMD, "avx512f", False, False),
        (AMD, "avx512f avx512_bf16", False, True),  # Zen 4 and 5
        (AMD, "avx512f avx512_bf16 avx512_fp16", False, True),
    ],
)
def test_fast_bfloat16(
    vendor: str, flags: str, slow: bool, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, vendor, flags)
    assert (has_slow_bfloat16_pairs(), fast_bfloat16(CPU)) == (slow, fast)


def test_name_where_the_system_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, INTEL, "avx2")
    assert processor_name() == "One"

    def fails(*args: object, **kwargs: object) -> str:
        raise OSError

    monkeypatch.setattr(Path, "read_text", fails)
    assert processor_name() and not has_slow_bfloat16_pairs()
