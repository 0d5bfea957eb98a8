# SPDX-License-Identifier: BSD-3-Clause
"""Files that are whole or not there: their mode, and the reason where one cannot be written."""

import os
import resource
import signal
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from maskattn_kernels.common.atomic import WriteError, new_folder, replace_file


@pytest.fixture
def small_files():
    """No file of this process can be larger than 20 kB: as a full disk, but without one."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: torch.save({"weights": torch.zeros(100_000)}, path),
        lambda path: save_file({"weights": torch.zeros(100_000)}, path),
        lambda path: path.write_bytes(bytes(100_000)),
    ],
    ids=["torch", "safetensors", "python"],
)
def test_a_disk_that_is_full_is_named_whatever_writes(write, small_files, tmp_path):
    with pytest.raises(WriteError) as caught:
        replace_file(tmp_path / "file", write)
    assert str(caught.value) == f"cannot write {tmp_path / 'file'}: File too large"
    assert not list(tmp_path.iterdir())


def test_other_errors_keep_their_words(tmp_path):
    def write(path: Path) -> None:
        raise RuntimeError("no idea\nhow")

    with pytest.raises(WriteError, match=r"^cannot write .*file: no idea how$"):
        replace_file(tmp_path / "file", write)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_have_the_mode_of_the_umask(umask, tmp_path):
    before = os.umask(umask)
    try:
        replace_file(tmp_path / "a", lambda path: save_file({"w": torch.zeros(2)}, path))
        replace_file(tmp_path / "b", lambda path: path.write_text("b"))
    finally:
        os.umask(before)
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"}
    assert modes == {0o666 & ~umask}


def test_a_new_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    place = tmp_path / "results"
    (tmp_path / ".results.part").mkdir()  # of a process that was killed
    (tmp_path / ".results.part" / "old").touch()
    with pytest.raises(KeyError), new_folder(place) as temporary:
        (temporary / "half").touch()
        raise KeyError
    assert not list(tmp_path.iterdir())
    with new_folder(place) as temporary:
        (temporary / "whole").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["results", "whole"]
    refused = pytest.raises(ValueError, match=r"^out: expected a folder that is not there yet, got")
    with refused, new_folder(place):
        pass
    (tmp_path / "file").touch()
    impossible = pytest.raises(WriteError, match=r"^cannot write .*/results: Not a directory$")
    with impossible, new_folder(tmp_path / "file" / "results"):
        pass
