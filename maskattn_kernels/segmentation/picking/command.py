# SPDX-License-Identifier: BSD-3-Clause
"""``maskattn pick``: which images of a folder to label next."""

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from maskattn_kernels.common.atomic import replace_file
from maskattn_kernels.common.command_line import Parser, count, positive
from maskattn_kernels.common.progress import Progress
from maskattn_kernels.common.text import quoted
from maskattn_kernels.segmentation.checkpoints import Checkpoint, as_checkpoint
from maskattn_kernels.segmentation.data.errors import DataError, told
from maskattn_kernels.segmentation.data.files import has_images
from maskattn_kernels.segmentation.model.prepared import PRECISIONS
from maskattn_kernels.segmentation.picking.picks_folder import (
    LIST,
    SHEET,
    check_folder,
    replace_links,
)
from maskattn_kernels.segmentation.picking.rules import RULES, choose
from maskattn_kernels.segmentation.picking.sheet import SHOWN, draw_sheet
from maskattn_kernels.segmentation.prediction.frames import frames
from maskattn_kernels.segmentation.prediction.panels import heat_colors

__all__ = ["main", "pick"]


def pick(
    folder: str | Path,
    checkpoint: Checkpoint | str | Path,
    count: int,
    out: str | Path,
    *,
    rule: str = RULES[0],
    seed: int = 0,
    recursive: bool = False,
    batch_size: int = 16,
    device: str | torch.device = "auto",
    precision: str = "float32",
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Choose the images of a folder whose labels would teach a network most.

    The network is asked how unsure it is of each image; labels are neither needed nor read. An
    image that cannot be read is left out and told.

    Args:
        folder: of images; or a data set in the layout of ``folder``, whose ``images/`` or
            ``train/images/`` are taken.
        checkpoint: a `Checkpoint`, or a folder or hub id for `Checkpoint.from_pretrained`.
        count: images to choose.
        out: gets ``picked.json``, the list; ``picked.png``, the first 48 of them, each beside where
            the network is unsure; and ``images/``, links to them.
        rule: "entropy+kmeans", "entropy+kcenter", "entropy", "kcenter" or "random", see `choose`.
        seed: of "random" and "entropy+kmeans".
        recursive: also the images in folders of the folder; names then begin with theirs.
        batch_size: images that go through the network together.
        device: to compute on; "auto" = a GPU if there is one. The network stays there.
        precision: as in `Checkpoint.segment`.
        progress: called with the number of images that are done, after each.

    Returns:
        what ``picked.json`` holds: in "picked" the name, file and mean entropy (nats) of each image
        in the order in which they were chosen; "mean_entropy" over all images, and over those that
        were picked; in "failed" a line for each image that cannot be read, in "notes" what else was
        left out.

    Raises:
        ValueError: the folder or the checkpoint cannot be used, the folder has fewer than ``count``
            images, or ``out`` holds images of others.
        WriteError: ``out`` cannot be written to.
        ModuleNotFoundError: matplotlib is missing.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from maskattn_kernels.segmentation import Checkpoint, Classes, SegmentationNetwork, pick
        >>> classes = Classes(("sky", "car"), (False, True), ((0, 0, 255), (255, 0, 0)), (0, 1))
        >>> network = SegmentationNetwork(2, classes.things, width=4, depth=2)
        >>> checkpoint = Checkpoint(network, classes, size=32)  # or its folder
        >>> folder = Path(tempfile.mkdtemp())
        >>> for level in (0, 90, 180):
        ...     Image.new("L", (60, 40), level).save(folder / f"{level}.png")
        >>> found = pick(folder, checkpoint, 2, folder / "picks")
        >>> found["images"], len(found["picked"]), sorted(found["picked"][0])
        (3, 2, ['entropy', 'file', 'name'])
    """
    if rule not in RULES:
        raise ValueError(f"rule: expected one of {quoted(RULES)}, got {rule!r}")
    where = Path(folder) if recursive else _with_images(Path(folder))
    if not where.is_dir():
        raise DataError(f"folder: expected a folder of images, got {folder}")
    images = frames(where, recursive=recursive)
    most = images.count or 0
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= most:
        raise DataError(f"count: expected 1 to {most}, the images of {where}, got {count!r}")
    out, failed = Path(out), list[str]()
    check_folder(out)
    heat_colors()  # if matplotlib is missing, it is better to know before all the work
    segment = partial(
        as_checkpoint(checkpoint).segment_stream,
        batch_size=batch_size,
        device=device,
        failed=lambda error: failed.append(str(error)),
        precision=precision,
        measured=True,
    )
    # All that is kept of an image: a row of the list, and a vector in half precision.
    rows, pooled = list[dict[str, Any]](), list[np.ndarray]()
    for found in segment(images):
        entropy = found.measured.statistics["entropy"]
        rows.append({"name": found.name, "file": str(found.sample.file), "entropy": entropy})
        pooled.append(found.measured.pooled.astype(np.float16))
        if progress is not None:
            progress(len(rows))
    if not rows:
        raise DataError(f"{where}: no image there can be read, such as {failed[0]}")
    entropies = np.array([row["entropy"] for row in rows])
    chosen = choose(rule, entropies, np.stack(pooled), min(count, len(rows)), seed)
    picked = [rows[number] for number in chosen]
    report: dict[str, Any] = {
        "folder": str(where),
        "checkpoint": None if isinstance(checkpoint, Checkpoint) else str(checkpoint),
        "rule": rule,
        "images": len(rows),
        "mean_entropy": {
            "all": float(entropies.mean()),
            "picked": float(entropies[chosen].mean()),
        },
        "picked": picked,
        "failed": failed,
        "notes": images.notes,
    }
    text = json.dumps(report, indent=2) + "\n"
    replace_file(out / LIST, lambda path: path.write_text(text, encoding="utf-8"))
    sheet = draw_sheet(segment(Path(row["file"]) for row in picked[:SHOWN]))
    replace_file(out / SHEET, lambda path: sheet.save(path, "PNG"))
    report["notes"] += replace_links(out, {_link(row): Path(row["file"]) for row in picked})
    return report


def _link(row: dict[str, Any]) -> str:
    """The file's name after the folders that are in the image's name."""
    return PurePosixPath(row["name"]).with_name(Path(row["file"]).name).as_posix()


def _with_images(folder: Path) -> Path:
    """The folder, or the one inside of it where a labelled data set has its images."""
    places = (folder, folder / "images", folder / "train" / "images")
    return next((place for place in places if place.is_dir() and has_images(place)), folder)


def main(argv: Sequence[str]) -> int:
    """Run ``maskattn pick`` with the arguments ``argv``; returns the exit code."""
    parser = Parser(prog="maskattn pick", description="Choose which images to label next.")
    add = parser.add_argument
    add("folder", help="a folder of images; or a labelled data set, whose images are taken")
    add("--checkpoint", required=True, help="folder as `maskattn train` leaves, or hf:owner/name")
    add("--count", type=positive, required=True, metavar="K", help="images to choose")
    add("--out", type=Path, default=Path("out/pick"), help="folder (default out/pick)")
    add("--rule", choices=RULES, default=RULES[0], help=f"default {RULES[0]}")
    add("--seed", type=count, default=0, help="of the draws (default 0)")
    add("--recursive", action="store_true", help="also the folders inside of the folder")
    add("--batch_size", type=positive, default=16, help="default 16")
    add("--device", default="auto", help="cpu, cuda, .. (default: a GPU if there is one)")
    add("--precision", choices=PRECISIONS, default="float32", help="default float32")
    given = parser.parse_args(argv)
    with Progress() as progress:
        report = pick(
            given.folder,
            given.checkpoint,
            given.count,
            given.out,
            rule=given.rule,
            seed=given.seed,
            recursive=given.recursive,
            batch_size=given.batch_size,
            device=given.device,
            precision=given.precision,
            progress=lambda done: progress.show(f"{done} images"),
        )
    for row in report["picked"]:
        print(f"{row['entropy']:.3f}  {row['file']}")
    entropy = report["mean_entropy"]
    print(
        f"picked {len(report['picked'])} of {report['images']} images of {report['folder']}: mean "
        f"entropy {entropy['picked']:.3f}, of all {entropy['all']:.3f}"
    )
    print(f"written: {given.out}")
    for note in report["notes"]:
        print(f"note: {note}", file=sys.stderr)
    return told(report["failed"])
