# SPDX-License-Identifier: BSD-3-Clause
"""examples/cpp: a C++ program that calls the CPU ops through torch's dispatcher, without Python."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from building import COMPILER
from repository import ROOT

import maskattn_kernels
from maskattn_kernels import backends

EXAMPLE = ROOT / "examples" / "cpp"
LIBRARY = Path(maskattn_kernels.__path__[0]) / "lib" / "libmaskattn_cpu.so"
pytestmark = [
    pytest.mark.skipif(not EXAMPLE.exists(), reason="needs the source tree"),
    pytest.mark.skipif(not (COMPILER and shutil.which("cmake")), reason="needs c++ and cmake"),
    pytest.mark.skipif(not backends()[0].available, reason="; ".join(backends()[0].reasons)),
]


def test_a_program_without_python_gets_the_right_results(tmp_path: Path) -> None:
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    configure, build = ["-S", str(EXAMPLE), "-B", str(tmp_path), prefix], ["--build", str(tmp_path)]
    for arguments in (configure, build):
        made = subprocess.run(["cmake", *arguments], capture_output=True, text=True)
        assert made.returncode == 0, made.stdout + made.stderr
    serve = str(tmp_path / "serve")
    done = subprocess.run([serve, str(LIBRARY)], env={}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("largest difference from dense attention: ")
    absent = subprocess.run([serve, "/nowhere/libmaskattn_cpu.so"], capture_output=True, text=True)
    assert absent.returncode == 1 and "/nowhere/libmaskattn_cpu.so: cannot open" in absent.stderr
