# SPDX-License-Identifier: BSD-3-Clause
"""What an install leaves behind: a wheel's files, and words where there is no compiled library."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import setuptools
from building import LIBRARY, PACKAGE, REPORT, backend_hook, build_wheel, names, package_files, read
from repository import ROOT

NO_COMPILER = {"CXX": "/nowhere/g++"}

pytestmark = pytest.mark.skipif(
    not (ROOT / "setup.py").exists(), reason="needs the source tree, not only the installed package"
)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    run = backend_hook("build_sdist", ROOT, out := tmp_path_factory.mktemp("sdist"), {})
    assert run.returncode == 0, run.stderr
    (archive,) = out.glob("*.tar.gz")
    return archive


@pytest.fixture
def tree(sdist, tmp_path) -> Path:
    """A fresh source tree, as someone who downloaded the sdist has it."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    return source


@pytest.fixture(scope="module")
def pure_wheel(sdist, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pure")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return build_wheel(source, folder / "dist", MASKATTN_BUILD="none")[0]


def test_sdist_holds_all_a_build_needs(sdist):
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    for folder in (PACKAGE, "csrc", "tests"):
        files = [
            p
            for p in (ROOT / folder).rglob("*")
            if p.suffix in {".py", ".h", ".cpp", ".cu", ".cuh", ".typed", ".html", ".yaml"}
        ]
        assert files
        assert {str(p.relative_to(ROOT)) for p in files} <= held
    assert {
        "CMakeLists.txt",
        "setup.py",
        "pyproject.toml",
        "LICENSE",
        "README.md",
        "Makefile",
    } <= held
    assert not [name for name in held if name.endswith((".so", ".pyc", "_build_report.json"))]


def test_sdist_holds_no_measurements(sdist):
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {"bench/study/plan.py", "bench/study/base.yaml", "bench/report.py"} <= held
    measured = [*(ROOT / "bench").rglob("*.json"), *(ROOT / "bench").rglob("*.jsonl")]
    assert not held & {str(path.relative_to(ROOT)) for path in measured}
    assert not [name for name in held if name.startswith("bench/results")]
    kinds = {Path(name).suffix for name in held if name.startswith("bench/")}
    assert kinds <= {"", ".py", ".yaml", ".cpp"}  # "" are folders


def test_pure_wheel_from_the_sdist(pure_wheel):
    assert pure_wheel.name.endswith("-py3-none-any.whl")
    metadata = {name for name in names(pure_wheel) if ".dist-info/" in name}
    assert names(pure_wheel) - metadata == package_files() | {REPORT}
    assert [name for name in metadata if name.endswith("licenses/LICENSE")]
    report = json.loads(read(pure_wheel, REPORT))
    why = "built with MASKATTN_BUILD=none"
    reasons = {"reason": why, "cuda_reason": why, "dev_reason": why}
    assert report == {"built": False, **reasons}


def test_metadata(pure_wheel):
    info = pure_wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"
    metadata = Parser().parsestr(read(pure_wheel, f"{info}/METADATA"))
    needed = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert needed == [
        "torch>=2.11"
    ]  # a lower bound only: an install never replaces a torch that fits
    assert metadata["License-Expression"] == "BSD-3-Clause"
    version = {}
    exec((ROOT / PACKAGE / "_version.py").read_text(), version)
    assert metadata["Version"] == version["__version__"]
    assert "maskattn = maskattn_kernels.cli:main" in read(pure_wheel, f"{info}/entry_points.txt")


def test_pure_package_runs_and_says_why(pure_wheel, tmp_path):
    with zipfile.ZipFile(pure_wheel) as archive:
        archive.extractall(tmp_path)
    code = """
import sys, torch, maskattn_kernels as m
assert m.__file__.startswith(sys.argv[1]), m.__file__
records = {r.name: r for r in m.backends()}
assert records["reference"].available and not records["cpu"].available
assert "built with MASKATTN_BUILD=none" in " ".join(records["cpu"].reasons), records["cpu"]
q = torch.ones(1, 1, 3, 4)
assert torch.equal(m.masked_attention(q, q, q, key_mask=torch.tensor([[True, False, True]])), q)
try:
    m.masked_attention(q, q, q, backend="cpu")
except Exception as error:
    print(error)
"""
    # -S and site-packages by its path: an editable install of this package would lend its library.
    path = [str(tmp_path), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    run = subprocess.run(
        [sys.executable, "-S", "-c", code, str(tmp_path)],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "built with MASKATTN_BUILD=none" in run.stdout


def test_no_compiler(tree, tmp_path):
    wheel, said = build_wheel(tree, tmp_path / "dist", **NO_COMPILER)
    reason = json.loads(read(wheel, REPORT))["reason"]
    assert reason.startswith("no C++ compiler (/nowhere/g++)") and reason in said
    assert wheel.name.endswith("-py3-none-any.whl")

    run = backend_hook(
        "build_wheel", tree, tmp_path / "dist", NO_COMPILER | {"MASKATTN_BUILD": "cpu"}
    )
    assert run.returncode == 1
    assert run.stderr.strip() == f"MASKATTN_BUILD=cpu: {reason}"


@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="needs a C++ compiler")
def test_failing_compile(tree, tmp_path):
    for source in (tree / "csrc" / "cpu").rglob("*.cpp"):
        source.write_text("#error broken on purpose\n")
    wheel, said = build_wheel(tree, tmp_path / "dist", MASKATTN_BUILD="auto")
    assert LIBRARY not in names(wheel)
    report = json.loads(read(wheel, REPORT))
    assert not report["built"] and "broken on purpose" in report["reason"]
    assert f"has no compiled library: {report['reason']}" in said

    run = backend_hook("build_wheel", tree, tmp_path / "dist", {"MASKATTN_BUILD": "cpu"})
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith("MASKATTN_BUILD=cpu: C++ build failed: ")


@pytest.mark.parametrize(
    ("torch", "expected"),
    [(None, "no torch at build time: install torch>=2.11"), ("2.3.1", "torch 2.3.1 is too old")],
)
def test_no_torch_or_an_old_one(torch, expected, tmp_path):
    site = Path(setuptools.__file__).parents[1]
    for path in [
        site / "setuptools",
        *site.glob("setuptools-*.dist-info"),
        site / "_distutils_hack",
    ]:
        (tmp_path / path.name).symlink_to(path)
    if torch:
        (tmp_path / "torch.dist-info").mkdir()
        (tmp_path / "torch.dist-info" / "METADATA").write_text(f"Name: torch\nVersion: {torch}\n")
    env = os.environ | {"PYTHONPATH": str(tmp_path), "MASKATTN_BUILD": "cpu"}
    # -S: no site-packages, hence no torch but the one above
    run = subprocess.run(
        [sys.executable, "-S", "setup.py", "--version"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert run.stderr.startswith(f"MASKATTN_BUILD=cpu: {expected}"), run.stderr


def test_unknown_mode(tmp_path):
    run = backend_hook("build_wheel", ROOT, tmp_path, {"MASKATTN_BUILD": "gpu"})
    assert run.returncode == 1
    expected = "MASKATTN_BUILD=gpu: expected auto, cpu, cuda or none"
    assert run.stderr.strip().startswith(expected)


@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="needs a C++ compiler")
def test_no_nvcc(tmp_path):
    env = {"MASKATTN_BUILD": "cuda", "CUDACXX": "/nowhere/nvcc"}
    run = backend_hook("build_wheel", ROOT, tmp_path, env)
    assert run.returncode == 1
    assert "\nMASKATTN_BUILD=cuda: no nvcc: install the CUDA toolkit" in run.stderr


def test_the_build_never_asks_for_torch():
    text = (ROOT / "pyproject.toml").read_text()
    (declared,) = re.findall(r"^requires = (.*)$", text, re.MULTILINE)
    assert "setuptools" in declared and "torch" not in declared
