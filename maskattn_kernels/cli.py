# SPDX-License-Identifier: BSD-3-Clause
"""The command ``maskattn``: info, bench, demo, tiles, check-data, train, eval, predict.

Exit codes: 0 done, 1 failed while running, 2 wrong arguments, 130 interrupted. An error is one line
on stderr. Progress goes to stderr, results to stdout.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from maskattn_kernels import __version__, backends, explain
from maskattn_kernels.backends.tuning import ARCHS
from maskattn_kernels.benchmark import report, suite
from maskattn_kernels.benchmark.cases import DTYPES
from maskattn_kernels.benchmark.machine import gpu_facts, machine_facts
from maskattn_kernels.benchmark.tune import tune_tiles
from maskattn_kernels.common.command_line import Parser, positive

#: What the extras bring, as it is imported.
EXTRAS = (
    "PIL",
    "huggingface_hub",
    "jsonargparse",
    "matplotlib",
    "numpy",
    "pycocotools",
    "pytorch_lightning",
    "safetensors",
    "skimage",
    "sklearn",
    "tensorboard",
    "torchmetrics",
    "yaml",
)

#: Commands of the extra "segmentation": the module whose ``main`` takes the arguments, and help.
SEGMENTATION = {
    "check-data": ("data.command", "look at a data set: what it holds, and whether it can be used"),
    "train": ("training.command", "train a network that segments images"),
    "eval": ("scoring.command", "score a trained network on labelled images"),
    "predict": ("prediction.command", "segment images, a folder, a video or a camera"),
}


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with a word on what is left."""


def _dtypes(text: str) -> tuple[str, ...]:
    known = (*DTYPES, "float16")
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"expected some of {','.join(known)}, got {name!r}")
    return names


def _archs(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in ARCHS:
            raise argparse.ArgumentTypeError(f"expected some of {','.join(ARCHS)}, got {name!r}")
    return names


def _folder(text: str) -> Path:
    """A folder that can be written to, made if it is not there."""
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"cannot make the folder {text!r}: {error.strerror}"
        ) from None
    if not os.access(path, os.W_OK):
        raise argparse.ArgumentTypeError(f"cannot write to the folder {text!r}")
    return path


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="maskattn", description="Attention over selected tokens: see what it does here."
    )
    parser.add_argument("--version", action="version", version=f"maskattn_kernels {__version__}")
    commands = parser.add_subparsers(
        dest="command",
        required=True,
        metavar="{" + ",".join(("info", "bench", "demo", "tiles", *SEGMENTATION)) + "}",
    )

    commands.add_parser("info", help="versions, this machine, and which backend runs")

    bench = commands.add_parser(
        "bench", help="measure against the other ways to compute masked attention"
    )
    size = bench.add_mutually_exclusive_group()
    size.add_argument(
        "--grid",
        choices=("small", "full"),
        default="small",
        help="small: one image, keep 0.25, some 5 minutes (default); full: all, some 20 minutes",
    )
    size.add_argument(
        "--quick",
        dest="grid",
        action="store_const",
        const="quick",
        help="two shapes, about one minute",
    )
    bench.add_argument(
        "--dtype",
        type=_dtypes,
        default=DTYPES,
        help=f"comma-separated, of float32,bfloat16,float16 (default {','.join(DTYPES)})",
    )
    bench.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="default: a GPU if there is one",
    )
    bench.add_argument(
        "--tune", action="store_true", help="measure the tiles of the Triton kernels on this GPU"
    )
    bench.add_argument("--threads", type=positive, help="default: as many as torch chooses")
    bench.add_argument(
        "--resume",
        type=Path,
        metavar="JSON",
        help="go on with a run of the same grid: take what is missing, and again what others on "
        "this machine disturbed; the calmer of two measurements stays",
    )
    bench.add_argument(
        "--out",
        default="out/bench",
        metavar="DIR",
        help="folder for JSON and plots (default out/bench)",
    )

    demo = commands.add_parser(
        "demo", help="dense and masked U-Net on photographs, as a page in HTML"
    )
    demo.add_argument(
        "--out", default="out/demo", metavar="DIR", help="folder for the page (default out/demo)"
    )
    demo.add_argument("--threads", type=positive, help="default: as many as torch chooses")

    tiles = commands.add_parser(
        "tiles", help="compile the Triton kernels for GPUs that need not be here, and look inside"
    )
    tiles.add_argument("--arch", type=_archs, default=ARCHS, help=f"default {','.join(ARCHS)}")
    tiles.add_argument("--all", action="store_true", help="also the tiles that no call takes first")

    for name, (_, text) in SEGMENTATION.items():
        commands.add_parser(name, help=text)
    return parser


