# SPDX-License-Identifier: BSD-3-Clause
"""Rows of measurements, and the JSON files that hold them: a row a line."""

import json
from pathlib import Path
from typing import Any

from maskattn_kernels.common.atomic import replace_file

__all__ = ["Results", "Row", "dumps", "save"]

#: One measurement: a dictionary fit for JSON.
Row = dict[str, Any]
#: What a file holds: facts by name, and sections, which are lists or dictionaries of rows.
Results = dict[str, Any]


def dumps(results: Results) -> str:
    """JSON text of ``results``, a line for each row: so that a diff shows which rows changed.

    Example:
        >>> print(dumps({"complete": True, "cells": [{"name": "a"}, {"name": "b"}]}), end="")
        {
         "complete": true,
         "cells": [
          {"name": "a"},
          {"name": "b"}
         ]
        }
    """
    return f"{{\n{_lines([f'{json.dumps(k)}: {_section(v)}' for k, v in results.items()], 1)}}}\n"


def _section(value: Any) -> str:
    if value and isinstance(value, dict):
        rows = [f"{json.dumps(key)}: {json.dumps(row)}" for key, row in value.items()]
        return f"{{\n{_lines(rows, 2)} }}"
    if value and isinstance(value, list) and isinstance(value[0], dict):
        return f"[\n{_lines([json.dumps(row) for row in value], 2)} ]"
    return json.dumps(value)


def _lines(items: list[str], indent: int) -> str:
    return ",\n".join(" " * indent + item for item in items) + "\n"


def save(results: Results, path: Path) -> None:
    """Write results to ``path``; an interruption leaves the old file or the new one.

    Raises:
        WriteError: the file could not be written.
    """
    replace_file(path, lambda part: part.write_text(dumps(results), encoding="utf-8"))
