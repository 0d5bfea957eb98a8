# SPDX-License-Identifier: BSD-3-Clause
"""Tiny training runs for tests."""

from pathlib import Path

TINY = """
data: {name: digit-scenes, size: 32, batch_size: 4, options: {count: 10}}
network: {width: 4, depth: 2, selector: gumbel}
val_every: 3
save_every: 0
log_every: 1
"""


def tiny_arguments(out: Path, *more: str, steps: int = 4) -> list[str]:
    """Arguments of ``maskattn train`` for a run of a second."""
    config = out.parent / "tiny.yaml"
    config.write_text(TINY)
    return ["--config", str(config), "--out", str(out), "--steps", str(steps), *more]
