# SPDX-License-Identifier: BSD-3-Clause
"""Triton with GPUs that are not there: its real compiler and launcher, launches that go nowhere.

Inside `using(arch)` the ops of the Triton backend take CPU tensors. Their kernels are specialised,
compiled, loaded and launched exactly as on that GPU, with `stub_cuda.c` as the driver; only their
programs do not run, so results hold what the memory held. `launches()` says what was launched:
kernel, grid, and every argument as the machine code takes it.
"""

import ctypes
import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from repository import ROOT, SUPPORT

SOURCE = SUPPORT / "stub_cuda.c"
FOLDER = ROOT / "build" / "stub"
ARCHS = {"sm_80": 108, "sm_90": 132, "sm_100": 148}  # as in stub_cuda.c: GPU 0, 1, 2


class Launch(NamedTuple):
    """One launch as the driver saw it."""

    kernel: str
    grid: tuple[int, int, int]
    threads: int
    shared: int
    gpu: int
    arguments: tuple[tuple[int, int], ...]  # (size in bytes, value)

    def pointers(self) -> list[int]:
        """The arguments of 8 bytes, those that are null left out."""
        return [value for size, value in self.arguments if size == 8 and value]


def build() -> Path:
    """The folder that holds the stub as libcuda.so.1, compiled if it is not there."""
    folder = FOLDER / hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    library = folder / "libcuda.so.1"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        own = folder / f"{os.getpid()}.so"
        compiler = os.environ.get("CC", "cc")
        flags = ("-std=gnu11", "-O2", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1")
        subprocess.run([compiler, *flags, str(SOURCE), "-o", str(own)], check=True)
        own.replace(library)
    return folder


@cache
def load() -> ctypes.CDLL:
    """The stub: by its soname it is what every later dlopen of libcuda.so.1 finds.

    To be called before torch is imported where torch is built with CUDA, and may load the driver's.
    """
    if "libcuda.so" in Path("/proc/self/maps").read_text():
        raise RuntimeError(
            "stub_driver: expected a process without libcuda, got one that loaded it"
        )
    folder = build()
    library = ctypes.CDLL(str(folder / "libcuda.so.1"), ctypes.RTLD_GLOBAL)
    library.stub_launch.restype = ctypes.c_void_p
    library.stub_name.restype = ctypes.c_char_p
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
    return library


@cache
def _driver() -> Any:
    """A driver of Triton for the GPUs of the stub."""
    library = load()
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.driver import CudaDriver, CudaLauncher, CudaUtils

    class StubDriver(CudaDriver):
        def __init__(self) -> None:
            self.gpu = 0
            self.utils = CudaUtils()
            self.launcher_cls = CudaLauncher
            self.get_current_device = lambda: self.gpu
            self.set_current_device = self.use
            self.get_current_stream = lambda gpu: 0
            self.get_device_capability = lambda gpu: divmod(self.arch(gpu), 10)

        def use(self, gpu: int) -> None:
            self.gpu = gpu
            library.stub_use_gpu(gpu)

        def arch(self, gpu: int) -> int:
            return int(list(ARCHS)[gpu].removeprefix("sm_"))

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", self.arch(self.gpu), 32)

    return StubDriver()


@cache
def _ops_on_cpu_tensors() -> None:
    """The ops of the Triton backend get an implementation for the CPU, as in the interpreter."""
    from maskattn_kernels.backends import triton_ops
    from maskattn_kernels.backends.base import SCHEMAS

    for name in (*SCHEMAS, "infer"):
        triton_ops._LIBRARY.impl(f"triton_{name}", triton_ops._loading(name), "CPU")


@contextmanager
def using(arch: str) -> Iterator[ctypes.CDLL]:
    """Calls inside run on the stub's GPU of this architecture, on CPU tensors.

    Raises:
        RuntimeError: another libcuda is loaded, or Triton runs in its interpreter.
    """
    from maskattn_kernels.backends import triton_ops
    from maskattn_kernels.backends.tuning import SHARED_MEMORY

    if triton_ops.INTERPRETED:
        raise RuntimeError("stub_driver: expected compiled kernels, got TRITON_INTERPRET")
    library = load()
    from triton.runtime import driver

    from maskattn_kernels.backends import triton_choices

    chip = triton_choices.Chip(arch, ARCHS[arch], SHARED_MEMORY[arch])
    _ops_on_cpu_tensors()
    library.stub_forget()
    _driver().use(list(ARCHS).index(arch))
    with (
        patch.object(driver, "_active", _driver()),
        patch.object(triton_choices, "_gpu", lambda index: chip),
        patch.object(triton_ops, "INTERPRETED", True),  # so that CPU tensors are taken
    ):
        yield library


def launches(library: ctypes.CDLL) -> list[Launch]:
    """What was launched since `using` began, in order."""

    class Record(ctypes.Structure):
        _fields_ = (
            ("function", ctypes.c_void_p),
            ("grid", ctypes.c_uint * 3),
            ("block", ctypes.c_uint * 3),
            ("shared", ctypes.c_uint),
            ("stream", ctypes.c_void_p),
            ("gpu", ctypes.c_int),
            ("arguments", ctypes.c_uint64 * 64),
        )

    found = []
    for number in range(library.stub_launched()):
        address = ctypes.c_void_p(library.stub_launch(number))
        record = Record.from_address(address.value or 0)
        sizes = [library.stub_size(address, i) for i in range(library.stub_arguments(address))]
        found.append(
            Launch(
                library.stub_name(address).decode(),
                tuple(record.grid),
                record.block[0],
                record.shared,
                record.gpu,
                tuple(zip(sizes, record.arguments, strict=False)),
            )
        )
    return found
