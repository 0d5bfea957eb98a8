# SPDX-License-Identifier: BSD-3-Clause
"""Drives CMake. Flags and sources are in CMakeLists.txt, everything else in pyproject.toml.

MASKATTN_BUILD=auto  (default) the CPU library if it can be built, else pure Python that says why
MASKATTN_BUILD=cpu   the CPU library, or an error
MASKATTN_BUILD=none  pure Python
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import distributions, version
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

PACKAGE = "maskattn_kernels"
ROOT = Path(__file__).parent.resolve()
MODE = os.environ.get("MASKATTN_BUILD", "auto")
# The environment's own tools come first: pip may have been called by its path, nothing activated.
PATH = sysconfig.get_path("scripts") + os.pathsep + os.environ.get("PATH", "")
CMAKE, NINJA = shutil.which("cmake", path=PATH), shutil.which("ninja", path=PATH)
CXX = os.environ.get("CXX", "").split()[:1] or ["c++", "g++", "clang++"]


def missing() -> str:
    """What the C++ build lacks here and how to get it, in one line; empty if nothing."""
    torch = next(iter(distributions(name="torch")), None)
    if torch is None:
        return "no torch at build time: install torch>=2.11, then pip install --no-build-isolation"
    if tuple(map(int, torch.version.split(".")[:2])) < (2, 11):
        return f"torch {torch.version} is too old: 2.11 or later is needed"
    if not any(map(shutil.which, CXX)):
        return f"no C++ compiler ({', '.join(CXX)}): apt install g++, or conda's cxx-compiler"
    if not (CMAKE and NINJA):
        return "no cmake or no ninja: pip install cmake ninja"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "no Python headers (Python.h): apt install python3-dev"
    return ""


def compile_library(build: Path) -> str:
    """Configure and build in `build`; the first error in one line, empty if there is none."""
    tools = [f"-DCMAKE_MAKE_PROGRAM={NINJA}", f"-DPython_EXECUTABLE={sys.executable}"]
    for args in (["-S", ROOT, "-B", build, "-G", "Ninja", *tools], ["--build", build]):
        run = subprocess.run([CMAKE, *args], capture_output=True, text=True)
        lines = (run.stdout + run.stderr).splitlines()
        if run.returncode:
            print(*lines[-30:], sep="\n", file=sys.stderr)
            error = next((line for line in lines if "error" in line.lower()), lines[-1])
            return f"C++ build failed: {error.strip()}"
    return ""


class BuildPy(build_py):
    """The Python files, then the library, then the outcome where backends() reads it."""

    def run(self) -> None:
        if Path(self.build_lib).resolve().is_relative_to(ROOT / "build"):
            shutil.rmtree(self.build_lib, ignore_errors=True)  # setuptools keeps deleted modules
        super().run()
        folder = (ROOT if self.editable_mode else Path(self.build_lib)) / PACKAGE
        library = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
        build = ROOT / "build" / sys.implementation.cache_tag
        reason = LACKS or compile_library(build)
        if reason and MODE == "cpu":
            sys.exit(f"MASKATTN_BUILD=cpu: {reason}")
        (folder / library).unlink(missing_ok=True)  # never write into a library that is loaded
        if reason:
            print(f"\n*** {PACKAGE} has no compiled library: {reason}\n", file=sys.stderr)
        else:
            shutil.copy(build / library, folder)
        outcome = json.dumps({"built": not reason, "reason": reason})
        (folder / "_build_report.json").write_text(outcome + "\n")


if MODE not in ("auto", "cpu", "none"):
    sys.exit(f"MASKATTN_BUILD={MODE}: expected auto, cpu or none (there is no CUDA backend yet)")
if int(version("setuptools").split(".")[0]) < 77:
    sys.exit(f"setuptools {version('setuptools')} is too old: pip install 'setuptools>=77'")
LACKS = "built with MASKATTN_BUILD=none" if MODE == "none" else missing()
if LACKS and MODE == "cpu":
    sys.exit(f"MASKATTN_BUILD=cpu: {LACKS}")
Distribution.has_ext_modules = lambda self: not LACKS  # a wheel of this platform, or of any
setup(cmdclass={"build_py": BuildPy})
