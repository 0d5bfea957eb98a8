# SPDX-License-Identifier: BSD-3-Clause
"""The folder of a run: of one run at a time, and never one with files of somebody else."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from maskattn_kernels.common.command_line import writable_folder
from maskattn_kernels.segmentation.training.options import ConfigError
from maskattn_kernels.segmentation.training.processes import is_first_process

try:
    import fcntl
except ImportError:  # Windows has no such locks, and there a folder is not locked
    fcntl = None  # type: ignore[assignment]

__all__ = ["MARK", "claimed"]

#: First line of a run's config.yaml, by which its folder is told from others.
MARK = "# maskattn train: all options of this run"
#: What a run writes.
NAMES = ("config.yaml", "train.csv", "validation.csv", "tensorboard", "best", "final", "last.ckpt")
_LOCK = ".lock"


@contextmanager
def claimed(out: Path, *, resume: bool) -> Iterator[None]:
    """Have the folder of a run for the time of the context; it is made if it is not there.

    Args:
        out: the folder.
        resume: whether the run in it is resumed; a new run needs a folder without one.

    Raises:
        ConfigError: another process has it, or it holds files that are not of a run.
        ValueError: it cannot be made or written to.
    """
    if not is_first_process():  # the first process has it for all of them
        yield
        return
    _check_owner(out, resume)
    is_new = not out.exists()
    writable_folder(out)
    try:
        with _locked(out):
            _check_owner(out, resume)  # another process may have had it until now
            yield
    finally:
        if is_new:  # a run that could not start leaves no folder
            with suppress(OSError):
                out.rmdir()


def _check_owner(out: Path, resume: bool) -> None:
    if resume or not out.is_dir():
        return
    if (out / "last.ckpt").exists():
        raise ConfigError(
            f"out: {out} holds a run; resume it with --ckpt_path last, or choose another folder"
        )
    found = [name for name in NAMES if os.path.lexists(out / name)]
    if found and not _is_of_a_run(out / "config.yaml"):
        raise ConfigError(
            f"out: {out} holds {found[0]}, which is not of a run and would be replaced; "
            "choose another folder"
        )


def _is_of_a_run(config: Path) -> bool:
    with suppress(OSError, UnicodeDecodeError):
        return config.read_text(encoding="utf-8").startswith(MARK)
    return False


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    path = out / _LOCK
    file = _lock(path)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        file.close()


def _lock(path: Path) -> IO[str]:
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - open for as long as the run
        try:
            # The system gives such a lock back however its process ends.
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                break  # a file system without locks
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise ConfigError(
                f"out: {path.parent} is in use by {holder}; wait for its end, or choose another "
                "folder"
            ) from None
        # A run that ended in between has removed the file that was opened here.
        if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
            break
        file.close()
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file
