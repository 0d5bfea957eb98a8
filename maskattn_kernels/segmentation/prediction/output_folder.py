# SPDX-License-Identifier: BSD-3-Clause
"""The folder that ``maskattn predict`` fills: whose files are in it, and what stays of others."""

import os
from pathlib import Path

from maskattn_kernels.common.atomic import WriteError, replace_file
from maskattn_kernels.segmentation.data.errors import DataError

__all__ = ["OutputFolder"]

FIRST_LINE = "# written by maskattn predict, which replaces this file"
_OF_A_DATA_SET = ("classes.yaml", "annotations.json", "instances")
_FOLDERS = ("images", "instances", "labels", "panels", "panoptic")
_JSON = ("annotations.json", "panoptic.json")


class OutputFolder:
    """A folder for predictions, of which an earlier run may have left some.

    Args:
        folder: is made if it is not there.
        classes: content of its ``classes.yaml``, by which an earlier run is known.

    Raises:
        DataError: it holds files of a data set under the names that would be written.
        WriteError: it cannot be written to.
    """

    def __init__(self, folder: Path, classes: str) -> None:
        self.folder = folder
        marker = folder / "classes.yaml"
        if not _is_ours(marker):
            for name in _OF_A_DATA_SET:
                if (folder / name).exists():
                    raise DataError(
                        f"out: {folder} holds {name}, which no `maskattn predict` has written; "
                        f"choose another folder"
                    )
        self._links = _is_ours(marker) or not (folder / "images").exists()
        self._unlinked = ""
        self._old = {
            path
            for name in _FOLDERS
            if name != "images" or self._links
            for path in (folder / name).rglob("[!.]*")
            if not path.is_dir()
        }
        self._old |= {folder / name for name in _JSON if (folder / name).exists()}
        text = f"{FIRST_LINE}\n{classes}"
        replace_file(marker, lambda path: path.write_text(text, encoding="utf-8"))

    def place(self, name: str) -> Path:
        """The path of the file ``name``, which is about to be written."""
        path = self.folder / name
        self._old.discard(path)
        return path

    def link_image(self, file: Path, name: str) -> None:
        """Make ``images/NAME`` a link to an image, so that the folder is a data set.

        Args:
            file: of the image.
            name: NAME.
        """
        if not self._links:
            return
        link = self.place(f"images/{name}")
        target = file.resolve()
        if target == link.parent.resolve() / link.name:  # an image of an earlier run's links
            return
        try:
            link.parent.mkdir(parents=True, exist_ok=True)
            if link.is_symlink():
                link.unlink()
            os.symlink(target, link)
        except FileExistsError:
            pass  # a file that another program put there
        except OSError as error:  # a file system or a system without links
            self._links, self._unlinked = False, error.strerror or str(error)

    def notes(self) -> list[str]:
        """Lines on files of an earlier run that are still there, and on links that failed."""
        lines = []
        if self._unlinked:
            lines.append(f"{self.folder}: no links to the images: {self._unlinked}")
        if self._old:
            first = min(self._old).relative_to(self.folder)
            lines.append(
                f"{self.folder}: {len(self._old)} files of an earlier run are still there, such as "
                f"{first}; remove the folder before, or choose another one, to have only new ones"
            )
        return lines


def _is_ours(marker: Path) -> bool:
    try:
        with marker.open(encoding="utf-8", errors="replace") as file:
            return file.readline().rstrip() == FIRST_LINE
    except FileNotFoundError:
        return False
    except OSError as error:
        raise WriteError(f"cannot write {marker}: {error.strerror}") from None
