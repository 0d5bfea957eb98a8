# SPDX-License-Identifier: BSD-3-Clause
"""The CPU kernels as compiled for 64-bit Arm, run by an emulator and made a backend.

`tests/arm` is built by a cross compiler into build/arm. One process of the emulator serves the
calls of a tier, through pipes.
"""

import fcntl
import importlib
import os
import shutil
import struct
import subprocess
import sys
from functools import cache
from typing import Any

import pytest
import torch
from repository import ROOT
from torch import Tensor

from maskattn_kernels import op_table, ops
from maskattn_kernels.backends.base import SCHEMAS, Backend, empty_result
from maskattn_kernels.problem import Problem

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
MISSING = [tool for tool in (COMPILER, EMULATOR, "cmake", "ninja") if not shutil.which(tool)]
FOLDER = ROOT / "build" / "arm"
BACKENDS = importlib.import_module("maskattn_kernels.backends")
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


@cache
def build() -> str:
    """The program, compiled now or by an earlier run from the same text."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other processes of pytest build it too
        options = {
            "CMAKE_SYSTEM_NAME": "Linux",
            "CMAKE_SYSTEM_PROCESSOR": "aarch64",
            "CMAKE_CXX_COMPILER": COMPILER,
            "CMAKE_CXX_FLAGS": "-Werror",
            "Python_EXECUTABLE": sys.executable,
        }
        given = [f"-D{name}={value}" for name, value in options.items()]
        for command in (["-S", ROOT / "tests" / "arm", "-B", FOLDER, "-G", "Ninja", *given],
                        ["--build", FOLDER]):  # fmt: skip
            run = subprocess.run(["cmake", *command], capture_output=True, text=True)
            assert run.returncode == 0, run.stdout + run.stderr
    return str(FOLDER / "calls")


class Machine:
    """A process of the emulator: a CPU, and the tier in use on it."""

    def __init__(self, cpu: str = "max", tier: str = "") -> None:
        env = os.environ | {"MASKATTN_CPU_TIER": tier}
        command = [EMULATOR, "-cpu", cpu, build()]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe)
        self.tier = self.process.stdout.readline().decode().strip()

    def call(self, numbers: bytes, tensors: list[Tensor], results: list[Tensor]) -> None:
        """Writes a call, and reads what it gives into `results`."""
        self.process.stdin.write(numbers + b"".join(map(_bytes, tensors)))
        self.process.stdin.flush()
        for result in results:
            count = result.numel() * result.element_size()
            came = bytearray(self.process.stdout.read(count))
            assert len(came) == count, "the program ended"
            if count:
                result.copy_(torch.frombuffer(came, dtype=result.dtype).view(result.shape))


def _bytes(t: Tensor) -> bytes:
    return t.contiguous().flatten().view(torch.uint8).numpy().tobytes()


machine = cache(Machine)


def _inputs(backward: bool, dlse: Tensor | None, *args: Any) -> tuple[bytes, list[Tensor]]:
    """The numbers of a call, and its tensors, broadcast."""
    query, key, value, query_indices, query_counts, key_indices, key_counts, bias, scale = args
    (b, h, nq, d), (_, kv, nk, _) = query.shape, key.shape
    lists = []
    for heads, n, indices, counts in (
        (h, nq, query_indices, query_counts),
        (kv, nk, key_indices, key_counts),
    ):
        if indices is not None:
            lists += [indices.expand(b, heads, n), counts.expand(b, heads)]
    given = (query_indices is not None, key_indices is not None, bias is not None, dlse is not None)
    sizes = (backward, DTYPES[query.dtype], b, h, kv, nq, nk, d, *given)
    tensors = [query, key, value, *lists, *([] if bias is None else [bias])]
    return struct.pack("12qd", *sizes, scale), tensors


def _fwd(query: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    out, lse = empty_result(query), query.new_empty(query.shape[:3], dtype=torch.float32)
    ArmBackend.machine.call(*_inputs(False, None, query, *rest), [out, lse])
    return out, lse


def _bwd(
    dout: Tensor, dlse: Tensor | None, query: Tensor, key: Tensor, value: Tensor,
    out: Tensor, lse: Tensor, *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    numbers, tensors = _inputs(True, dlse, query, key, value, *rest)
    tensors += [dout, out, lse, *([] if dlse is None else [dlse])]
    bias = rest[-2]
    dbias = query.new_empty((0,) if bias is None else bias.shape, dtype=torch.float32)
    results = [*map(empty_result, (query, key, value)), dbias]
    ArmBackend.machine.call(numbers, tensors, results)
    return tuple(results)


class ArmBackend(Backend):
    name = "arm"
    takes_any_bias = True
    machine: Machine  # that runs its ops

    def reasons(self, problem: Problem) -> list[str]:
        fits = problem.dtype in DTYPES and problem.head_dim > 0
        return [] if fits else ["not for this call"]


_LIBRARY = torch.library.Library("maskattn", "FRAGMENT")  # its ops live as long as it does


@cache
def _register() -> op_table.BackendOps:
    select_tokens = torch.ops.maskattn.reference_select_tokens
    for name, op in (("select_tokens", select_tokens), ("fwd", _fwd), ("bwd", _bwd)):
        _LIBRARY.define(f"arm_{name}{SCHEMAS[name]}")
        _LIBRARY.impl(f"arm_{name}", op, "CPU")
    found = op_table.find_ops("arm")
    ops._register("arm", found)
    return found


def install(monkeypatch: pytest.MonkeyPatch, tier: str) -> None:
    """Makes a tier on Arm a backend that can be asked for by name, for the length of one test."""
    monkeypatch.setitem(op_table.OPS, "arm", _register())
    monkeypatch.setattr(BACKENDS, "BACKENDS", (*BACKENDS.BACKENDS, ArmBackend()))
    current = machine(tier=tier)
    assert current.tier == tier
    monkeypatch.setattr(ArmBackend, "machine", current, raising=False)
