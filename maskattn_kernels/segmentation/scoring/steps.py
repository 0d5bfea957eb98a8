# SPDX-License-Identifier: BSD-3-Clause
"""The steps from a low resolution to all tiles: what each is worth, and what it costs."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.data.frame import frame_size
from maskattn_kernels.segmentation.data.sample import SegmentationDataset
from maskattn_kernels.segmentation.model.cost import gflops_of
from maskattn_kernels.segmentation.results import Segmentation
from maskattn_kernels.segmentation.scoring.evaluation import evaluate
from maskattn_kernels.segmentation.tiling import OVERLAP, Tiling

__all__ = ["Step", "hybrid_steps", "steps_table"]


@dataclass(frozen=True)
class Step:
    """A way to segment images, and what it gives.

    Attributes:
        name: of the way.
        scores: means over classes at original size, 0 to 100.
        share: of all tiles, those that were computed.
        milliseconds: of computing an image.
        gflops: of an image, by the size that most images have.
    """

    name: str
    scores: dict[str, float]
    share: float
    milliseconds: float
    gflops: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def hybrid_steps(
    checkpoint: Checkpoint,
    dataset: SegmentationDataset,
    shares: Sequence[float],
    *,
    tiles: int | tuple[int, int] | None = None,
    overlap: float = OVERLAP,
    each: Callable[[str, Segmentation], object] = lambda step, found: None,
    **options: Any,
) -> list[Step]:
    """Score images seen whole at low resolution, with some tiles beside it, and by all tiles.

    Args:
        checkpoint: to score.
        dataset: of its classes.
        shares: of the tiles, in steps between.
        tiles, overlap: as in `Checkpoint.segment`.
        each: called with the name of a step and each of its results.
        options: of `evaluate`.

    Raises:
        DataError: as `evaluate`.
    """
    size = checkpoint.size if tiles is None else tiles
    ways: list[tuple[str, float | None]] = [("whole at low resolution", 0.0)]
    ways += [(f"hybrid, {share:.0%} of the tiles", share) for share in shares]
    ways.append(("all tiles", None))
    plans = [Tiling(size, overlap, share) for _, share in ways]  # checked before any image
    return [
        _step(checkpoint, dataset, name, plan, partial(each, name), options)
        for (name, _), plan in zip(ways, plans, strict=True)
    ]


@dataclass
class _Sums:
    """Of the work for all images."""

    seconds: float = 0.0
    tiles: int = 0
    of: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)

    def add(self, found: Segmentation) -> None:
        self.seconds += found.work.seconds
        self.tiles += found.work.tiles
        self.of += found.work.of
        height, width = found.semantic.shape
        self.sizes[height, width] += 1


def _step(
    checkpoint: Checkpoint,
    dataset: SegmentationDataset,
    name: str,
    tiling: Tiling,
    each: Callable[[Segmentation], object],
    options: Mapping[str, Any],
) -> Step:
    sums = _Sums()

    def count(found: Segmentation) -> None:
        sums.add(found)
        each(found)

    how: dict[str, Any] = {"tiles": tiling.size, "overlap": tiling.overlap, "hybrid": tiling.share}
    scores = evaluate(checkpoint, dataset, each=count, **how, **options)
    images = sums.sizes.total()
    height, width = max(sums.sizes, key=lambda shape: sums.sizes[shape])
    gflops = 0.0
    if tiling.share is not None:
        kind = "fit" if checkpoint.frame == "own" else checkpoint.frame
        seen = frame_size(height, width, checkpoint.size, kind)
        gflops = gflops_of(checkpoint.network, seen)
    if sums.tiles:
        tile = (min(tiling.size[0], height), min(tiling.size[1], width))
        gflops += sums.tiles / images * gflops_of(checkpoint.network, tile)
    return Step(
        name,
        scores["original size"]["mean"],
        share=sums.tiles / max(1, sums.of),
        milliseconds=1e3 * sums.seconds / images,
        gflops=gflops,
    )


def steps_table(steps: Sequence[Step]) -> str:
    """Steps for people.

    Args:
        steps: from `hybrid_steps`.

    Example:
        >>> print(steps_table([Step("all tiles", {"mIoU": 61.25}, 1.0, 93.4, 8.16)]))
                      mIoU    tiles       ms   GFLOPs
        all tiles     61.2     100%     93.4     8.16
    """
    width = max(len(step.name) for step in steps)
    names = list(steps[0].scores)
    lines = [" ".join([" " * width, *(f"{n:>8}" for n in (*names, "tiles", "ms", "GFLOPs"))])]
    for step in steps:
        scores = (step.scores[name] for name in names)
        cells = ["       -" if math.isnan(score) else f"{score:8.1f}" for score in scores]
        cells += [f"{step.share:8.0%}", f"{step.milliseconds:8.1f}", f"{step.gflops:8.2f}"]
        lines.append(" ".join([f"{step.name:<{width}}", *cells]))
    return "\n".join(lines)
