# SPDX-License-Identifier: BSD-3-Clause
"""What the commands of this package share: errors in one line, and types of arguments."""

import argparse
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from maskattn_kernels.common.text import first_line

__all__ = [
    "Parser",
    "count",
    "fraction",
    "height_and_width",
    "key_value",
    "positive",
    "some_of",
    "torch_device",
    "writable_folder",
]


class Parser(argparse.ArgumentParser):
    """Errors in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def count(text: str) -> int:
    """The ``text`` of an argument as a whole number from 0."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text!r}")
    return int(text)


def positive(text: str) -> int:
    """The ``text`` of an argument as a whole number from 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


def fraction(text: str) -> float:
    """The ``text`` of an argument as a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


def height_and_width(text: str) -> tuple[int, int]:
    """The ``text`` of an argument as height and width: 192x256, or 256 for a square."""
    found = re.fullmatch(r"(\d{1,9})(?:x(\d{1,9}))?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected a side such as 256, or 192x256, got {text!r}")
    return int(found[1]), int(found[2] or found[1])


def some_of(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """The type of an argument that lists ``known`` names, separated by commas; each counts once.

    Example:
        >>> from maskattn_kernels.common.command_line import some_of
        >>> some_of(("a", "b"))("b,b")
        ('b',)
    """

    def parse(text: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(text.split(",")))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(
                    f"expected some of {','.join(known)}, got {name!r}"
                )
        return names

    return parse


_WORDS = {
    **dict.fromkeys(("true", "yes", "on"), True),
    **dict.fromkeys(("false", "no", "off"), False),
    "null": None,
}


def key_value(text: str) -> tuple[str, Any]:
    """An option and its value, KEY=VALUE; the value is read like a plain value in YAML.

    true, yes and on are True; false, no and off are False; null is None; 3 is an int, 1.5 and 1e-3
    are floats. Anything else is text, and so is what stands in quotes.

    Example:
        >>> from maskattn_kernels.common.command_line import key_value
        >>> [key_value(text) for text in ("legend=yes", "count=3", "textures=shifted")]
        [('legend', True), ('count', 3), ('textures', 'shifted')]
    """
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    if value.lower() in _WORDS:
        return key, _WORDS[value.lower()]
    if re.fullmatch(r"[+-]?[0-9]+", value):
        return key, int(value)
    if re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", value, re.IGNORECASE):
        return key, float(value)
    quoted = re.fullmatch(r"""(["'])(.*)\1""", value)
    return key, quoted[2] if quoted else value


def writable_folder(name: str | Path) -> Path:
    """The folder ``name``, which can be written to; it is made if it is not there.

    Raises:
        ValueError: it cannot be made or written to.
    """
    path = Path(name)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out: cannot make the folder {path}: {error.strerror}") from None
    if not os.access(path, os.W_OK):
        raise ValueError(f"out: cannot write to the folder {path}")
    return path


def torch_device(name: str | torch.device) -> torch.device:
    """A device by its name; "auto" is a GPU where there is one.

    Raises:
        ValueError: torch knows no such device, or it is not here.

    Example:
        >>> from maskattn_kernels.common.command_line import torch_device
        >>> torch_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
        raise ValueError(f"device: {name!r} cannot be used here: {reason}") from None
