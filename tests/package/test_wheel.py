# SPDX-License-Identifier: BSD-3-Clause
"""The repaired wheel: one for every Python, that runs where nothing could compile it."""

import fcntl
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from building import COMPILER, LIBRARY, REPORT, names, package_files, read
from repository import ROOT

pytestmark = [
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the source tree"),
    pytest.mark.skipif(not COMPILER, reason="needs a C++ compiler"),
    pytest.mark.skipif(sys.platform != "linux", reason="auditwheel repairs wheels of Linux only"),
]
pytest.importorskip("auditwheel", reason="auditwheel repairs the wheel")
elffile = pytest.importorskip("elftools.elf.elffile", reason="elftools come with auditwheel")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make wheel` builds; it reuses the objects under build/."""
    out = tmp_path_factory.mktemp("wheel")
    path = os.pathsep.join((sysconfig.get_path("scripts"), os.environ["PATH"]))
    command = [str(ROOT / "tools" / "wheel.sh"), str(out)]
    (ROOT / "build").mkdir(exist_ok=True)
    with open(ROOT / "build" / "wheel.lock", "w") as lock:  # of processes that test side by side
        fcntl.flock(lock, fcntl.LOCK_EX)
        env = os.environ | {"PATH": path}
        run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    (built,) = out.glob("*.whl")
    return built


def test_is_for_every_python_and_says_which_glibc(wheel: Path) -> None:
    tag = rf"-py3-none-manylinux_\d+_\d+_{platform.machine()}\.whl$"
    assert re.search(tag, wheel.name), wheel.name


def test_holds_the_library_and_nothing_else(wheel: Path) -> None:
    assert {n for n in names(wheel) if ".dist-info/" not in n} == package_files() | {
        REPORT,
        LIBRARY,
    }
    assert json.loads(read(wheel, REPORT)) == {
        "built": True,
        "reason": "",
        "cuda_reason": "built with MASKATTN_BUILD=cpu",
        "dev_reason": "only editable installs have it",
    }


def test_library_needs_torch_and_no_python(wheel: Path, tmp_path: Path) -> None:
    """Its OpenMP is torch's, by torch's own parallel_for: it links none itself."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(LIBRARY, tmp_path)
    with open(tmp_path / LIBRARY, "rb") as file:
        elf = elffile.ELFFile(file)
        symbols = {symbol.name for symbol in elf.get_section_by_name(".dynsym").iter_symbols()}
        tags = list(elf.get_section_by_name(".dynamic").iter_tags())
    assert not [name for name in symbols if re.match("_?Py|pybind", name)]
    assert {"maskattn_cpu_build_info", "maskattn_cpu_tier"} <= symbols
    needed = {tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"}
    system = r"lib(stdc\+\+|m|gcc_s|c|pthread|dl|rt)\.so\.\d|ld-linux"
    assert {name for name in needed if not re.match(system, name)} == {"libtorch_cpu.so"}
    assert not [tag for tag in tags if tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH")]


RUN = """
import shutil, sys, torch, maskattn_kernels
from maskattn_kernels import backends, masked_attention
assert maskattn_kernels.__file__.startswith(sys.prefix), maskattn_kernels.__file__
assert not [name for name in ("c++", "g++", "gcc", "cc", "clang", "cmake") if shutil.which(name)]
assert backends()[0].name == "cpu" and backends()[0].available, backends()[0]
torch.manual_seed(0)
mask = torch.rand(2, 50) < 0.4
tensors = torch.randn(4, 2, 3, 50, 24).unbind()
results = []
for backend in ("cpu", "reference"):
    q, k, v = (t.clone().requires_grad_() for t in tensors[:3])
    out = masked_attention(q, k, v, key_mask=mask, query_mask=mask, backend=backend)
    results.append((out.detach(), *torch.autograd.grad(out, (q, k, v), tensors[3])))
for got, expected in zip(*results, strict=True):
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
print(maskattn_kernels.__file__)
"""


def test_runs_in_a_bare_environment(wheel: Path, tmp_path: Path) -> None:
    """No compiler, no package of this environment but torch and what torch needs."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-index"]
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([*install, "--no-deps", str(wheel)], env=bare, check=True, capture_output=True)
    (site,) = home.glob("lib/python*/site-packages")
    (site / "torch.pth").write_text(sysconfig.get_path("purelib") + "\n")
    done = subprocess.run(
        [str(python), "-c", RUN], cwd=tmp_path, env={"PATH": ""}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(site)
    assert shutil.which("maskattn", path=str(home / "bin"))