def info() -> None:
    """Print versions, the machine, every backend with its reasons, and what runs a plain call."""
    facts = machine_facts()
    flags = " ".join(facts["cpu_flags"]) or "none of interest"  # type: ignore[arg-type]
    python = platform.python_version()
    print(f"maskattn_kernels {__version__}, torch {torch.__version__}, python {python}")
    print(f"{facts['cpu']} ({facts['arch']}, {facts['threads']} threads; {flags})")
    print("backends, best first:")
    for record in backends():
        state = "can run" if record.available else "cannot run"
        print(f"  {record.name}: {state}")
        for reason in record.reasons:
            print(f"    {reason}")
        for key, value in record.build.items():
            print(f"    {key}: {value}")
    tokens = torch.empty(1, 1, 4096, 64)
    mask = torch.ones(1, 4096, dtype=torch.bool)
    chosen = explain(tokens, tokens, tokens, key_mask=mask)
    print(f"a float32 call on the CPU with 4096 tokens runs on: {chosen.backend}")


def progress(number: int, steps: int, label: str, row: dict[str, Any] | None, start: float) -> None:
    """One line on stderr for a finished step."""
    text = ""
    if row is None:
        pass
    elif "wrong" in row:
        text = f"WRONG: {row['wrong']}"
    elif "peers" in row:
        text = f"ours {report.duration(row['peers']['ours']['median'])}"
        for name, peer in row["peers"].items():
            if name != "ours" and "times_ours" in peer:
                text += f", {name} {peer['times_ours']:.2f}x"
    elapsed = int(time.monotonic() - start)
    clock = f"{elapsed // 60}:{elapsed % 60:02d}"
    print(
        f"[{number:>{len(str(steps))}}/{steps} {clock}] {label}  {text}".rstrip(),
        file=sys.stderr,
        flush=True,
    )


def bench(
    grid: str, dtypes: Sequence[str], device: str, out: Path, earlier: Path | None = None
) -> int:
    """Run a grid, or go on with an earlier run; print the report; leave JSON and plots."""
    steps = suite.plan(grid, dtypes, device)
    if earlier is None:
        results = suite.new_results(grid, device)
        path = suite.result_path(out, grid, results["machine"])
    else:
        try:
            results, path = suite.read_results(earlier, grid, steps, device), earlier
        except ValueError as error:
            print(f"maskattn bench: --resume: {error}", file=sys.stderr)
            return 2
    start = time.monotonic()
    try:
        for number, step, row in suite.run(steps, results, path):
            progress(number, len(steps), step.label, row, start)
    except KeyboardInterrupt:
        kept = f"; --resume goes on with {path}" if path.exists() else ""
        raise Interrupted(f"interrupted{kept}") from None
    print(report.text(results))
    print(f"\nwritten: {path}")
    try:
        from maskattn_kernels.benchmark import plots
    except ModuleNotFoundError as missing:
        print(_missing(missing, "no plots", "bench"), file=sys.stderr)
    else:
        for picture in plots.plot_all(results, path.with_suffix("")):
            print(f"written: {picture}")
    wrong = any("wrong" in row for section in suite.SECTIONS for row in results[section])
    return 1 if wrong else 0


def tune(dtypes: Sequence[str]) -> int:
    """Print lines for the table of tiles, measured on this GPU, as soon as each is known."""
    facts = gpu_facts()
    print(f"# {facts['gpu']}, {facts['gpu_arch']}, triton {facts['triton']}", flush=True)
    for ranking in tune_tiles(tuple(dtypes)):
        print(f"{ranking.kernel} {ranking.bits}: {ranking.line()}", flush=True)
        for tile, reason in ranking.failed.items():
            print(f"#   {tuple(tile)}: {reason}", flush=True)
    return 0


