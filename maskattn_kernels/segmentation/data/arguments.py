# SPDX-License-Identifier: BSD-3-Clause
"""How commands name a data set: ``--data NAME --root DIR --set KEY=VALUE``, the same in all."""

import argparse
from pathlib import Path

from maskattn_kernels.common.command_line import key_value
from maskattn_kernels.segmentation.data.opening import NAMES, open_dataset
from maskattn_kernels.segmentation.data.sample import SegmentationDataset

__all__ = ["add_data_arguments", "open_named"]


def add_data_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add ``--data``, ``--root`` and ``--set`` to the parser of a command.

    Args:
        parser: of the command.
        required: whether ``--data`` must be given.
    """
    names = ", ".join(NAMES)
    add = parser.add_argument
    add("--data", required=required, choices=NAMES, metavar="NAME", help=f"data set: {names}")
    add("--root", type=Path, metavar="DIR", help="folder of the data set; digit-scenes has none")
    add(
        "--set",
        type=key_value,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the data set, such as textures=shifted; may be given several times",
    )


def open_named(given: argparse.Namespace, split: str) -> SegmentationDataset:
    """Open a ``split`` of the data set that ``given`` names, by `add_data_arguments`.

    Raises:
        DataError: an unknown option, or files that cannot be used.
    """
    return open_dataset(given.data, given.root, split, **dict(given.set))
