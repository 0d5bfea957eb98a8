# SPDX-License-Identifier: BSD-3-Clause
"""``maskattn export``: a checkpoint as a file for other runtimes, checked where it runs."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from maskattn_kernels import __version__
from maskattn_kernels.common.atomic import new_folder
from maskattn_kernels.common.command_line import Parser, fraction, positive
from maskattn_kernels.common.commit import own_commit
from maskattn_kernels.common.text import quoted
from maskattn_kernels.models.selector_dial import Keep
from maskattn_kernels.segmentation.checkpoint_files import digest, weights_file
from maskattn_kernels.segmentation.checkpoints import Checkpoint, as_checkpoint
from maskattn_kernels.segmentation.data.arguments import add_data_arguments, open_named
from maskattn_kernels.segmentation.data.frame import as_size
from maskattn_kernels.segmentation.data.opening import SPLITS, other_split
from maskattn_kernels.segmentation.data.sample import Sample, SegmentationDataset
from maskattn_kernels.segmentation.exporting.checking import (
    Check,
    Images,
    check,
    scaled,
    some_images,
)
from maskattn_kernels.segmentation.exporting.graph import LAYOUTS, check_objects, output_names
from maskattn_kernels.segmentation.exporting.int8 import (
    MAX_DROP,
    apart,
    quantise,
    quantise_and_score,
)
from maskattn_kernels.segmentation.exporting.onnx_file import write_onnx
from maskattn_kernels.segmentation.exporting.precisions import (
    FORMATS,
    PRECISIONS,
    check_precision,
)
from maskattn_kernels.segmentation.exporting.programs import compile_program, write_program
from maskattn_kernels.segmentation.exporting.tensorrt import faults_of
from maskattn_kernels.segmentation.model.dialed import add_dial_arguments
from maskattn_kernels.segmentation.runtimes import (
    DESCRIPTION,
    Exported,
    RuntimeMissing,
    runtimes_of,
)

__all__ = ["export", "main"]

AGREEMENT = 0.999


def export(
    checkpoint: Checkpoint | str | Path,
    out: str | Path,
    size: int | tuple[int, int],
    *,
    format: str = "onnx",
    batch: int | None = 1,
    precision: str = "fp32",
    layout: str = "nhwc",
    labels_only: bool = False,
    max_objects: int | None = None,
    keep: Keep | None = None,
    selector: str | None = None,
    verify: Images | None = None,
    min_agreement: float = AGREEMENT,
    calibrate: Images | None = None,
    data: SegmentationDataset | None = None,
    max_drop: float | None = MAX_DROP,
) -> dict[str, Any]:
    """Write a checkpoint as a file for other runtimes, with masks and preprocessing inside.

    The file takes uint8 images and gives labels. It is run in every runtime that is installed, and
    compared with the network in torch; where they differ, nothing is written.

    Args:
        checkpoint: a `Checkpoint`, or what `Checkpoint.from_pretrained` takes.
        out: folder that is not there yet; gets the file and ``export.json``, which describes it.
        size: height and width of the images. The masks keep a fixed number of tokens of it, so that
            it is part of the file.
        format: "onnx" = standard operators only; "pt2" = a program with our op for
            `torch.export.load`; "aoti" = one compiled for this kind of processor, also for C++.
        batch: images of a call; None = any number.
        precision: "fp32"; with "onnx" also "fp16" = weights in float16, computed with in float32,
            and "int8" = convolutions in int8, see `quantise`; with the others also "bf16" =
            convolutions and linear layers in bfloat16, see `prepare_for_inference`.
        layout: of the images, "nhwc" or "nchw".
        labels_only: without logits and maps of objects.
        max_objects: find objects inside of the file, at most so many of an image, see
            `ImageToLabels`; for networks with centres. None = it gives the maps that they are
            found in.
        keep, selector: attend to other tokens, see `Checkpoint.with_masks`.
        verify: images to compare on, of which at most 64 are taken; None = the three pictures of
            cells that come with the package.
        min_agreement: share of pixels, 0 to 1, whose label must be the same; with int8 the score
            counts in its place.
        calibrate: images for int8, of which at most 64 are taken, and none that is in ``data``.
        data: labelled images on which the file is scored before and after int8, see
            `quantise_and_score`.
        max_drop: points of mIoU that int8 may cost; None = it is not scored.

    Returns:
        what is in ``export.json``; in "checks" the comparisons, in "notes" which were not made, and
        with int8 what `quantise_and_score` returns.

    Raises:
        ValueError: an argument is wrong, the folder is there, or a selector keeps no fixed number
            of tokens.
        Mismatch: too many labels differ.
        LessAccurate: int8 costs more than ``max_drop``.
        ModuleNotFoundError: what writes the format is not installed.

    Example:
        >>> from maskattn_kernels.segmentation import export
        >>> export("nuclei", "out/nuclei-onnx", 256, precision="fp8")
        Traceback (most recent call last):
        ValueError: precision: expected "fp32", "fp16", "int8" with the format "onnx", got "fp8"
    """
    size, out = as_size(size), Path(out)
    for name, value, allowed in (("format", format, tuple(FORMATS)), ("layout", layout, LAYOUTS)):
        if value not in allowed:
            raise ValueError(f"{name}: expected one of {quoted(allowed)}, got {value!r}")
    check_precision(format, precision)
    if not 0 <= min_agreement <= 1:
        raise ValueError(f"min_agreement: expected a number from 0 to 1, got {min_agreement}")
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise ValueError(f"batch: expected a whole number from 1, or None, got {batch!r}")
    if precision == "int8":
        _check_int8(batch, calibrate, data, max_drop)
    with new_folder(out) as folder:
        images, notes = scaled(some_images(verify), size), list[str]()
        if precision == "int8" and calibrate is not None:
            calibration = scaled(_calibration(calibrate, data, notes), size)
        trained = as_checkpoint(checkpoint)
        turned = trained.with_masks(keep, selector)
        network = turned.network.cpu().eval()
        check_objects(network, max_objects)
        description: dict[str, Any] = {
            "format": 1,
            "kind": format,
            "file": "model.onnx" if format == "onnx" else "model.pt2",
            "precision": precision,
            "size": list(size),
            "batch": batch,
            "layout": layout,
            "outputs": list(output_names(network, labels_only, max_objects)),
            "max_objects": max_objects,
            "checkpoint": None if isinstance(checkpoint, Checkpoint) else str(checkpoint),
            "weights_sha256": digest(trained.network.state_dict()),
            "licence": None if isinstance(checkpoint, Checkpoint) else _licence(checkpoint),
            "classes": asdict(turned.classes),
            "task": network.task,
            "selector": network.config["selector"],
            "keep": network.config["keep"],
            "maskattn_kernels": __version__,
            "commit": own_commit(),
        }
        file = folder / description["file"]
        write = {"onnx": write_onnx, "pt2": write_program, "aoti": compile_program}[format]
        write(file, network, description)
        _write(folder, description)
        if precision == "int8":
            if data is None or max_drop is None:
                quantise(file, network, calibration, layout)
            else:
                description |= quantise_and_score(turned, file, calibration, layout, data, max_drop)
            min_agreement = 0.0
        checks = list[Check]()
        if format == "onnx":
            notes += [f"TensorRT would refuse the file: {fault}" for fault in faults_of(file)]
        for runtime in runtimes_of(format):
            try:
                exported = Exported(folder, runtime)
            except RuntimeMissing as missing:
                notes.append(f"not checked in {runtime}: {missing}")
                continue
            checks.append(check(exported, network, images, min_agreement))
        description |= {"checks": [asdict(found) for found in checks], "notes": notes}
        _write(folder, description)
    return description


def _check_int8(batch: int | None, calibrate: object, data: object, max_drop: float | None) -> None:
    if batch not in (1, None):
        raise ValueError(f"batch: expected 1 or dynamic with int8, got {batch}")
    if calibrate is None:
        raise ValueError("calibrate: expected images with int8, got none")
    if data is None and max_drop is not None:
        raise ValueError("data: expected labelled images with int8, for its cost in mIoU, got none")


def _calibration(
    calibrate: Images, scored: SegmentationDataset | None, notes: list[str]
) -> list[Sample]:
    """The images to calibrate on: those of ``calibrate`` that are not scored."""
    given = some_images(calibrate, "calibrate")
    kept = given if scored is None else apart(given, scored)
    if len(kept) < len(given):
        left_out = len(given) - len(kept)
        notes.append(f"calibrate: {left_out} images are scored too, and were left out")
    return kept


def _write(folder: Path, description: dict[str, Any]) -> None:
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")


def _licence(checkpoint: str | Path) -> str | None:
    """What the card beside the weights says; None where it says nothing."""
    card = weights_file(checkpoint).with_name("README.md")
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    found = re.search(r"^(?:licen[cs]e:|\| licen[cs]e \|)\s*([^|\n]+)", text, flags=re.M)
    return found[1].strip() if found else None


def _batch(text: str) -> int | None:
    return None if text == "dynamic" else positive(text)


def _side(text: str) -> int:
    try:
        return positive(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            "expected height and width in pixels, as masks keep a fixed number of tokens, got "
            f"{text!r}"
        ) from None


def main(argv: Sequence[str]) -> int:
    """Run ``maskattn export`` with the arguments ``argv``; returns the exit code."""
    parser = Parser(prog="maskattn export", description="Write a checkpoint for other runtimes.")
    add = parser.add_argument
    add("checkpoint", help="folder as `maskattn train` leaves, hf:owner/name, or nuclei")
    add("--out", type=Path, required=True, help="folder that is not there yet")
    add("--size", type=_side, nargs=2, required=True, metavar=("H", "W"), help="of the images")
    add("--format", choices=FORMATS, default="onnx", help="default onnx")
    add(
        "--batch",
        type=_batch,
        default=1,
        metavar="N",
        help="images of a call, or dynamic; default 1",
    )
    add("--precision", choices=PRECISIONS, default="fp32", help="default fp32")
    add("--layout", choices=LAYOUTS, default="nhwc", help="of the uint8 RGB images; default nhwc")
    add("--labels_only", action="store_true", help="without logits and maps of objects")
    add("--max_objects", type=positive, metavar="N",
        help="find objects inside of the file, at most N of an image")  # fmt: skip
    add_dial_arguments(parser)
    add("--verify", type=Path, metavar="DIR", help="images to compare on (default: three pictures "
        "of cells that come with the package)")  # fmt: skip
    add("--min_agreement", type=fraction, default=AGREEMENT, metavar="SHARE",
        help=f"of the pixels must have the label of torch (default {AGREEMENT})")  # fmt: skip
    add("--calibrate", type=Path, metavar="DIR",
        help="images for int8 (default: the other split of --data)")  # fmt: skip
    add_data_arguments(parser, required=False)
    add("--split", default="val", choices=SPLITS, help="of --data, to score int8 on; default val")
    add("--max_drop", type=float, default=MAX_DROP, metavar="POINTS",
        help=f"of mIoU that int8 may cost (default {MAX_DROP})")  # fmt: skip
    given = parser.parse_args(argv)
    calibrate, data = given.calibrate, None
    if given.data:
        data = open_named(given, given.split)
        if given.precision == "int8" and calibrate is None:
            calibrate = open_named(given, other_split(given.split))
    made = export(
        given.checkpoint,
        given.out,
        tuple(given.size),
        format=given.format,
        batch=given.batch,
        precision=given.precision,
        layout=given.layout,
        labels_only=given.labels_only,
        max_objects=given.max_objects,
        keep=given.keep,
        selector=given.selector,
        verify=given.verify,
        min_agreement=given.min_agreement,
        calibrate=calibrate,
        data=data,
        max_drop=given.max_drop,
    )
    if "mIoU" in made:
        scores, images = made["mIoU"], made["int8_images"]
        print(
            f"mIoU {scores['fp32']:.2f} in float32, {scores['int8']:.2f} in int8, on "
            f"{images['scored']} images; {images['decided']} others decided that the file is kept, "
            f"{images['calibrated']} were calibrated on"
        )
    for found in made["checks"]:
        print(Check(**found))
    file = given.out / made["file"]
    print(f"written: {file} ({file.stat().st_size / 1e6:.1f} MB)")
    for note in made["notes"]:
        print(f"note: {note}", file=sys.stderr)
    return 0
