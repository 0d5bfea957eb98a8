# SPDX-License-Identifier: BSD-3-Clause
"""Every build configures itself from today's environment, and says why it could not."""

import json
import os
import runpy
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import setuptools
from building import COMPILER
from repository import ROOT

pytestmark = pytest.mark.skipif(
    not ((ROOT / "setup.py").exists() and COMPILER and shutil.which("ninja")),
    reason="needs the source tree, a C++ compiler, cmake and ninja",
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What a configuration reads of the source tree."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    for name in ("setup.py", "CMakeLists.txt"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], str]:
    """Configures a checkout in its build folder, as setup.py does, and returns the error."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    for name in ("CXX", "CXXFLAGS", "MASKATTN_BUILD"):
        monkeypatch.delenv(name, raising=False)

    def run(folder: Path) -> str:
        return runpy.run_path(str(folder / "setup.py"))["configure"](folder / "build")

    return run


def compilers(folder: Path) -> set[str]:
    """The compilers of all objects that the configured build would make."""
    commands = json.loads((folder / "build" / "compile_commands.json").read_text())
    return {entry["command"].split()[0] for entry in commands}


def test_a_moved_checkout_builds(checkout: Path, configure: Callable[[Path], str]) -> None:
    assert configure(checkout) == ""
    moved = checkout.rename(checkout.with_name("moved"))
    assert configure(moved) == ""


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("CXXFLAGS", "-mnosuchflag", "-mnosuchflag"),
        ("CXX", "g++ -mnosuchflag", "-mnosuchflag"),
        ("CXX", "g++ -m32", ""),
        ("CXX", "/nowhere/g++", "/nowhere/g++"),
    ],
)
def test_a_mended_environment_builds(
    variable: str,
    value: str,
    words: str,
    checkout: Path,
    configure: Callable[[Path], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error is CMake's own, in one line with the cause, and the next build forgets it."""
    monkeypatch.setenv(variable, value)
    error = configure(checkout)
    if not error:
        pytest.skip(f"this compiler takes {value}")
    assert error.startswith("CMake Error at ") and words in error and "\n" not in error
    assert "compiler" in error and len(error) < 500, error
    monkeypatch.delenv(variable)
    assert configure(checkout) == ""


def test_another_compiler_is_used_at_once(
    checkout: Path, configure: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert configure(checkout) == ""
    first = compilers(checkout)
    other = checkout.parent / "other-c++"
    other.write_text(f'#!/bin/sh\nexec {COMPILER} "$@"\n')
    other.chmod(0o755)
    monkeypatch.setenv("CXX", str(other))
    assert configure(checkout) == ""
    assert compilers(checkout) == {str(other)} and str(other) not in first


def test_objects_stay(checkout: Path, configure: Callable[[Path], str]) -> None:
    assert configure(checkout) == ""
    kept = checkout / "build" / "CMakeFiles" / "baseline.dir" / "kept.o"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(b"")
    assert configure(checkout) == "" and kept.exists()


def test_without_python_headers_only_the_developers_module_is_left_out(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sysconfig.get_path
    no_headers = {"include": str(tmp_path)}
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: no_headers.get(name) or real(name))
    setup = runpy.run_path(str(checkout / "setup.py"))
    assert setup["missing"]() == ""
    assert setup["missing_dev"](True) == "no Python headers (Python.h): apt install python3-dev"
    assert setup["missing_dev"](False) == "only editable installs have it"


def test_the_libraries_need_no_python(checkout: Path, configure: Callable[[Path], str]) -> None:
    """Python's headers are neither asked for nor on the path of any source."""
    assert configure(checkout) == ""
    commands = (checkout / "build" / "compile_commands.json").read_text()
    assert "include/python3" not in commands and "csrc/cpu/forward.cpp" in commands
    cache = (checkout / "build" / "CMakeCache.txt").read_text()
    assert "Python_INCLUDE_DIR" not in cache, "CMake looked for Python's headers"
    assert os.fspath(checkout) in commands


@pytest.mark.parametrize(
    ("nvcc", "torch_cuda", "words"),
    [
        ("12.9", "13.0", "nvcc is of CUDA 12, torch of CUDA 13.0"),
        ("13.1", "13.0", ""),
        ("13.1", None, ""),
    ],
)
def test_an_nvcc_of_another_cuda_than_torchs_builds_nothing(
    nvcc: str, torch_cuda: str | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.setenv("MASKATTN_BUILD", "cuda")
    compiler = tmp_path / "nvcc"
    compiler.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {nvcc}, V{nvcc}.48'\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CUDACXX", str(compiler))
    setup = runpy.run_path(str(ROOT / "setup.py"))
    monkeypatch.setitem(setup["missing_cuda"].__globals__, "torch_cuda", lambda: torch_cuda)
    why = setup["missing_cuda"]()
    assert why.startswith(words) and bool(why) == bool(words)
