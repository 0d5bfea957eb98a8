# SPDX-License-Identifier: BSD-3-Clause
"""The program that measures what a core can do."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from repository import ROOT

COMPILER = shutil.which("c++")


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
def test_rates_are_those_of_a_core(tmp_path: Path) -> None:
    """Sums that the compiler merges would give a rate that no core has."""
    program = tmp_path / "peak"
    source = ROOT / "bench" / "peak.cpp"
    command = [COMPILER, "-O3", "-march=native", "-Wall", "-Wextra", "-Werror", source]
    subprocess.run([*command, "-o", program], check=True)
    printed = subprocess.run([program, "0.05"], check=True, capture_output=True, text=True).stdout
    rates = {m[1]: float(m[2]) for m in re.finditer(r"^(.*): (\d+) G", printed, re.MULTILINE)}
    assert {"float32 multiply-add", "read of 2 MiB", "read of 256 MiB"} <= rates.keys()
    assert 1 < rates["float32 multiply-add"] < 500  # two vectors of 16 each cycle at 7 GHz: 448
