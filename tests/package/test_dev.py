# SPDX-License-Identifier: BSD-3-Clause
"""maskattn_kernels._dev, the developer's module: it says what the library says."""

import pytest

from maskattn_kernels import backends

dev = pytest.importorskip("maskattn_kernels._dev", reason="only editable installs have _dev")


def test_same_facts_as_backends() -> None:
    facts = backends()[0].build
    assert dev.build_info() | {"tier": dev.cpu_tier()} == facts


def test_impossible_tier_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKATTN_CPU_TIER", "avx1024")
    with pytest.raises(RuntimeError, match=r"^MASKATTN_CPU_TIER: .* got 'avx1024'$"):
        dev.cpu_tier()
