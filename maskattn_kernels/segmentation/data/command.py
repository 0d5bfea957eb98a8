# SPDX-License-Identifier: BSD-3-Clause
"""``maskattn check-data``: what a data set holds, and whether it can be used.

Prints images, sizes, objects, void and a histogram of classes for each split, and writes sheets of
samples with their labels. Lines that begin with "note:" say what a user should know, such as files
that are passed over. Exit codes: 0 = usable, 2 = not, with a line on stderr for each fault.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from maskattn_kernels.common.atomic import replace_file
from maskattn_kernels.common.command_line import Parser, count
from maskattn_kernels.common.progress import Progress
from maskattn_kernels.segmentation.data.arguments import add_data_arguments, open_named
from maskattn_kernels.segmentation.data.drawing import INK, PAPER, legend, overlay
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.findings import Findings, Survey, survey
from maskattn_kernels.segmentation.data.fonts import drawable_names, font, without_font
from maskattn_kernels.segmentation.data.frame import whole_frame
from maskattn_kernels.segmentation.data.opening import SPLITS
from maskattn_kernels.segmentation.data.sample import VOID, Classes, SegmentationDataset

__all__ = ["main", "sheet"]

PANEL = 256
MAX_FAULTS = 10
_BAR = 24
_LINE = 14
_SILENT = 5.0  # seconds before it says how far it is
_PROGRAM = "maskattn check-data"


def report(split: str, found: Findings, classes: Classes) -> str:
    """The findings as text."""
    part = "" if found.read == found.total else f" ({found.read} of them read)"
    lines = [f"{split}: {found.total} images{part}"]
    if not found.read:
        return lines[0]
    widths, heights = zip(*found.sizes, strict=True)
    size = f"{min(widths)} x {min(heights)}"
    if len(found.sizes) > 1:
        size = f"{size} to {max(widths)} x {max(heights)}, {len(found.sizes)} different"
    lines.append(f"  size      {size}")
    if found.objects:
        mean = sum(found.objects) / len(found.objects)
        lines.append(f"  objects   {min(found.objects)} to {max(found.objects)}, mean {mean:.1f}")
    else:
        lines.append("  objects   no labels of objects")
    everything = int(found.pixels.sum())
    lines.append(f"  void      {found.pixels[VOID] / everything:.1%} of the pixels")
    known = found.pixels[: len(classes)] / max(1, everything - int(found.pixels[VOID]))
    longest = max(len(name) for name in (*classes.names, "class"))
    lines.append(f"  {'class':{longest}}  kind    pixels  images")
    for number, name in enumerate(classes.names):
        kind = "thing" if classes.is_thing[number] else "stuff"
        bar = "#" * round(_BAR * known[number] / max(known.max(), 1e-12))
        row = f"{name:{longest}}  {kind}  {known[number]:7.2%}  {found.images[number]:6d}  {bar}"
        lines.append(f"  {row}".rstrip())
    return "\n".join(lines)


def sheet(samples: SegmentationDataset, count: int) -> Image.Image:
    """``count`` samples evenly spread: the image, and under it the labels laid over it.

    Objects have a white border, void is black.
    """
    count = min(count, len(samples))
    tiles = Image.new("RGB", (count * PANEL, 2 * PANEL + _LINE), PAPER)
    draw = ImageDraw.Draw(tiles)
    shown: set[int] = set()
    for column in range(count):
        sample = samples[column * len(samples) // count]
        frame = whole_frame(sample, (PANEL, PANEL), "fit")
        shown |= set(np.unique(frame.semantic).tolist())
        left = column * PANEL
        text = sample.name[: PANEL // 7]
        draw.text((left + 2, 1), text, fill=INK, font=font(10, text))
        tiles.paste(Image.fromarray(frame.image), (left, _LINE))
        labels = overlay(frame.image, frame.semantic, frame.instance, samples.classes)
        labels[frame.semantic == VOID] = 0
        tiles.paste(Image.fromarray(labels), (left, _LINE + PANEL))
    known = drawable_names(samples.classes)
    colors = dict(enumerate(zip(known, samples.classes.colors, strict=True)))
    colors[VOID] = ("void", (0, 0, 0))
    names = legend([colors[number] for number in sorted(shown)], tiles.width)
    picture = Image.new("RGB", (tiles.width, tiles.height + names.height), PAPER)
    picture.paste(tiles)
    picture.paste(names, (0, tiles.height))
    return picture


def _former_name(text: str) -> str:
    """The former spelling, ``check-data NAME``: the error names the one of today."""
    raise argparse.ArgumentTypeError(f"expected --data {text}")


def make_parser() -> argparse.ArgumentParser:
    """The command line of ``maskattn check-data``."""
    parser = Parser(prog=_PROGRAM, description="See what is in a data set, before any training.")
    add = parser.add_argument
    add("name", nargs="?", type=_former_name, help=argparse.SUPPRESS)
    add_data_arguments(parser)
    add("--split", choices=SPLITS, help="default: both")
    add(
        "--images",
        type=count,
        default=500,
        metavar="N",
        help="images to read of each split, evenly spread; 0 = all (default 500)",
    )
    add(
        "--out",
        type=Path,
        default=Path("out/check-data"),
        metavar="DIR",
        help="folder for the sheets of samples (default out/check-data)",
    )
    add("--samples", type=count, default=8, metavar="N", help="in a sheet; 0 = none (default 8)")
    return parser


def _one_line(text: str) -> str:
    """A note or a fault, also where the name of a file has line breaks."""
    return " ".join(text.split())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code.

    Args:
        argv: arguments after ``check-data``; None = those of this process.
    """
    given = make_parser().parse_args(argv)
    faults: list[str] = []
    sets: dict[str, SegmentationDataset] = {}
    for split in (given.split,) if given.split else SPLITS:
        try:
            sets[split] = open_named(given, split)
        except DataError as error:
            faults.append(str(error))
    if sets:
        classes = next(iter(sets.values())).classes
        things, stuff = len(classes.things), len(classes) - len(classes.things)
        print(f"{given.data}: {len(classes)} classes, {things} things, {stuff} stuff")
    with Progress(after=_SILENT) as progress:
        surveyed = (
            survey(sets, given.images, progress=progress.show) if sets else Survey({}, (), ())
        )
    for split, found in surveyed.splits.items():
        samples = sets[split]
        print(report(split, found, samples.classes))
        if given.samples and not found.faults:
            path = given.out / f"{given.data}-{split}.png"
            picture = sheet(samples, given.samples)
            replace_file(path, partial(picture.save, format="PNG"))
            print(f"  written: {path}")
    fonts = without_font(classes) if sets and given.samples else ()
    for note in (*surveyed.notes, *fonts):
        print(f"note: {_one_line(note)}")
    faults = list(dict.fromkeys([*faults, *surveyed.faults]))
    for fault in faults[:MAX_FAULTS]:
        print(f"{_PROGRAM}: {_one_line(fault)}", file=sys.stderr)
    if len(faults) > MAX_FAULTS:
        print(f"{_PROGRAM}: and {len(faults) - MAX_FAULTS} more faults", file=sys.stderr)
    return 2 if faults else 0
