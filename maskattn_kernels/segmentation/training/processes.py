# SPDX-License-Identifier: BSD-3-Clause
"""The processes of a run: the first one speaks and writes for all of them."""

import sys

from pytorch_lightning.utilities import rank_zero_only

__all__ = ["is_first_process", "say"]


def is_first_process() -> bool:
    """Whether this is the first of the processes of a run, also before a trainer exists."""
    return getattr(rank_zero_only, "rank", 0) == 0


def say(text: str) -> None:
    """Print ``text`` as a line on stderr, once for all processes."""
    if is_first_process():
        print(text, file=sys.stderr, flush=True)
