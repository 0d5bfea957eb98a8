# SPDX-License-Identifier: BSD-3-Clause
"""Damaged files are read to the end or refused in one line: no crash, no endless loop."""

import os
import subprocess
import sys
from pathlib import Path

import fuzz_readers
import pytest
from repository import ROOT

CASES, SEED = 40, 0  # of each kind; more by hand: python tests/support/fuzz_readers.py 2000 0


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory limit needs /proc")
def test_damaged_files() -> None:
    """In a process of its own, which has a memory limit and may crash."""
    script = Path(fuzz_readers.__file__)
    paths = os.pathsep.join((str(ROOT), str(script.parent), os.environ.get("PYTHONPATH", "")))
    run = subprocess.run(
        [sys.executable, str(script), str(CASES), str(SEED)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    last = run.stderr.strip().splitlines()[-1:]
    assert run.returncode == 0, f"{run.stdout}\nlast case: {last}"
    assert last == [f"{fuzz_readers.KINDS[-1]} {SEED + CASES - 1}"]
