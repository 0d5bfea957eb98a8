# SPDX-License-Identifier: BSD-3-Clause
"""Drives CMake. Flags and sources are in CMakeLists.txt, everything else in pyproject.toml.

MASKATTN_BUILD=auto  (default) the CPU library if it can be built, else pure Python that says why;
                     the CUDA library too where torch has CUDA and there is an nvcc
MASKATTN_BUILD=cpu   the CPU library, or an error
MASKATTN_BUILD=cuda  both libraries, or an error; also against a torch without CUDA
MASKATTN_BUILD=none  pure Python

MASKATTN_CUDA_ARCHS="80-real;90" (say) are the GPUs to compile for, as CMake writes them; by default
the machine's own.

The libraries do not depend on Python, so one wheel serves every Python. An editable install also
gets `maskattn_kernels._dev`, for developers, if there are Python headers.
"""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import distributions, version
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
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
    return ""


def missing_cuda() -> str:
    """Why no CUDA library is built here; empty if it is."""
    if MODE == "cpu":
        return "built with MASKATTN_BUILD=cpu"
    if MODE == "auto" and not torch_cuda():
        return "torch had no CUDA at build time: MASKATTN_BUILD=cuda builds it all the same"
    nvcc = shutil.which(os.environ.get("CUDACXX", "nvcc"))
    if not nvcc:
        return "no nvcc: install the CUDA toolkit of torch's version, or set CUDACXX"
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    version, wanted = re.search(r"release (\d+)\.\d+", said), torch_cuda()
    if version and wanted and version[1] != wanted.split(".")[0]:
        return (
            f"nvcc is of CUDA {version[1]}, torch of CUDA {wanted}: a driver that runs one may not "
            "run the other; set CUDACXX to the nvcc of torch's CUDA"
        )
    return ""


def missing_dev(editable: bool) -> str:
    """Why no developer's module is built here; empty if it is."""
    if not editable:
        return "only editable installs have it"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "no Python headers (Python.h): apt install python3-dev"
    return ""


def torch_cuda() -> str | None:
    """The CUDA version of the torch that is here, without importing it."""
    torch = next(iter(distributions(name="torch")))
    return runpy.run_path(str(torch.locate_file("torch/version.py"))).get("cuda")


def compile_libraries(build: Path, **options: bool) -> str:
    """Configure and build in `build`; the first error in one line, empty if there is none."""
    error = configure(build, **options) or cmake("--build", build)
    return f"C++ build failed: {error}" if error else ""


def configure(build: Path, **options: bool) -> str:
    """From today's environment, whatever an earlier call found out; the error as of cmake()."""
    forget_configuration(build)
    tools = [f"-DCMAKE_MAKE_PROGRAM={NINJA}", f"-DPython_EXECUTABLE={sys.executable}"]
    tools += [f"-DMASKATTN_{name}={'ON' if on else 'OFF'}" for name, on in options.items()]
    return cmake("-S", ROOT, "-B", build, "-G", "Ninja", *tools)


def cmake(*arguments: str | Path) -> str:
    """Runs CMake; its first error in one line, empty if there is none."""
    run = subprocess.run([CMAKE, *arguments], capture_output=True, text=True)
    if not run.returncode:
        return ""
    print(run.stdout + run.stderr, file=sys.stderr)
    return first_error(run.stdout, run.stderr)


def forget_configuration(build: Path) -> None:
    """Removes what CMake noted in an earlier build: the compiler, its flags, the place of the
    sources. Objects stay; Ninja knows which of them are still right."""
    (build / "CMakeCache.txt").unlink(missing_ok=True)
    for compiler in build.glob("CMakeFiles/[0-9]*"):
        shutil.rmtree(compiler)


def first_error(stdout: str, stderr: str) -> str:
    """CMake's first error with all its lines, or a compiler's first, folded to one line."""
    paragraph = re.search(r"^CMake Error.*\n(?:[ \t].*\n|\n)*", stderr, re.MULTILINE)
    if not paragraph:
        lines = (stdout + stderr).splitlines()
        return next((line for line in lines if "error" in line.lower()), lines[-1]).strip()
    words, *output = re.split(r"It\s+fails\s+with\s+the\s+following\s+output:", paragraph[0])
    # Of what CMake's own test of the compiler printed, the line that says what is wrong.
    causes = [line for line in "".join(output).splitlines() if re.search("error|cannot", line)]
    return " ".join(" ".join([words, *causes[:1]]).split())


class BuildPy(build_py):
    """The Python files, then the library, then the outcome where backends() reads it."""

    def run(self) -> None:
        if Path(self.build_lib).resolve().is_relative_to(ROOT / "build"):
            shutil.rmtree(self.build_lib, ignore_errors=True)  # setuptools keeps deleted modules
        super().run()
        folder = (ROOT if self.editable_mode else Path(self.build_lib)) / PACKAGE
        build = ROOT / "build" / sys.implementation.cache_tag
        cpu, cuda = LACKS, LACKS or missing_cuda()
        dev = LACKS or missing_dev(self.editable_mode)
        if MODE == "cuda" and cuda:
            sys.exit(f"MASKATTN_BUILD=cuda: {cuda}")
        if not cuda:
            cuda = compile_libraries(build, CUDA=True, DEV=not dev)
        if cuda and not LACKS and MODE != "cuda":  # nvcc's error costs no CPU library
            cpu = compile_libraries(build, CUDA=False, DEV=not dev)
        error = {"cpu": cpu, "cuda": cuda}.get(MODE)
        if error:
            sys.exit(f"MASKATTN_BUILD={MODE}: {error}")
        # In a folder of their own: beside modules, Python would take them for extension modules.
        libraries = {"lib/libmaskattn_cpu.so": cpu, "lib/libmaskattn_cuda.so": cuda}
        libraries[f"_dev{sysconfig.get_config_var('EXT_SUFFIX')}"] = cpu or dev
        for library, reason in libraries.items():
            (folder / library).unlink(missing_ok=True)  # never write into a library that is loaded
            if not reason:
                (folder / library).parent.mkdir(exist_ok=True)
                shutil.copy(build / Path(library).name, folder / library)
        if cpu:
            print(f"\n*** {PACKAGE} has no compiled library: {cpu}\n", file=sys.stderr)
        outcome = {"built": not cpu, "reason": cpu, "cuda_reason": cuda, "dev_reason": cpu or dev}
        (folder / "_build_report.json").write_text(json.dumps(outcome) + "\n")


class BdistWheel(bdist_wheel):
    """For a platform, if there are libraries, but for every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


if MODE not in ("auto", "cpu", "cuda", "none"):
    sys.exit(f"MASKATTN_BUILD={MODE}: expected auto, cpu, cuda or none")
if int(version("setuptools").split(".")[0]) < 77:
    sys.exit(f"setuptools {version('setuptools')} is too old: pip install 'setuptools>=77'")
LACKS = "built with MASKATTN_BUILD=none" if MODE == "none" else missing()
if LACKS and MODE in ("cpu", "cuda"):
    sys.exit(f"MASKATTN_BUILD={MODE}: {LACKS}")
Distribution.has_ext_modules = lambda self: not LACKS  # a wheel of this platform, or of any
setup(cmdclass={"bdist_wheel": BdistWheel, "build_py": BuildPy})
