# SPDX-License-Identifier: BSD-3-Clause
"""``maskattn report``: what a checkpoint would score, take and need, in all ways to run it."""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from maskattn_kernels import __version__
from maskattn_kernels.common.command_line import Parser, height_and_width, positive, some_of
from maskattn_kernels.common.processor import processor_name
from maskattn_kernels.common.progress import Progress
from maskattn_kernels.segmentation.checkpoint_files import digest
from maskattn_kernels.segmentation.checkpoints import Checkpoint, as_checkpoint
from maskattn_kernels.segmentation.data.arguments import add_data_arguments, open_named
from maskattn_kernels.segmentation.data.errors import told
from maskattn_kernels.segmentation.data.frame import as_size
from maskattn_kernels.segmentation.data.opening import SPLITS, other_split
from maskattn_kernels.segmentation.data.parts import Part, spread
from maskattn_kernels.segmentation.data.sample import SegmentationDataset
from maskattn_kernels.segmentation.exporting.checking import Images, some_images
from maskattn_kernels.segmentation.exporting.int8 import apart
from maskattn_kernels.segmentation.exporting.precisions import PRECISIONS
from maskattn_kernels.segmentation.model.dialed import add_dial_arguments
from maskattn_kernels.segmentation.reporting.candidates import candidates, check_named, obstacle
from maskattn_kernels.segmentation.reporting.choice import metric_of, on_front, recommended
from maskattn_kernels.segmentation.reporting.finished import Finished
from maskattn_kernels.segmentation.reporting.images import look_through, usual_sizes
from maskattn_kernels.segmentation.reporting.measuring import Subject
from maskattn_kernels.segmentation.reporting.plot import plot_report
from maskattn_kernels.segmentation.reporting.work import measure
from maskattn_kernels.segmentation.reporting.writing import left_out, table, write_texts
from maskattn_kernels.segmentation.runtimes import RUNTIMES
from maskattn_kernels.segmentation.scoring.evaluation import check_classes

__all__ = ["main", "report"]

_SAMPLES = 8  # images for times and memory

Size = int | tuple[int, int] | None


def report(
    checkpoint: Checkpoint | str | Path,
    data: SegmentationDataset,
    out: str | Path,
    *,
    keep: Sequence[float] | None = None,
    selector: str | None = None,
    size: Sequence[Size] | None = None,
    precision: Sequence[str] | None = None,
    runtime: Sequence[str] | None = None,
    budget_ms: float | None = None,
    calibrate: Images | None = None,
    progress: Callable[[str], object] | None = None,
) -> dict[str, Any]:
    """Measure all ways to run a checkpoint on this machine, and recommend one.

    Each combination of keep ratio, size, precision and runtime is scored on labelled images at
    their own size, as `evaluate` does; its peak memory is that of a process of its own; and its
    time comes from a race in which all take turns. Files for ONNX Runtime and OpenVINO are made and
    checked by `export`. What is finished is kept: the same call resumes after an interrupt, and one
    with more combinations measures only what is new, and all times again.

    Args:
        checkpoint: a `Checkpoint`, or what `Checkpoint.from_pretrained` takes.
        data: labelled images of the checkpoint's classes.
        out: folder, a new one or that of the same report; gets ``report.json``, ``report.csv``,
            ``report.md``, ``report.png``, and the exported files in ``files/``.
        keep: fractions of tokens that attention takes; None = as trained.
        selector: rule that chooses them, see `Checkpoint.with_masks`; None = as trained.
        size: sizes that images are fitted into (or squeezed to, as the checkpoint does); None among
            them = each image at its own size, in torch only. None = the size at which `evaluate`
            shows the images to the network.
        precision: of "fp32", "fp16", "bf16", "int8"; None = all but fp16, which is as fast as fp32.
        runtime: of "torch", "onnxruntime", "openvino"; None = all.
        budget_ms: milliseconds that an image may take.
        calibrate: images for int8, of which at most 64 are taken, and none that is in ``data``.
        progress: called with a text that says what is done.

    Returns:
        what is in ``report.json``. Of "rows", those that could not be measured have a "reason", the
        others "scores", what `race` returns, "peak_memory_mb", "file_mb", and whether they are on
        the "front". "recommended" is one of them, "sentence"
        says why.

    Raises:
        ValueError: an argument is wrong, or names what none of the combinations could have.
        DataError: other classes, or no image with labels.
        KeyboardInterrupt: stopped; what is finished is in the folder.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from maskattn_kernels.segmentation import Checkpoint, SegmentationNetwork
        >>> from maskattn_kernels.segmentation import open_dataset, report
        >>> data = open_dataset("digit-scenes", split="val", count=2)
        >>> network = SegmentationNetwork(len(data.classes), task="semantic", width=4, depth=1)
        >>> checkpoint, out = Checkpoint(network, data.classes, 32), Path(tempfile.mkdtemp())
        >>> ways = {"keep": [0.1, 1], "precision": ["fp32"], "runtime": ["torch"]}
        >>> told = report(checkpoint, data, out, **ways)
        >>> [(row["keep"], row["size"], row["reason"]) for row in told["rows"]]
        [(0.1, [32, 32], None), (1, [32, 32], None)]
    """
    show = progress or (lambda text: None)
    check_named(runtime, precision)
    if budget_ms is not None and not (math.isfinite(budget_ms) and budget_ms > 0):
        raise ValueError(f"budget_ms: expected milliseconds above 0, got {budget_ms:g}")
    if calibrate is None and "int8" in (precision or ()):
        raise ValueError("calibrate: expected images with int8, got none")
    trained, out = as_checkpoint(checkpoint), Path(out)
    check_classes(trained, data)
    keeps: list[float | None] = [None] if keep is None else list(dict.fromkeys(keep))
    for ratio in keeps:
        trained.with_masks(ratio, selector)  # what does not fit is told before the work
    images = look_through(data, lambda done: show(f"{done}/{len(data)} images looked through"))
    sizes = usual_sizes(trained, images.sizes) if size is None else [_as_size(s) for s in size]
    calibration = None
    if calibrate is not None and obstacle("onnxruntime", "int8") is None:
        calibration = apart(some_images(calibrate, "calibrate"), images.dataset)
    settings: dict[str, Any] = {
        "weights_sha256": digest(trained.network.state_dict()),
        "selector": selector or trained.network.config["selector"],
        "images": len(images.dataset),
        "images_sha256": images.sha256,
        "threads": torch.get_num_threads(),
        "processor": processor_name(),
        "maskattn_kernels": __version__,
    }
    finished = Finished(out, settings)
    source = out / "checkpoint" if isinstance(checkpoint, Checkpoint) else checkpoint
    if isinstance(checkpoint, Checkpoint):
        checkpoint.save_pretrained(source)  # other processes read it
    samples = [images.dataset[place] for place in spread(_SAMPLES, len(images.dataset))]
    subject = Subject(trained, str(source), selector, images.dataset, samples, out / "files")
    planned = dict(candidates(keeps, list(dict.fromkeys(sizes)), precision, runtime))
    rows = measure(subject, planned, finished, calibration, show)
    metric = metric_of(trained.network.task)
    measured = [row for row in rows if row["reason"] is None]
    front = on_front(measured, metric)
    for row in rows:
        row["front"] = row in front
    chosen, sentence = recommended(measured, metric, budget_ms)
    made = {
        "checkpoint": None if isinstance(checkpoint, Checkpoint) else str(checkpoint),
        "settings": settings,
        "metric": metric,
        "budget_ms": budget_ms,
        "rows": rows,
        "recommended": chosen,
        "sentence": sentence,
        "failed": images.failed,
    }
    write_texts(out, made)
    if any(row["scores"][metric] is not None for row in measured):
        plot_report(made, out / "report.png")
    return made


