# SPDX-License-Identifier: BSD-3-Clause
"""Logs in CSV that a resumed run continues."""

import csv
from argparse import Namespace
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from maskattn_kernels.common.atomic import WriteError, replace_file

__all__ = ["CSVLog", "read_log"]


class CSVLog(Logger):
    """Two tables in a folder: ``train.csv`` and ``validation.csv``.

    Lightning's own CSV logger deletes the files of an earlier run in the same folder. This one
    appends to them, after it has removed the rows that the resumed run will write again.

    Args:
        folder: of the tables; must exist.
        resumed_at: step from which the run is resumed; 0 = a new run.
        last_row: of ``train.csv``, for the step ``resumed_at``; a kill may have come between the
            saved state and this row.
    """

    def __init__(
        self, folder: Path, resumed_at: int = 0, last_row: dict[str, float] | None = None
    ) -> None:
        super().__init__()
        self.folder = folder
        self.columns: dict[str, list[str]] = {}
        self._take_up(resumed_at, last_row)

    @rank_zero_only
    def _take_up(self, resumed_at: int, last_row: dict[str, float] | None) -> None:
        self._cut("validation", resumed_at)
        is_there = self._cut("train", resumed_at)
        if last_row and not is_there:
            self.log_metrics(last_row, resumed_at - 1)

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kw: Any) -> None:
        """Nothing: ``config.yaml`` holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        # Lightning numbers steps from 0; people count those that are done.
        row: dict[str, float] = {"step": (step or 0) + 1}
        row |= {name: value for name, value in metrics.items() if name != "epoch"}
        table = "validation" if any(name.startswith("val/") for name in row) else "train"
        columns = self.columns.setdefault(table, list(row))
        path = self.folder / f"{table}.csv"
        new = not path.exists()
        try:
            with open(path, "a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, columns, extrasaction="ignore")
                if new:
                    writer.writeheader()
                writer.writerow(row)
        except OSError as error:
            raise WriteError(f"cannot write {path}: {error.strerror}") from error

    def _cut(self, table: str, resumed_at: int) -> bool:
        """Remove the rows that will be written again; whether the last row left is of that step."""
        path = self.folder / f"{table}.csv"
        if not path.exists():
            return False
        kept = [row for row in _rows(path) if resumed_at and float(row["step"]) <= resumed_at]
        if not kept:
            path.unlink()
            return False
        self.columns[table] = list(kept[0])
        replace_file(path, lambda temporary: self._write(temporary, kept))
        return float(kept[-1]["step"]) == resumed_at

    def _write(self, path: Path, rows: list[dict[str, str]]) -> None:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def read_log(path: Path) -> list[dict[str, float]]:
    """The rows of the table at ``path``, by `CSVLog`; a row that a kill cut off is left out.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from maskattn_kernels.segmentation.training.csv_log import CSVLog, read_log
        >>> folder = Path(tempfile.mkdtemp())
        >>> CSVLog(folder).log_metrics({"loss/loss": 0.5}, step=9)
        >>> read_log(folder / "train.csv")
        [{'step': 10.0, 'loss/loss': 0.5}]
    """
    return [{name: float(value) for name, value in row.items()} for row in _rows(path)]


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]
