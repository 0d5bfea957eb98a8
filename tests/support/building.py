# SPDX-License-Identifier: BSD-3-Clause
"""Builds of the package, as pip makes them, and what is in a wheel."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from repository import ROOT

PACKAGE = "maskattn_kernels"
LIBRARY = f"{PACKAGE}/lib/libmaskattn_cpu.so"
REPORT = f"{PACKAGE}/_build_report.json"
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or ""


def backend_hook(
    hook: str, tree: Path, out: Path, env: dict[str, str]
) -> subprocess.CompletedProcess:
    """Call a hook of the build backend as pip does with --no-build-isolation."""
    out.mkdir(exist_ok=True)
    code = f"import sys; from setuptools import build_meta as b; b.{hook}(sys.argv[1])"
    return subprocess.run(
        [sys.executable, "-c", code, str(out)],
        cwd=tree,
        env=os.environ | env,
        capture_output=True,
        text=True,
    )


def build_wheel(tree: Path, out: Path, **env: str) -> tuple[Path, str]:
    """A wheel, and what its build said."""
    run = backend_hook("build_wheel", tree, out, env)
    assert run.returncode == 0, run.stdout + run.stderr
    (wheel,) = out.glob("*.whl")
    return wheel, run.stderr


def read(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(name).decode()


def names(wheel: Path) -> set[str]:
    """All files of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def package_files() -> set[str]:
    """What a wheel must hold besides its metadata, the library and the build report."""
    kept = {".py", ".typed", ".html", ".css", ".yaml"}
    return {
        str(p.relative_to(ROOT))
        for p in (ROOT / PACKAGE).rglob("*")
        if p.is_file() and (p.suffix in kept or "shipped" in p.parts)
    }
