# SPDX-License-Identifier: BSD-3-Clause
"""``maskattn predict``: label maps, panoptic files and panels of images.

While the network computes batches, threads read the images of the next ones and write the results
of those before.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskattn_kernels.common.background import ahead, batched, map_ahead
from maskattn_kernels.common.command_line import Parser, count, positive, torch_device
from maskattn_kernels.segmentation.data.augmentation import fit
from maskattn_kernels.segmentation.data.sample import Sample
from maskattn_kernels.segmentation.model.checkpoints import Checkpoint
from maskattn_kernels.segmentation.model.cost import measure_cost, peak_memory
from maskattn_kernels.segmentation.model.grouping import Panoptic, group
from maskattn_kernels.segmentation.model.network import Outputs
from maskattn_kernels.segmentation.prediction.frames import Frame, frames
from maskattn_kernels.segmentation.prediction.panels import Attended
from maskattn_kernels.segmentation.prediction.prediction import Prediction
from maskattn_kernels.segmentation.prediction.writing import Writer

__all__ = ["main", "predict", "predictions", "summary_text"]


def predictions(
    checkpoint: Checkpoint,
    source: Iterable[Frame],
    *,
    batch_size: int = 16,
    attended: int = 0,
    device: str | torch.device = "cpu",
) -> Iterator[Prediction]:
    """Predict images one after another.

    Args:
        checkpoint: the network; it is moved to the device.
        source: images, as `frames` gives them; they are read in threads.
        batch_size: images that go through the network together.
        attended: for so many images, from the first, also give where the mask attends.
        device: to compute on.

    Raises:
        DataError: an image cannot be read.
    """
    network = checkpoint.network.to(device).eval()
    reader = _Reader(checkpoint.size)
    # On a CPU two batches at a time with half of the threads each: what reads and writes beside
    # them takes a core from one of them, and all threads of a single one would wait for it.
    threads = torch.get_num_threads()
    streams = 2 if threads > 1 and torch.device(device).type == "cpu" else 1

    @torch.inference_mode()
    def compute(batch: list[_Read]) -> tuple[list[_Read], Outputs, Panoptic]:
        if streams > 1:
            torch.set_num_threads(threads // streams)  # of this thread
        outputs = network(torch.stack([pixels for _, _, pixels in batch]).to(device))
        return batch, outputs, group(outputs, checkpoint.classes.things)

    batches = ahead(batched(map_ahead(reader, source), batch_size))
    done = 0
    try:
        for batch, outputs, found in map_ahead(compute, batches, streams):
            shown = max(0, min(len(batch), attended - done))
            yield from _single(batch, outputs, found, shown)
            done += len(batch)
    finally:
        torch.set_num_threads(threads)  # for threads that begin later


_Read = tuple[str, np.ndarray, torch.Tensor]


class _Reader:
    """Reads a frame and fits it to the network."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, frame: Frame) -> _Read:
        image = frame.read()
        square = fit(Sample(frame.name, image), self.size).image
        return frame.name, image, torch.from_numpy(square.transpose(2, 0, 1).copy())


@torch.inference_mode()
def _single(
    batch: list[_Read], outputs: Outputs, found: Panoptic, attended: int
) -> list[Prediction]:
    """The predictions of a batch, with maps of where the masks attend for the first of them."""
    semantic, instance, labels, scores = (part.cpu().numpy() for part in found)
    maps = _attended(outputs, attended) + [{}] * (len(batch) - attended)
    return [
        Prediction(name, image, semantic[i], instance[i], labels[i], scores[i], maps[i])
        for i, (name, image, _) in enumerate(batch)
    ]


def _attended(outputs: Outputs, count: int) -> list[dict[str, Attended]]:
    """Where each scale attends in each of the first ``count`` images."""
    maps: list[dict[str, Attended]] = [{} for _ in range(count)]
    for name, selection in outputs.selections.items():
        mask = selection.mask.expand(len(outputs.semantic), -1, -1)[:count].cpu().numpy()
        score = None if selection.score is None else selection.score[:count].float().cpu().numpy()
        for i in range(count):
            maps[i][name] = Attended(mask[i], None if score is None else score[i])
    return maps


