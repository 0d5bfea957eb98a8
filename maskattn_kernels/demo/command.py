# SPDX-License-Identifier: BSD-3-Clause
"""``maskattn demo``: dense and masked U-Net on photographs, as a page in a folder."""

import time
from collections.abc import Sequence

from maskattn_kernels.benchmark.suite import set_threads
from maskattn_kernels.common.command_line import Parser, positive, writable_folder
from maskattn_kernels.common.steps import print_step
from maskattn_kernels.demo import run

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Run ``maskattn demo`` with the arguments ``argv``; returns the exit code."""
    parser = Parser(
        prog="maskattn demo", description="Dense and masked U-Net on photographs, as a page."
    )
    add = parser.add_argument
    add("--out", default="out/demo", metavar="DIR", help="folder of the page (default out/demo)")
    add("--threads", type=positive, help="default: as many as torch chooses")
    given = parser.parse_args(argv)
    out = writable_folder(given.out)
    set_threads(given.threads)
    start = time.monotonic()
    page = run.run(out, lambda number, steps, text: print_step(number, steps, text, start))
    print(f"written: {page}")
    return 0
