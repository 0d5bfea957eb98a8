# SPDX-License-Identifier: BSD-3-Clause
"""The CUDA kernels on the CPU: compiled as C++ behind `tests/cuda_twin`, and made a backend.

Every CUDA thread is a fiber; shared memory is checked for races, copies arrive when they are
waited for and no earlier, and a broken rule raises RuntimeError. Built once into build/twin, and
kept there as long as no source changes.
"""

import ctypes
import hashlib
import importlib
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
from repository import ROOT

from maskattn_kernels import op_table, ops
from maskattn_kernels.backends.base import Backend
from maskattn_kernels.problem import Problem

CSRC = ROOT / "csrc"
TWIN = ROOT / "tests" / "cuda_twin"
FOLDER = ROOT / "build" / "twin"
BACKENDS = importlib.import_module("maskattn_kernels.backends")
TORCH = Path(torch.__file__).parent
COMPILER = os.environ.get("CXX", "c++")
FLAGS = (
    "-std=c++20", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wshadow",
    "-Werror", "-Wno-unknown-pragmas", "-ffp-contract=off", "-DMASKATTN_TWIN",
    "-DTORCH_TARGET_VERSION=0x020b000000000000", "-isystem", str(TORCH / "include"),
)  # fmt: skip
# One dtype is enough to see an address that is wrong, and compiles in a third of the time.
ONE_DTYPE = "-DMASKATTN_ONLY_BFLOAT16"
ADDRESSES = (
    "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer",
    ONE_DTYPE,
)  # fmt: skip
THREADS = ("-fsanitize=thread", "-DMASKATTN_TSAN", ONE_DTYPE)


def sources(csrc: Path = CSRC) -> list[Path]:
    kernels = [p for p in csrc.glob("cuda/*.cu") if p.name != "device.cu"]
    torch_side = [csrc / "cuda" / name for name in ("masked_attention.cpp", "cute.cpp")]
    return sorted([*kernels, *torch_side, *TWIN.glob("*.cpp")])


def build(flags: tuple[str, ...] = (), csrc: Path = CSRC) -> Path:
    """The library of the twin, compiled now or by an earlier run from the same text."""
    headers = hashlib.sha256(repr((COMPILER, FLAGS, flags, torch.__version__)).encode())
    for folder in (csrc, TWIN):
        for path in sorted(p for p in folder.rglob("*") if p.suffix in (".h", ".cuh")):
            headers.update(str(path.relative_to(folder)).encode() + path.read_bytes())

    def compile_one(source: Path) -> Path:
        digest = headers.copy()
        digest.update(source.read_bytes())
        target = FOLDER / f"{source.parent.name}-{source.stem}-{digest.hexdigest()[:16]}.o"
        command = [COMPILER, *FLAGS, *flags, f"-I{csrc}", f"-I{TWIN.parent}"]
        command += ["-x", "c++", "-c", str(source)]
        if source.parent == TWIN and THREADS[0] in flags:
            command.remove(THREADS[0])  # what the fibers share among themselves is no race
        return _made(target, command)

    FOLDER.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources(csrc)))
    digest = hashlib.sha256(repr(objects).encode()).hexdigest()[:16]
    command = [COMPILER, "-shared", *flags, *map(str, objects)]
    return _made(FOLDER / f"twin-{digest}.so", [*command, "-L", str(TORCH / "lib"), "-ltorch_cpu"])


def _made(target: Path, command: list[str]) -> Path:
    """What the command writes, made now if it is not there; by several processes at a time."""
    if not target.exists():
        own = target.with_name(f"{os.getpid()}-{target.name}")
        run = subprocess.run([*command, "-o", str(own)], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        own.replace(target)
    return target


class TwinBackend(Backend):
    name = "twin"

    def reasons(self, problem: Problem) -> list[str]:
        return (
            [] if problem.device_type == "cpu" and problem.head_dim > 0 else ["not for this call"]
        )


@cache
def load(library: Path) -> tuple[ctypes.CDLL, op_table.BackendOps]:
    torch.ops.load_library(library)
    found = op_table.find_ops("twin")
    ops._register("twin", found)
    return ctypes.CDLL(str(library)), found


def install(monkeypatch: pytest.MonkeyPatch, library: Path) -> None:
    """Makes the twin a backend that can be asked for by name, for the length of one test."""
    _, found = load(library)
    monkeypatch.setitem(op_table.OPS, "twin", found)
    everything = (*BACKENDS.BACKENDS, TwinBackend())
    monkeypatch.setattr(BACKENDS, "BACKENDS", everything)


def launches(library: Path) -> int:
    """How many kernels were launched so far."""
    return load(library)[0].maskattn_twin_launches()


def choose_splits(
    library: Path, chip: tuple[int, int], shared: int, blocks: int, tiles: int
) -> int:
    """As `splits.h` chooses for a chip: its processors, and the bytes of shared memory of one."""
    choose = load(library)[0].maskattn_twin_choose_splits
    return choose(*chip, ctypes.c_int64(shared), ctypes.c_int64(blocks), ctypes.c_int64(tiles))


@contextmanager
def planted(library: Path, barrier: int = 0, wait: bool = False) -> Iterator[None]:
    """Leaves out the n-th barrier of every thread, or every wait for copies."""
    plant = load(library)[0].maskattn_twin_plant
    plant(barrier, wait)
    try:
        yield
    finally:
        plant(0, False)
