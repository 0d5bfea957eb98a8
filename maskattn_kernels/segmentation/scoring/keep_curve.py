# SPDX-License-Identifier: BSD-3-Clause
"""Accuracy against cost: a checkpoint at several keep ratios, from one reading of the data."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from maskattn_kernels.common.background import ahead, batched, map_ahead
from maskattn_kernels.common.command_line import torch_device
from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.sample import Sample, SegmentationDataset
from maskattn_kernels.segmentation.model.cost import inference_cost
from maskattn_kernels.segmentation.scoring.evaluation import Tally, check_classes, labelled

__all__ = ["curve_table", "keep_curve"]


def keep_curve(
    checkpoint: Checkpoint,
    dataset: SegmentationDataset,
    keeps: Sequence[float],
    *,
    selector: str | None = None,
    batch_size: int = 16,
    device: str | torch.device = "auto",
    progress: Callable[[int], object] | None = None,
    failed: Callable[[DataError], object] | None = None,
    precision: str = "float32",
    compile: bool = False,
    tta: str | None = None,
    min_score: float = 0.0,
) -> list[dict[str, Any]]:
    """Score and measure a checkpoint at several keep ratios.

    Args:
        checkpoint: is not changed.
        dataset, batch_size, device, progress, failed, precision, compile, tta, min_score: as in
            `evaluate`.
        keeps: ratios, as in `Checkpoint.segment`.
        selector: as there.

    Returns:
        for each ratio "keep"; "cost", see `Cost`, of a frame of the size that most images have; and
        "scores" as `evaluate` returns them.

    Raises:
        DataError: as `evaluate`.
        TypeError, ValueError: the network's selector has no ratio, or there is no such selector.
    """
    check_classes(checkpoint, dataset)
    dials = [checkpoint.with_masks(keep, selector) for keep in keeps]
    tallies = [Tally(dial) for dial in dials]
    shapes: Counter[tuple[int, int]] = Counter()
    for samples in ahead(batched(_readable(dataset, failed), batch_size)):
        for dial, tally in zip(dials, tallies, strict=True):
            for found in dial.segment(
                samples,
                batch_size=batch_size,
                device=device,
                precision=precision,
                compile=compile,
                tta=tta,
                min_score=min_score,
            ):
                tally.add(found)
                shapes[found.frame_semantic.shape] += 1
        if progress is not None:
            progress(tallies[0].count)
    scores = [tally.scores(dataset) for tally in tallies]
    size = max(shapes, key=shapes.__getitem__) if shapes else checkpoint.size
    place = torch_device(device)
    costs = [
        inference_cost(
            dial.network.to(place).eval(),
            size,
            checkpoint.size,
            batch_size=batch_size,
            precision=precision,
            compile=compile,
            tta=tta,
        )
        for dial in dials
    ]
    rows = zip(keeps, costs, scores, strict=True)
    return [{"keep": keep, "cost": c.as_dict(), "scores": s} for keep, c, s in rows]


def _readable(
    dataset: SegmentationDataset, failed: Callable[[DataError], object] | None
) -> Iterator[Sample]:
    def read(index: int) -> Sample | DataError:
        try:
            return labelled(dataset, index)
        except DataError as error:
            return error

    for sample in map_ahead(read, range(len(dataset))):
        if not isinstance(sample, DataError):
            yield sample
        elif failed is None:
            raise sample
        else:
            failed(sample)


def curve_table(rows: Sequence[dict[str, Any]]) -> str:
    """A curve for people: a row a ratio, scores at the images' own size.

    Args:
        rows: from `keep_curve`.
    """
    names = list(rows[0]["scores"]["original size"]["mean"]) if rows else []
    heads = ("keep", "GFLOPs", "ms", "images/s", *names)
    lines = [" ".join(f"{head:>8}" for head in heads)]
    for row in rows:
        cost, mean = row["cost"], row["scores"]["original size"]["mean"]
        cells = [f"{row['keep']:8g}", f"{cost['gflops']:8.2f}", f"{cost['latency_ms']:8.1f}"]
        cells.append(f"{cost['images_per_second']:8.1f}")
        cells += [f"{mean[name]:8.1f}" for name in names]
        lines.append(" ".join(cells))
    return "\n".join(lines)
