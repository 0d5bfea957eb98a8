# SPDX-License-Identifier: BSD-3-Clause
"""Data sets of links: some images of another data set, without a copy of them."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path


def link(target: Path, path: Path) -> None:
    """Make ``path`` a link to ``target``, if another run has not made it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.symlink(target.resolve(), path)


def link_labelled(split: Path, names: Iterable[str], to: Path) -> None:
    """Link some images of a ``split`` and their masks into the split ``to``.

    Args:
        split: a folder with ``images/`` and ``masks/``.
        names: files of its images.
        to: the folder of the links.
    """
    masks = {path.stem: path for path in (split / "masks").iterdir()}
    for name in names:
        mask = masks[Path(name).stem]
        link(split / "images" / name, to / "images" / name)
        link(mask, to / "masks" / mask.name)
