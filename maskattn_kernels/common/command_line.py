# SPDX-License-Identifier: BSD-3-Clause
"""What the commands of this package share: errors in one line, and types of arguments."""

from __future__ import annotations

import argparse
from typing import NoReturn

import torch

__all__ = ["Parser", "count", "positive", "torch_device"]


class Parser(argparse.ArgumentParser):
    """Errors in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def count(text: str) -> int:
    """A whole number from 0."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text!r}")
    return int(text)


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


def torch_device(name: str) -> torch.device:
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
        reason = str(error).splitlines()[0]
        raise ValueError(f"device: {name!r} cannot be used here: {reason}") from None
