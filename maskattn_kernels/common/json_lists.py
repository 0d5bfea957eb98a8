# SPDX-License-Identifier: BSD-3-Clause
"""JSON files of lists that are too long for the memory, written row by row."""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from maskattn_kernels.common.atomic import replace_file

__all__ = ["JsonLists"]


class JsonLists:
    """A JSON object of lists, whose rows go to the disk as they come.

    Each list is a hidden file beside the JSON until `close` puts them together. If the process is
    ended before, the JSON is not there, or still the old one.

    Args:
        path: of the JSON.
        names: of the lists.

    Raises:
        OSError: the folder cannot be written to.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "long.json"
        >>> lists = JsonLists(path, "images", "objects")
        >>> for number in range(3):
        ...     lists.add("images", {"id": number})
        >>> lists.close(version=1)
        >>> json.loads(path.read_text())
        {'version': 1, 'images': [{'id': 0}, {'id': 1}, {'id': 2}], 'objects': []}
    """

    def __init__(self, path: Path, *names: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._files: dict[str, IO[str]] = {}
        for name in names:
            part = path.with_name(f".{path.name}.{name}.part")
            self._files[name] = part.open("w+", encoding="utf-8")

    def add(self, name: str, row: Any) -> None:
        """Add a ``row`` to the list ``name``.

        Raises:
            ValueError: the row holds NaN or infinity, which JSON does not have.
        """
        file = self._files[name]
        file.write((",\n" if file.tell() else "") + json.dumps(row, allow_nan=False))

    def close(self, **others: Any) -> None:
        """Write the JSON: ``others``, and the lists.

        Raises:
            WriteError: it could not be written.
        """
        try:
            replace_file(self.path, lambda path: self._assemble(path, others))
        finally:
            for file in self._files.values():
                with suppress(OSError):  # of a full disk, where the rows do not matter any more
                    file.close()
                Path(file.name).unlink(missing_ok=True)

    def _assemble(self, path: Path, others: dict[str, Any]) -> None:
        with path.open("w", encoding="utf-8") as whole:
            whole.write("{")
            for name, value in others.items():
                whole.write(f"{json.dumps(name)}: {json.dumps(value, allow_nan=False)},\n")
            for place, (name, file) in enumerate(self._files.items()):
                whole.write(f"{', ' if place else ''}{json.dumps(name)}: [\n")
                file.seek(0)
                shutil.copyfileobj(file, whole)
                whole.write("]\n")
            whole.write("}\n")
