# SPDX-License-Identifier: BSD-3-Clause
"""Files that are either the whole old one or the whole new one, whenever the process is ended; and
folders that are whole or not there."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from maskattn_kernels.common.errors import CommandError
from maskattn_kernels.common.text import one_line

__all__ = ["WriteError", "new_folder", "replace_file"]


_PROBES = 64  # of 64 KiB: more than a failed write leaves of a disk, and soon written


class WriteError(CommandError):
    """A file could not be written: the disk is full, or the folder is not ours."""


def replace_file(path: Path, write: Callable[[Path], object], *, durable: bool = True) -> None:
    """Write a file beside its place, bring it to the disk, and only then move it there.

    Args:
        path: where the file goes; its folder is made if it is not there.
        write: is given the path of a temporary file in the same folder and fills it.
        durable: wait until the file is on the disk. Without it a loss of power may leave an empty
            file, and many small files are written faster.

    Raises:
        WriteError: it could not be written; what was at ``path`` before is still there.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from maskattn_kernels.common.atomic import replace_file
        >>> path = Path(tempfile.mkdtemp()) / "notes.txt"
        >>> replace_file(path, lambda temporary: temporary.write_text("kept"))
        >>> path.read_text()
        'kept'
    """
    temporary = path.with_name(f".{path.name[:60]}.part")  # a system's longest name is 255 bytes
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode  # as the umask has it
        write(temporary)
        if temporary.stat().st_mode != mode:  # safetensors keeps its files from everybody else
            temporary.chmod(mode)
        if durable:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except Exception as error:
        reason = _reason(error, temporary)
        with contextlib.suppress(OSError):
            temporary.unlink()
        old = "; the one from before is still good" if path.exists() else ""
        raise WriteError(f"cannot write {path}: {reason}{old}") from error


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside its place, to be filled; it is moved there where the context ends well.

    Args:
        folder: must not be there yet.

    Raises:
        ValueError: it is there.
        WriteError: it cannot be made; nothing is left.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from maskattn_kernels.common.atomic import new_folder
        >>> place = Path(tempfile.mkdtemp()) / "results"
        >>> with new_folder(place) as temporary:
        ...     _ = (temporary / "notes.txt").write_text("kept")
        >>> [path.name for path in place.iterdir()]
        ['notes.txt']
    """
    if folder.exists():
        raise ValueError(f"out: expected a folder that is not there yet, got {folder}")
    temporary = folder.with_name(f".{folder.name[:60]}.part")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
        except OSError as error:
            raise WriteError(f"cannot write {folder}: {error.strerror}") from None
        yield temporary
        try:
            os.replace(temporary, folder)
        except OSError as error:
            raise WriteError(f"cannot write {folder}: {error.strerror}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _reason(error: BaseException, temporary: Path) -> str:
    """Why a file could not be written; also where a library hides what the system said."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.strerror:
            return found.strerror
        found = found.__cause__ or found.__context__
    try:
        with open(temporary, "ab") as file:  # a disk that is full is still full
            for _ in range(_PROBES):
                file.write(bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())
    except OSError as probed:
        return probed.strerror or one_line(probed)
    return one_line(error)
