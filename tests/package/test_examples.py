# SPDX-License-Identifier: BSD-3-Clause
"""The scripts under examples/ run as a newcomer runs them, and stay short."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT

# What each prints, among other things.
EXAMPLES = {"swap_into_a_model.py": "swapped 2, skipped 0"}


def test_every_example_is_tested() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs(name: str, tmp_path: Path) -> None:
    script = ROOT / "examples" / name
    assert len(script.read_text().splitlines()) < 60
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert EXAMPLES[name] in done.stdout
