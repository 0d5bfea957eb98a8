# SPDX-License-Identifier: BSD-3-Clause
"""``maskattn predict``: label maps, panoptic files and panels of images."""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from maskattn_kernels.common.command_line import Parser, count, fraction, positive, torch_device
from maskattn_kernels.common.progress import Progress
from maskattn_kernels.models.selector_dial import Keep
from maskattn_kernels.segmentation.checkpoint_files import digest
from maskattn_kernels.segmentation.checkpoints import Checkpoint, as_checkpoint
from maskattn_kernels.segmentation.data.errors import DataError, told
from maskattn_kernels.segmentation.data.frame import as_size
from maskattn_kernels.segmentation.data.parts import spread
from maskattn_kernels.segmentation.drift import drift_of, tell_drift
from maskattn_kernels.segmentation.model.cost import inference_cost, peak_memory
from maskattn_kernels.segmentation.model.dialed import add_dial_arguments
from maskattn_kernels.segmentation.model.prepared import (
    add_inference_arguments,
    add_score_argument,
    inference_dtype,
)
from maskattn_kernels.segmentation.prediction.frames import frames
from maskattn_kernels.segmentation.prediction.writing import Writer
from maskattn_kernels.segmentation.runtimes import RUNTIMES, Exported
from maskattn_kernels.segmentation.tiling import OVERLAP, add_tile_arguments

__all__ = ["main", "predict", "summary_text"]