def predict(
    source: str,
    checkpoint: str | Path,
    out: Path,
    *,
    truth: Path | None = None,
    panels: int = 8,
    batch_size: int = 16,
    limit: int | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Predict a source of images into a folder.

    Args:
        source: an image, a folder, a video, or the number of a camera; see `frames`.
        checkpoint: folder or hub id; see `Checkpoint.from_pretrained`.
        out: gets ``labels/NAME.png``, ``panoptic/NAME.png``, ``panoptic.json``, ``panels/NAME.png``
            and ``summary.json``; labels have the size of their image.
        truth: folder of label PNGs of the same names, whose pixels are the classes' ids; panels
            then show the errors.
        panels: how many images, from the first, get a panel.
        batch_size: images that go through the network together.
        limit: stop after so many images; a camera never stops by itself.
        device: "auto" = a GPU if there is one.

    Returns:
        the summary, as it is in ``summary.json``.

    Raises:
        ValueError: source, checkpoint or truth cannot be used.
        WriteError: the folder cannot be written to.
    """
    place = torch_device(device)
    loaded = Checkpoint.from_pretrained(checkpoint)
    loaded.network.to(place)
    cost = measure_cost(loaded.network, loaded.size, batch_size)
    start, done = time.perf_counter(), 0
    found = predictions(
        loaded,
        islice(frames(source), limit),
        batch_size=batch_size,
        attended=panels,
        device=place,
    )
    with Writer(out, loaded.classes, panels=panels, truth=truth) as writer:
        try:
            for done, prediction in enumerate(found, start=1):
                writer.add(prediction)
                if done % 100 == 0:
                    rate = done / (time.perf_counter() - start)
                    print(f"{done} images, {rate:.1f} images/s", file=sys.stderr, flush=True)
        except KeyboardInterrupt:  # the usual end of a camera
            print("\nstopped; finishing what was begun", file=sys.stderr)
    rate = done / (time.perf_counter() - start)
    peak = peak_memory(place)
    summary = {
        "source": source,
        "checkpoint": str(checkpoint),
        "images": done,
        "images_per_second": rate,
        "network": cost.as_dict(),
        "share_of_network_rate": rate / cost.images_per_second,
        "peak_memory_mb": None if peak is None else peak / 2**20,
        "device": str(place),
        "size": loaded.size,
    }
    writer.write_text("summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def summary_text(summary: dict[str, Any]) -> str:
    """A summary of `predict` for people."""
    network = summary["network"]
    lines = [
        f"{summary['images']} images, {summary['images_per_second']:.1f} images/s end to end "
        f"({summary['share_of_network_rate']:.0%} of the network alone)",
        f"network at {summary['size']} x {summary['size']} on {summary['device']}: "
        f"{network['latency_ms']:.1f} ms for one image (median), "
        f"{network['images_per_second']:.1f} images/s in batches, "
        f"{network['gflops']:.2f} GFLOPs an image, {network['parameters'] / 1e6:.2f} M parameters",
    ]
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
        help="folder, as `maskattn train` leaves in OUT/best; or hub id",
    )
    add("--out", type=Path, default=Path("out/predict"), help="folder (default out/predict)")
    add("--truth", type=Path, help="folder of label PNGs: panels then show the errors")
    add(
        "--panels",
        type=count,
        default=8,
        metavar="N",
        help="panels of the first N images (default 8)",
    )
    add("--batch_size", type=positive, default=16, help="default 16")
    add("--limit", type=positive, metavar="N", help="stop after N images")
    add("--device", default="auto", help="cpu, cuda, .. (default: a GPU if there is one)")
    given = parser.parse_args(argv)
    summary = predict(
        given.source,
        given.checkpoint,
        given.out,
        truth=given.truth,
        panels=given.panels,
        batch_size=given.batch_size,
        limit=given.limit,
        device=given.device,
    )
    print(summary_text(summary))
    print(f"written: {given.out}")
    return 0
