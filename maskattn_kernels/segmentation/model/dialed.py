# SPDX-License-Identifier: BSD-3-Clause
"""Copies of networks with another keep ratio or selector, kept until the network changes."""

import copy
from argparse import ArgumentParser
from collections.abc import Mapping

from maskattn_kernels.common.command_line import fraction
from maskattn_kernels.models.selector_dial import Keep, check_keep
from maskattn_kernels.segmentation.model.network import SegmentationNetwork
from maskattn_kernels.segmentation.model.prepared import remembered

__all__ = ["add_dial_arguments", "dialed"]

#: The selectors with a keep ratio, and that of all tokens. Which of them fit depends on a network.
DIALS = ("entropy", "random", "topk", "local", "none")


def add_dial_arguments(parser: ArgumentParser, several: bool = False) -> None:
    """Give a command that runs a network ``--keep`` and ``--selector``.

    Args:
        parser: of the command.
        several: ``--keep`` takes several ratios, and is then a list.
    """
    parser.add_argument(
        "--keep",
        type=fractions if several else fraction,
        metavar="RATIO,.." if several else "RATIO",
        help="fraction of tokens that attention takes, in place of the trained one"
        + ("; several, as in 0.05,0.1,0.25,1, are compared in a table" if several else ""),
    )
    parser.add_argument(
        "--selector",
        choices=DIALS,
        help="rule that chooses the tokens, in place of the trained one: entropy and random fit "
        "every network, topk and local one with learned masks, none takes all tokens",
    )


def fractions(text: str) -> list[float]:
    """Numbers from 0 to 1 with commas between them."""
    return [fraction(part) for part in text.split(",")]


def dialed(
    network: SegmentationNetwork, keep: Keep | None = None, selector: str | None = None
) -> SegmentationNetwork:
    """A copy of a network with another keep ratio or selector; the original is not changed.

    Args:
        network: trained, with any selector.
        keep: as in `SelectorDial.set_keep`; None = that of the network.
        selector: as in `SelectorDial.set_selector`; None = that of the network.

    Returns:
        the network itself if both are None; else a copy, the same one until the network changes.

    Raises:
        TypeError, ValueError: as those methods.
    """
    if keep is None and selector is None:
        return network

    def turned() -> SegmentationNetwork:
        made = copy.deepcopy(network)
        if selector is not None:
            made.set_selector(selector, keep)
        elif keep is not None:
            made.set_keep(keep)
        return made

    check_keep(1.0 if keep is None else keep, network.body.scales)
    ratios = tuple(sorted(keep.items())) if isinstance(keep, Mapping) else keep
    return remembered(network, (ratios, selector), turned)