def demo(out: Path) -> int:
    """Run the comparison on photographs; leave a page in a folder."""
    try:
        from maskattn_kernels.demo import run
    except ModuleNotFoundError as missing:
        print(f"maskattn demo: {_missing(missing, 'cannot run', 'demo')}", file=sys.stderr)
        return 1
    start = time.monotonic()
    page = run.run(out, lambda number, steps, label: progress(number, steps, label, None, start))
    print(f"written: {page}")
    return 0


def tiles(archs: Sequence[str], every: bool) -> int:
    """Print what compilers make of the Triton kernels; 1 if one of them is not as it must be."""
    try:
        from maskattn_kernels.backends import triton_compile
    except ModuleNotFoundError as missing:
        if missing.name != "triton":
            raise
        hint = "cannot run: triton is not installed; pip install triton"
        print(f"maskattn tiles: {hint}", file=sys.stderr)
        return 1
    jobs = [j for j in triton_compile.jobs(tuple(archs)) if j.default or every]
    print(triton_compile.HEADER)
    faulty = 0
    for number, job in enumerate(jobs, start=1):
        print(f"\r[{number}/{len(jobs)}]", end="\r", file=sys.stderr, flush=True)
        report = triton_compile.compile_job(job)
        faulty += bool(triton_compile.faults(report))
        print(triton_compile.line(report), flush=True)
    print(f"{len(jobs)} kernels, {faulty} not as they must be")
    return 1 if faulty else 0


def segmentation(command: str, argv: Sequence[str]) -> int:
    """Hand arguments to a command of the extra; wrong input is one line and exit code 2."""
    try:
        module = importlib.import_module(
            f"maskattn_kernels.segmentation.{SEGMENTATION[command][0]}"
        )
    except ModuleNotFoundError as missing:
        text = _missing(missing, "cannot run", "segmentation")
        print(f"maskattn {command}: {text}", file=sys.stderr)
        return 1
    try:
        return module.main(argv)
    except ValueError as error:  # of our own, each names the argument or the file
        print(f"maskattn {command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _missing(error: ModuleNotFoundError, effect: str, extra: str) -> str:
    """The line about a missing extra; any other missing module is a fault of ours and is raised."""
    package = (error.name or "").split(".")[0]
    if package not in EXTRAS:
        raise error
    return f"{effect}: {package} is not installed; pip install 'maskattn_kernels[{extra}]'"


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "info":
        info()
        return 0
    if arguments.command == "tiles":
        return tiles(arguments.arch, arguments.all)
    suite.set_threads(arguments.threads)
    if arguments.command == "bench":
        if (arguments.tune or arguments.device == "cuda") and not torch.cuda.is_available():
            wanted = "--tune" if arguments.tune else "--device cuda"
            print(f"maskattn bench: {wanted} needs a GPU, and torch sees none", file=sys.stderr)
            return 2
        if arguments.tune:
            return tune(arguments.dtype)
        return bench(
            arguments.grid, arguments.dtype, arguments.device, arguments.out, arguments.resume
        )
    return demo(arguments.out)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code.

    Args:
        argv: arguments without the program's name; None = those of this process.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    name = f"maskattn {words[0] if words else ''}"
    try:
        if words and words[0] in SEGMENTATION:  # these have parsers of their own, loaded only now
            return segmentation(words[0], words[1:])
        arguments = make_parser().parse_args(words)
        if hasattr(arguments, "out"):
            try:
                arguments.out = _folder(arguments.out)
            except argparse.ArgumentTypeError as error:
                print(f"{name}: argument --out: {error}", file=sys.stderr)
                return 2
        return _run(arguments)
    except KeyboardInterrupt as stop:
        print(f"{name}: {str(stop) or 'interrupted'}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        text = " ".join(str(error).split()) or "no message"
        print(f"{name}: {type(error).__name__}: {text}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
