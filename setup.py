# SPDX-License-Identifier: BSD-3-Clause
"""Drives CMake. Flags and sources are in CMakeLists.txt, everything else in pyproject.toml.

MASKATTN_BUILD=auto  (default) the CPU library if it can be built, else pure Python that says why;
                     the CUDA library too where torch has CUDA and there is an nvcc
MASKATTN_BUILD=cpu   the CPU library, or an error
MASKATTN_BUILD=cuda  both libraries, or an error; also against a torch without CUDA
MASKATTN_BUILD=none  pure Python

MASKATTN_CUDA_ARCHS="80-real;90" (say) are the GPUs to compile for, as CMake writes them; by default
the machine's own.
"""

import json
import os
import runpy
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


def missing_cuda() -> str:
    """Why no CUDA library is built here; empty if it is."""
    if MODE == "cpu":
        return "built with MASKATTN_BUILD=cpu"
    if MODE == "auto" and not torch_cuda():
        return "torch had no CUDA at build time: MASKATTN_BUILD=cuda builds it all the same"
    if not shutil.which(os.environ.get("CUDACXX", "nvcc")):
        return "no nvcc: install the CUDA toolkit of torch's version, or set CUDACXX"
    return ""


def torch_cuda() -> str | None:
    """The CUDA version of the torch that is here, without importing it."""
    torch = next(iter(distributions(name="torch")))
    return runpy.run_path(str(torch.locate_file("torch/version.py"))).get("cuda")


def compile_libraries(build: Path, with_cuda: bool) -> str:
    """Configure and build in `build`; the first error in one line, empty if there is none."""
    tools = [f"-DCMAKE_MAKE_PROGRAM={NINJA}", f"-DPython_EXECUTABLE={sys.executable}"]
    tools += [f"-DMASKATTN_CUDA={'ON' if with_cuda else 'OFF'}"]
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
        build = ROOT / "build" / sys.implementation.cache_tag
        lacks = {"_C": LACKS, "_cuda": LACKS or missing_cuda()}
        if MODE == "cuda" and lacks["_cuda"]:
            sys.exit(f"MASKATTN_BUILD=cuda: {lacks['_cuda']}")
        if not lacks["_cuda"]:
            lacks["_cuda"] = compile_libraries(build, with_cuda=True)
        if lacks["_cuda"] and not LACKS and MODE != "cuda":  # nvcc's error costs no CPU library
            lacks["_C"] = compile_libraries(build, with_cuda=False)
        error = {"cpu": lacks["_C"], "cuda": lacks["_cuda"]}.get(MODE)
        if error:
            sys.exit(f"MASKATTN_BUILD={MODE}: {error}")
        for name, reason in lacks.items():
            library = f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
            (folder / library).unlink(missing_ok=True)  # never write into a library that is loaded
            if not reason:
                shutil.copy(build / library, folder)
        if lacks["_C"]:
            print(f"\n*** {PACKAGE} has no compiled library: {lacks['_C']}\n", file=sys.stderr)
        outcome = {"built": not lacks["_C"], "reason": lacks["_C"], "cuda_reason": lacks["_cuda"]}
        (folder / "_build_report.json").write_text(json.dumps(outcome) + "\n")


if MODE not in ("auto", "cpu", "cuda", "none"):
    sys.exit(f"MASKATTN_BUILD={MODE}: expected auto, cpu, cuda or none")
if int(version("setuptools").split(".")[0]) < 77:
    sys.exit(f"setuptools {version('setuptools')} is too old: pip install 'setuptools>=77'")
LACKS = "built with MASKATTN_BUILD=none" if MODE == "none" else missing()
if LACKS and MODE in ("cpu", "cuda"):
    sys.exit(f"MASKATTN_BUILD={MODE}: {LACKS}")
Distribution.has_ext_modules = lambda self: not LACKS  # a wheel of this platform, or of any
setup(cmdclass={"build_py": BuildPy})
