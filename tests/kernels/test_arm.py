# SPDX-License-Identifier: BSD-3-Clause
"""The CPU kernels of 64-bit Arm in an emulator: results against the oracle, and the tier taken.

What only a processor can show is not here: speed.
"""

import arm
import pytest
import torch
from cases import BY_NAME, CASES, Case, make
from harness import Target, check_against_oracle, run
from poison import FIELDS, poisoned

pytestmark = pytest.mark.skipif(
    bool(arm.MISSING), reason=f"Arm kernels in an emulator: {', '.join(arm.MISSING)} not found"
)
TIERS = ("generic", "neon_bf16")
# What depends on the dtype in the tier that widens all of them; it is tested on x86-64 too.
SOME = ("everything", "large_scores", "bias_some_inf", "keys_none_queries_0.5", "cross_37_101")
SOME += tuple(name for name in BY_NAME if name.startswith(("d", "few_")))


def test_best_tier_of_a_processor() -> None:
    assert arm.Machine("max").tier == "neon_bf16"
    assert arm.Machine("cortex-a72").tier == "generic"  # it has no BFDOT


@pytest.mark.parametrize("case", CASES, ids=str)
def test_neon_bf16(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    arm.install(monkeypatch, "neon_bf16")
    check_against_oracle(Target("arm", torch.bfloat16), case)


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_generic(dtype: torch.dtype, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arm.install(monkeypatch, "generic")
    check_against_oracle(Target("arm", dtype), BY_NAME[name])


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("name", ["everything", "index_per_head", "d46", "n65"])
def test_unselected_tokens_are_invisible(
    name: str, poison: float, tier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm.install(monkeypatch, tier)
    target = Target("arm", torch.bfloat16)
    x = make(BY_NAME[name], target.dtype)
    clean, dirty = run(target, x), run(target, poisoned(x, FIELDS, poison))
    for result in clean:
        assert torch.equal(clean[result], dirty[result]), result
