# SPDX-License-Identifier: BSD-3-Clause
"""The command ``maskattn``: a table of commands, each a module of its own with ``main(argv)``.

Exit codes: 0 done, 1 failed while running, 2 wrong arguments or input, 130 stopped by Ctrl-C, 143
stopped by SIGTERM. An error is one line on stderr, and with ``MASKATTN_DEBUG=1`` the traceback
before it. Progress goes to stderr, results go to stdout.
"""

import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NamedTuple

from maskattn_kernels import __version__
from maskattn_kernels.common.command_line import Parser
from maskattn_kernels.common.errors import CommandError
from maskattn_kernels.common.extras import missing_package
from maskattn_kernels.common.failures import known_failure
from maskattn_kernels.common.signals import Terminated, exit_code, handle, raise_interrupt


class Command(NamedTuple):
    """A row of the table."""

    module: str
    """Below ``maskattn_kernels``; imported when the command is called."""
    extra: str
    """Which brings the packages that the module imports."""
    help: str


COMMANDS = {
    "info": Command("info", "", "versions, this machine, and which backend runs"),
    "bench": Command(
        "benchmark.command", "bench", "measure against the other ways to compute masked attention"
    ),
    "demo": Command(
        "demo.command", "demo", "dense and masked U-Net on photographs, as a page in HTML"
    ),
    "tiles": Command(
        "tiles", "", "compile the Triton kernels for GPUs that need not be here, and look inside"
    ),
    "check-data": Command(
        "segmentation.data.command",
        "train",
        "look at a data set: what it holds, and whether it can be used",
    ),
    "train": Command(
        "segmentation.training.command", "train", "train a network that segments images"
    ),
    "eval": Command(
        "segmentation.scoring.command", "train", "score a trained network on labelled images"
    ),
    "predict": Command(
        "segmentation.prediction.command",
        "predict",
        "segment images, a folder, a video or a camera",
    ),
    "cost": Command(
        "segmentation.scoring.cost_command",
        "predict",
        "operations, time and memory of a network, and the share of its parts",
    ),
    "export": Command(
        "segmentation.exporting.command", "onnx", "write a trained network for other runtimes"
    ),
    "report": Command(
        "segmentation.reporting.command",
        "train",
        "score and time all ways to run a trained network here, and recommend one",
    ),
    "pick": Command(
        "segmentation.picking.command", "predict", "choose which images of a folder to label next"
    ),
}


def make_parser() -> Parser:
    """For what comes before a command's own arguments: help, version, and names that are wrong."""
    parser = Parser(
        prog="maskattn",
        description="Attention over selected tokens: see what it does here.",
        epilog="maskattn COMMAND --help shows the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"maskattn_kernels {__version__}")
    names = "{" + ",".join(COMMANDS) + "}"
    commands = parser.add_subparsers(dest="command", required=True, metavar=names)
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.help, add_help=False)
    return parser


def run(command: Command, argv: Sequence[str]) -> int:
    """Import the module of a command and call its ``main``; returns the exit code.

    Raises:
        CommandError: a package is not installed that an extra brings.
    """
    try:
        module = importlib.import_module(f"maskattn_kernels.{command.module}")
        with handle(raise_interrupt):
            return module.main(argv)
    except ModuleNotFoundError as error:  # some are imported only when they are needed
        raise CommandError(f"cannot run: {missing_package(error, command.extra)}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code.

    Args:
        argv: arguments without the program's name; None = those of this process.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name in letters that it lacks ends no command
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return answer(sys.argv[1:] if argv is None else list(argv))
        finally:  # not left to Python, which would tell of a reader that has left
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def answer(words: Sequence[str]) -> int:
    """Run the command that ``words`` ask for; returns its exit code, errors told in a line."""
    if not words or words[0] not in COMMANDS:
        make_parser().parse_args(words)  # prints help, the version, or the error, and exits
    name = f"maskattn {words[0]}"
    debug = os.environ.get("MASKATTN_DEBUG", "") not in ("", "0")
    try:
        return run(COMMANDS[words[0]], words[1:])
    except KeyboardInterrupt as stop:
        what = "terminated" if isinstance(stop, Terminated) else "interrupted"
        print(f"{name}: {str(stop) or what}", file=sys.stderr)
        return exit_code(stop)
    except BrokenPipeError:
        raise
    except Exception as error:
        text = " ".join(str(error).split()) or "no message"
        if debug:
            traceback.print_exc()
        # A ValueError of ours names the argument or the file that is wrong.
        if isinstance(error, ValueError | CommandError):
            print(f"{name}: {text}", file=sys.stderr)
            return 2 if isinstance(error, ValueError) else 1
        if known := known_failure(error):
            print(f"{name}: {known}", file=sys.stderr)
            return 1
        where = "" if debug else " (MASKATTN_DEBUG=1 shows where)"
        print(f"{name}: {type(error).__name__}: {text}{where}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
