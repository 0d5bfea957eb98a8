# SPDX-License-Identifier: BSD-3-Clause
"""The folder that ``maskattn pick`` fills: the list, the picture, and links to the images."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from maskattn_kernels.segmentation.data.errors import DataError

__all__ = ["LIST", "SHEET", "check_folder", "replace_links"]

LIST, SHEET, LINKS = "picked.json", "picked.png", "images"


def check_folder(out: Path) -> None:
    """Refuse a folder whose images are not links of an earlier run.

    Args:
        out: a folder that may be there or not.

    Raises:
        DataError: it holds ``images/``, which no `maskattn pick` has made.
    """
    if (out / LINKS).exists() and not (out / LIST).exists():
        raise DataError(
            f"out: {out} holds {LINKS}/, which no `maskattn pick` has made; choose another folder"
        )


def replace_links(out: Path, files: Mapping[str, Path]) -> list[str]:
    """Make ``images/`` hold links to images, and no links of an earlier run.

    Args:
        out: the folder.
        files: the images by the names of their links, which may have folders.

    Returns:
        a line where no links can be made, as on file systems without links; else none.
    """
    links = out / LINKS
    try:
        for path in links.rglob("*"):
            if path.is_symlink():
                path.unlink()
        for name, file in files.items():
            (links / name).parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):  # a file that somebody put there stays
                os.symlink(file.resolve(), links / name)
    except OSError as error:
        return [f"{links}: no links to the images: {error.strerror or error}"]
    return []
