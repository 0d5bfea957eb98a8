# SPDX-License-Identifier: BSD-3-Clause
"""What `real/speed.py` and `frm/speed.py` share: a frame, a check before it is timed, a report."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskattn_kernels.benchmark.machine import machine_facts


def frame(size: Sequence[int]) -> Tensor:
    """A random image (1,3,H,W) in uint8, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8, generator=generator)


def check_agrees(name: str, logits: Tensor, expected: Tensor, accepted: float) -> None:
    """Raises unless two networks that compute the same give the same logits.

    Args:
        accepted: the mean difference over pixels, of the standard deviation of ``expected``.

    Raises:
        ValueError: they are further apart.
    """
    off = ((logits - expected).abs().mean() / expected.std()).item()
    if not off <= accepted:
        raise ValueError(f"{name}: logits are {off:.1e} of their deviation off, {accepted} allowed")


def write(path: Path, measured: dict[str, Any]) -> None:
    """The measurements as JSON, with the machine that they are of."""
    facts = machine_facts()
    report = {"machine": {name: facts[name] for name in ("cpu", "threads", "torch")}, **measured}
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
