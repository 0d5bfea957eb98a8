# SPDX-License-Identifier: BSD-3-Clause
"""The CUDA kernels on the CPU: compiled as C++ behind `csrc/cuda/twin`, and made a backend.

Every CUDA thread is a fiber; shared memory is checked for races, copies arrive when they are waited
for and no earlier, and a broken rule raises RuntimeError. Built once into build/twin, and kept there
as long as no source changes.
"""

import ctypes
import hashlib
import importlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Iterator

import pytest
import torch

from maskattn_kernels import explanation, ops
from maskattn_kernels.backends.base import Backend
from maskattn_kernels.problem import Problem

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
BACKENDS = importlib.import_module("maskattn_kernels.backends")
TORCH = Path(torch.__file__).parent
COMPILER = os.environ.get("CXX", "c++")
FLAGS = (
    "-std=c++20", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror",
    "-Wno-unknown-pragmas", "-ffp-contract=off", "-DMASKATTN_TWIN",
    "-DTORCH_TARGET_VERSION=0x020b000000000000", "-isystem", str(TORCH / "include"),
)  # fmt: skip
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")


def sources(csrc: Path = CSRC) -> list[Path]:
    kernels = [p for p in csrc.glob("cuda/*.cu") if p.name != "device.cu"]
    return sorted([*kernels, csrc / "cuda" / "masked_attention.cpp", *csrc.glob("cuda/twin/*.cpp")])


def build(flags: tuple[str, ...] = (), csrc: Path = CSRC) -> Path:
    """The library of the twin, compiled now or by an earlier run from the same text."""
    digest = hashlib.sha256(repr((COMPILER, FLAGS, flags, torch.__version__)).encode())
    headers = [p for p in csrc.rglob("*") if p.suffix in (".h", ".cuh", ".cu", ".cpp")]
    for path in sorted(headers):
        digest.update(str(path.relative_to(csrc)).encode() + path.read_bytes())
    folder = ROOT / "build" / "twin" / digest.hexdigest()[:16]
    library = folder / "twin.so"
    if library.exists():
        return library
    own = folder.with_name(f"{folder.name}.{os.getpid()}")  # several processes may build at a time
    own.mkdir(parents=True)

    def compile_one(source: Path) -> Path:
        target = own / f"{source.name}.o"
        command = [COMPILER, *FLAGS, *flags, "-x", "c++", "-c", str(source), "-o", str(target)]
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources(csrc)))
    library_flags = ("-L", str(TORCH / "lib"), "-ltorch_cpu", "-o", str(own / "twin.so"))
    subprocess.run([COMPILER, "-shared", *flags, *map(str, objects), *library_flags], check=True)
    folder.mkdir(exist_ok=True)
    os.replace(own / "twin.so", library)
    shutil.rmtree(own)
    return library


class TwinBackend(Backend):
    name = "twin"

    def reasons(self, problem: Problem) -> list[str]:
        return [] if problem.device_type == "cpu" and problem.head_dim > 0 else ["not for this call"]


@cache
def load(library: Path) -> tuple[ctypes.CDLL, ops.BackendOps]:
    torch.ops.load_library(library)
    found = ops._find_ops("twin")
    ops._register(found)
    return ctypes.CDLL(str(library)), found


def install(monkeypatch: pytest.MonkeyPatch, library: Path) -> None:
    """Makes the twin a backend that can be asked for by name, for the length of one test."""
    _, found = load(library)
    monkeypatch.setitem(ops.OPS, "twin", found)
    everything = (*BACKENDS.BACKENDS, TwinBackend())
    monkeypatch.setattr(BACKENDS, "BACKENDS", everything)
    monkeypatch.setattr(explanation, "BACKENDS", everything)


@contextmanager
def planted(library: Path, barrier: int = 0, wait: bool = False) -> Iterator[None]:
    """Leaves out the so-many-th barrier of every thread, or every wait for copies."""
    plant = load(library)[0].maskattn_twin_plant
    plant(barrier, wait)
    try:
        yield
    finally:
        plant(0, False)
