# SPDX-License-Identifier: BSD-3-Clause
"""``maskattn tiles``: what compilers make of the Triton kernels, for GPUs that need not be here."""

import sys
from collections.abc import Sequence

from maskattn_kernels.backends.tuning import ARCHS
from maskattn_kernels.common.command_line import Parser, some_of
from maskattn_kernels.common.errors import CommandError

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Run ``maskattn tiles`` with arguments; 1 if a kernel is not as it must be."""
    parser = Parser(
        prog="maskattn tiles",
        description="Compile the Triton kernels for GPUs that need not be here, and look inside.",
    )
    add = parser.add_argument
    add("--arch", type=some_of(ARCHS), default=ARCHS, help=f"default {','.join(ARCHS)}")
    add("--all", action="store_true", help="also the tiles that no call takes first")
    given = parser.parse_args(argv)
    try:
        from maskattn_kernels.backends import triton_compile
    except ModuleNotFoundError as missing:
        if missing.name != "triton":
            raise
        raise CommandError("cannot run: triton is not installed; pip install triton") from None
    jobs = [job for job in triton_compile.jobs(given.arch) if job.default or given.all]
    print(triton_compile.HEADER)
    faulty = 0
    for number, job in enumerate(jobs, start=1):
        if sys.stderr.isatty():  # the next row is printed over it
            print(f"\r[{number}/{len(jobs)}]", end="\r", file=sys.stderr, flush=True)
        report = triton_compile.compile_job(job)
        faulty += bool(triton_compile.faults(report))
        print(triton_compile.line(report), flush=True)
    print(f"{len(jobs)} kernels, {faulty} not as they must be")
    return 1 if faulty else 0