def _as_size(size: Size) -> tuple[int, int] | None:
    return None if size is None else as_size(size)


def _sizes(text: str) -> list[tuple[int, int] | None]:
    """Sizes with commas between them; own = the images' own."""
    return [None if part == "own" else height_and_width(part) for part in text.split(",")]


def _milliseconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"expected milliseconds above 0, got {text!r}")
    return value


def main(argv: Sequence[str]) -> int:
    """Run ``maskattn report`` with the arguments ``argv``; returns the exit code."""
    parser = Parser(
        prog="maskattn report",
        description="Scores, time, memory and file size of a checkpoint on this machine, for each "
        "keep ratio, size, precision and runtime; and which one to take.",
    )
    add = parser.add_argument
    add("checkpoint", help="folder as `maskattn train` leaves, hf:owner/name, or nuclei")
    add_data_arguments(parser)
    add("--split", default="val", choices=SPLITS, help="default val")
    add("--limit", type=positive, metavar="N", help="N images, spread over the data set")
    add_dial_arguments(parser, several=True)
    add("--size", type=_sizes, metavar="HxW,..", help="sizes that images are fitted into; own = "
        "each at its own, in torch only (default: as `maskattn eval` takes them)")  # fmt: skip
    add("--precision", type=some_of(PRECISIONS), metavar="NAME,..",
        help=f"of {','.join(PRECISIONS)} (default all but fp16)")  # fmt: skip
    add("--runtime", type=some_of(tuple(RUNTIMES)), metavar="NAME,..",
        help=f"of {','.join(RUNTIMES)} (default all)")  # fmt: skip
    add("--budget_ms", type=_milliseconds, metavar="MS", help="that an image may take")
    add("--calibrate", type=Path, metavar="DIR",
        help="images for int8 (default: the other split of --data)")  # fmt: skip
    add("--out", type=Path, default=Path("out/report"),
        help="folder; the same again resumes (default out/report)")  # fmt: skip
    given = parser.parse_args(argv)
    check_named(given.runtime, given.precision)
    data: SegmentationDataset = open_named(given, given.split)
    if given.limit is not None:
        data = Part(data, spread(given.limit, len(data)))
    calibrate = given.calibrate
    if calibrate is None and "int8" in (given.precision or ("int8",)):
        calibrate = open_named(given, other_split(given.split))
    with Progress() as progress:
        made = report(
            given.checkpoint,
            data,
            given.out,
            keep=given.keep,
            selector=given.selector,
            size=given.size,
            precision=given.precision,
            runtime=given.runtime,
            budget_ms=given.budget_ms,
            calibrate=calibrate,
            progress=progress.show,
        )
    cells = table(made)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)))
    for line in left_out(made):
        print(f"note: {line}", file=sys.stderr)
    print(f"\n{made['sentence']}\nwritten: {given.out / 'report.md'}")
    return told(made["failed"])
