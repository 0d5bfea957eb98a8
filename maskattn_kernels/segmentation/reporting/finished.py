# SPDX-License-Identifier: BSD-3-Clause
"""`Finished`: what a report has measured so far, so that an interrupted one can be resumed."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from maskattn_kernels.common.atomic import replace_file
from maskattn_kernels.common.command_line import writable_folder
from maskattn_kernels.segmentation.data.errors import shown

__all__ = ["Finished"]

_FILE = "finished.json"


class Finished:
    """What was measured, by the names of candidates, in a file of the report's folder.

    Args:
        folder: of the report; made if it is not there.
        settings: what else decides the results, for JSON.

    Raises:
        ValueError: the folder holds other files, or results of other settings.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> Finished(folder, {"threads": 1}).add_row("torch", {"mIoU": 70.0})
        >>> Finished(folder, {"threads": 1}).rows
        {'torch': {'mIoU': 70.0}}
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.file = writable_folder(folder) / _FILE
        self.settings = json.loads(json.dumps(settings))
        self.rows: dict[str, Any] = {}
        self.times: dict[str, Any] = {}
        if self.file.is_file():
            self._read()
        elif any(folder.iterdir()):
            raise ValueError(f"out: expected a new folder or one of a report, got {folder}")

    def _read(self) -> None:
        folder = self.file.parent
        try:
            kept = json.loads(self.file.read_text(encoding="utf-8"))
            settings, rows, times = kept["settings"], kept["rows"], kept["times"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"out: {self.file} was not written by a report") from None
        for name, value in self.settings.items():
            if settings.get(name) != value:
                raise ValueError(
                    f"out: expected a new folder or the same report, got {folder} with "
                    f"{name} {shown(settings.get(name))}, now {shown(value)}"
                )
        self.rows, self.times = rows, times

    def add_row(self, name: str, row: dict[str, Any]) -> None:
        """Keep a ``row``, what was measured of the candidate ``name``; it was in no race yet."""
        self.rows[name], self.times = row, {}
        self._write()

    def set_times(self, times: dict[str, Any]) -> None:
        """Keep the ``times`` of a race, by candidate."""
        self.times = times
        self._write()

    def has_times_of(self, names: Iterable[str]) -> bool:
        """Whether one race had all of these ``names``."""
        return self.times.keys() >= set(names)

    def _write(self) -> None:
        kept = {"settings": self.settings, "rows": self.rows, "times": self.times}
        text = json.dumps(kept, indent=1)
        replace_file(self.file, lambda path: path.write_text(text, encoding="utf-8"))