def predict(
    source: str | Path,
    checkpoint: Checkpoint | str | Path,
    out: str | Path,
    *,
    truth: str | Path | None = None,
    panels: int = 8,
    batch_size: int = 16,
    limit: int | None = None,
    recursive: bool = False,
    device: str | torch.device = "auto",
    precision: str = "float32",
    compile: bool = False,
    tta: str | None = None,
    min_score: float = 0.0,
    tiles: int | tuple[int, int] | None = None,
    overlap: float = OVERLAP,
    hybrid: float | None = None,
    keep: Keep | None = None,
    selector: str | None = None,
    runtime: str = "torch",
    exported: str | Path | None = None,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Segment a source of images, and write the results into a folder.

    While the network computes, threads read the next images and write the results before. An image
    that cannot be read is left out and told; the others are written.

    Args:
        source: an image, a folder, a video, or the number of a camera; see `frames`.
        checkpoint: a `Checkpoint`, or a folder or hub id for `Checkpoint.from_pretrained`.
        out: gets, each image under its own NAME,

            - ``labels/NAME.png``, of the image's size, whose pixels are the ids of the classes as
              in the data set's own masks, and ``classes.yaml``;
            - ``panoptic/NAME.png`` and ``panoptic.json``, COCO's panoptic format;
            - of a network that tells objects apart, ``instances/NAME.png``, the number of each
              pixel's object in 16 bits, and ``annotations.json``, COCO's format of instances;
            - ``images/``, links to the images, so that the folder can be opened as a data set;
            - ``panels/NAME.png`` and ``summary.json``.
        truth: folder of label PNGs of the same names, whose pixels are the classes' ids; panels
            then show the errors.
        panels: how many images get a panel, spread over the source; of a video or a camera, whose
            end is not known, the first ones.
        batch_size: images that go through the network together.
        limit: stop after this many images; a camera never stops by itself.
        recursive: also the images in folders of the folder; NAME then begins with theirs.
        device: to compute on; "auto" = a GPU if there is one. The network stays there.
        precision, compile, tta, min_score, tiles, overlap, hybrid, keep, selector: as in
            `Checkpoint.segment`.
        runtime: that runs the network: "torch"; or "onnxruntime" or "openvino", with ``exported``.
        exported: folder that `export` has made of this checkpoint, whose file runs in place of the
            network. Whole images are fitted into its size; what is missing is filled with grey.
        progress: called with the number of images that are done, after each image.

    Returns:
        the summary, as it is in ``summary.json``: rates, memory, and the network's cost for a frame
        of the size that most images had (measured at the end, which takes seconds); in
        "drift" whether the images look like those of the training, see `Drift.report`, None if the
        checkpoint does not know them; in "failed" a line for each file that cannot be used, in
        "notes" what else was left out.

    Raises:
        ValueError: source, checkpoint or truth cannot be used, no image can be read, or the folder
            holds files of a data set.
        KeyboardInterrupt: stopped, as is usual for a camera; the results so far are written.
        WriteError: the folder cannot be written to.
        ModuleNotFoundError: matplotlib is missing, which panels need.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from maskattn_kernels.segmentation import Checkpoint, Classes, SegmentationNetwork
        >>> from maskattn_kernels.segmentation import predict
        >>> classes = Classes(("sky", "car"), (False, True), ((0, 0, 255), (255, 0, 0)), (0, 1))
        >>> network = SegmentationNetwork(2, classes.things, width=4, depth=2)
        >>> checkpoint = Checkpoint(network, classes, size=32)  # or its folder
        >>> out = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (60, 40)).save(out / "street.png")
        >>> predict(out / "street.png", checkpoint, out, panels=0)["images"]
        1
        >>> sorted(path.name for path in out.glob("[a-o]*"))
        ['annotations.json', 'classes.yaml', 'images', 'instances', 'labels']
    """
    place = torch_device("cpu" if exported is not None and device == "auto" else device)
    images = frames(source, recursive=recursive)
    trained = as_checkpoint(checkpoint)
    loaded = trained.with_masks(keep, selector)
    file = _opened(trained, runtime, exported, inference_dtype(precision, place))
    if file is not None and place.type != "cpu":
        raise ValueError(f"device: expected cpu with an exported file, got {place}")
    for option, value in (("compile", compile or None), ("keep", keep), ("selector", selector)):
        if file is not None and value is not None:
            raise ValueError(f"{option}: expected none with an exported file, got {value!r}")
    start, stop = time.perf_counter(), None
    shown, failed = _spread(panels, images.count, limit), list[str]()
    shapes: Counter[tuple[int, int]] = Counter()
    computed = of = 0
    known = loaded.reference if file is None else None  # a file gives no features
    drift = drift_of(known, whole=tiles is None and hybrid is None)
    results = loaded.segment_stream(
        islice(images, limit),
        batch_size=batch_size,
        device=place,
        attended=shown,
        failed=lambda error: failed.append(str(error)),
        precision=precision,
        compile=compile,
        tta=tta,
        min_score=min_score,
        tiles=tiles,
        overlap=overlap,
        hybrid=hybrid,
        measured=drift is not None,
        exported=file,
    )
    writer = Writer(
        Path(out),
        loaded.classes,
        objects=loaded.network.task != "semantic",
        panels=shown,
        truth=truth,
    )
    try:
        with writer:
            for found in results:
                writer.add(found)
                shapes[found.frame_semantic.shape] += 1
                computed, of = computed + found.work.tiles, of + found.work.of
                if drift is not None:
                    drift.add(found)
                if progress is not None:
                    progress(writer.count)
            if failed and not writer.count:
                raise DataError(_none_of(failed))
    except KeyboardInterrupt as stopped:
        stop = stopped
    rate = writer.count / (time.perf_counter() - start)
    peak = peak_memory(place)
    dtype = inference_dtype(precision, place)
    size = max(shapes, key=shapes.__getitem__) if shapes else loaded.size
    if of:  # what goes through the network is tiles
        tile = loaded.size if tiles is None else as_size(tiles)
        size = (min(size[0], tile[0]), min(size[1], tile[1]))
    cost = inference_cost(
        loaded.network,
        size,
        loaded.size,
        batch_size=batch_size,
        precision=precision,
        compile=compile,
        tta=tta,
        exported=file,
    )
    masks = loaded.network.config if file is None else file.description
    summary = {
        "source": str(source),
        "checkpoint": None if isinstance(checkpoint, Checkpoint) else str(checkpoint),
        "images": writer.count,
        "images_per_second": rate,
        "network": cost.as_dict(),
        "share_of_network_rate": rate / cost.images_per_second,
        "peak_memory_mb": None if peak is None else peak / 2**20,
        "device": str(place),
        "precision": str(dtype).removeprefix("torch."),
        "compiled": compile,
        "tta": tta,
        "min_score": min_score,
        "runtime": f"torch {torch.__version__}" if file is None else file.name,
        "exported": None if exported is None else str(exported),
        "selector": masks["selector"],
        "keep": masks["keep"],
        "size": list(size),
        "tiles": {"computed": computed, "of": of},
        "drift": None if drift is None else drift.report(),
        "failed": failed + writer.failed,
        "notes": images.notes + writer.notes,
    }
    writer.write_text("summary.json", json.dumps(summary, indent=2) + "\n")
    if stop is not None:
        raise type(stop)(f"stopped after {writer.count} images; their results are in {out}")
    return summary


def _opened(
    checkpoint: Checkpoint, runtime: str, folder: str | Path | None, dtype: torch.dtype
) -> Exported | None:
    """The exported file in a ``folder``, if it was made of the ``checkpoint``; None without one."""
    if folder is None:
        if runtime != "torch":
            raise ValueError(
                f'exported: expected the folder of a `maskattn export` with the runtime "{runtime}"'
                ", got none"
            )
        return None
    exported = Exported(folder, runtime, dtype)
    if exported.description["weights_sha256"] != digest(checkpoint.network.state_dict()):
        raise ValueError(f"exported: expected a file made of this checkpoint, got {folder}")
    return exported


def _spread(panels: int, count: int | None, limit: int | None) -> Collection[int]:
    """Places of ``panels`` images, as far apart as ``count`` images allow."""
    if count is None:
        return range(panels)
    return spread(panels, count if limit is None else min(count, limit))


def _none_of(failed: Sequence[str]) -> str:
    if len(failed) == 1:
        return failed[0]
    return f"source: none of {len(failed)} images can be read; the first: {failed[0]}"


def summary_text(summary: dict[str, Any]) -> str:
    """A summary of `predict` for people."""
    network = summary["network"]
    lines = [
        f"{summary['images']} images, {summary['images_per_second']:.1f} images/s end to end "
        f"({summary['share_of_network_rate']:.0%} of the network alone)",
        f"network at {summary['size'][0]} x {summary['size'][1]} on {summary['device']} "
        f"in {summary['precision']}{', compiled' * summary['compiled']} by {summary['runtime']}"
        f"{', with the mirrored image' if summary['tta'] else ''}: "
        f"{network['latency_ms']:.1f} ms for one image (median), "
        f"{network['images_per_second']:.1f} images/s in batches, "
        f"{network['gflops']:.2f} GFLOPs an image, {network['parameters'] / 1e6:.2f} M parameters",
    ]
    tiles = summary["tiles"]
    if tiles["of"]:
        share = tiles["computed"] / tiles["of"]
        lines.append(f"{tiles['computed']} of {tiles['of']} tiles computed ({share:.0%})")
    if summary["peak_memory_mb"] is not None:
        lines.append(f"peak memory {summary['peak_memory_mb']:.0f} MB")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Run ``maskattn predict`` with the arguments ``argv``; returns the exit code."""
    parser = Parser(prog="maskattn predict", description="Segment images, a video or a camera.")
    add = parser.add_argument
    add("source", help="an image, a folder of images, a video, or the number of a camera")
    add(
        "--checkpoint",
        required=True,
        help="folder, as `maskattn train` leaves in OUT/best; or hf:owner/name",
    )
    add("--out", type=Path, default=Path("out/predict"), help="folder (default out/predict)")
    add("--truth", type=Path, help="folder of label PNGs: panels then show the errors")
    add(
        "--panels",
        type=count,
        default=8,
        metavar="N",
        help="panels of N images, spread over a folder (default 8)",
    )
    add("--batch_size", type=positive, default=16, help="default 16")
    add("--limit", type=positive, metavar="N", help="stop after N images")
    add("--device", default="auto", help="cpu, cuda, .. (default: a GPU if there is one)")
    add("--recursive", action="store_true", help="also the folders inside of a folder")
    add_inference_arguments(parser)
    add_dial_arguments(parser)
    add_score_argument(parser)
    add_tile_arguments(parser)
    add("--runtime", choices=RUNTIMES, default="torch", help="that runs it (default torch)")
    add("--exported", type=Path, metavar="DIR", help="what `maskattn export` has made of the "
        "checkpoint, for the runtime")  # fmt: skip
    add("--hybrid", type=fraction, metavar="SHARE", help="the image at low resolution, and then "
        "this share of its tiles, where it is least sure, again")  # fmt: skip
    given = parser.parse_args(argv)
    with Progress() as progress:
        summary = predict(
            given.source,
            given.checkpoint,
            given.out,
            truth=given.truth,
            panels=given.panels,
            batch_size=given.batch_size,
            limit=given.limit,
            recursive=given.recursive,
            device=given.device,
            precision=given.precision,
            compile=given.compile,
            tta=given.tta,
            min_score=given.min_score,
            tiles=given.tiles,
            overlap=given.overlap,
            hybrid=given.hybrid,
            keep=given.keep,
            selector=given.selector,
            runtime=given.runtime,
            exported=given.exported,
            progress=lambda done: progress.show(f"{done} images"),
        )
    print(summary_text(summary))
    tell_drift(summary["drift"])
    print(f"written: {given.out}")
    for note in summary["notes"]:
        print(f"note: {note}", file=sys.stderr)
    return told(summary["failed"])
