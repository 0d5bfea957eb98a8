# SPDX-License-Identifier: BSD-3-Clause
"""``maskattn eval``: the scores of a checkpoint on labelled images, as tables and as JSON."""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskattn_kernels.common.atomic import replace_file
from maskattn_kernels.common.command_line import Parser, positive, torch_device
from maskattn_kernels.common.progress import Progress
from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.data.arguments import add_data_arguments, open_named
from maskattn_kernels.segmentation.data.errors import told
from maskattn_kernels.segmentation.data.frame import FrameKind
from maskattn_kernels.segmentation.data.opening import SPLITS
from maskattn_kernels.segmentation.drift import drift_of, tell_drift
from maskattn_kernels.segmentation.model.dialed import add_dial_arguments
from maskattn_kernels.segmentation.model.prepared import (
    add_inference_arguments,
    add_score_argument,
)
from maskattn_kernels.segmentation.scoring.evaluation import Scores, evaluate
from maskattn_kernels.segmentation.scoring.keep_curve import curve_table, keep_curve
from maskattn_kernels.segmentation.scoring.steps import hybrid_steps, steps_table
from maskattn_kernels.segmentation.tiling import add_tile_arguments, shares

__all__ = ["evaluate", "main", "tables"]


def tables(scores: dict[str, Scores], size: tuple[int, int], frame: FrameKind) -> str:
    """Scores for people: means, and a row a class with its number of labelled pixels.

    A class without anything to score has dashes.

    Args:
        scores: from `evaluate`.
        size, frame: of the checkpoint.
    """
    titles = {"original size": "at original size"}
    if frame != "own":  # else both are the same
        titles["network size"] = f"{_FRAMES[frame]} {size[0]} x {size[1]}"
    return "\n\n".join(_table(scores[w], titles[w]) for w in scores if w in titles)


_FRAMES = {"fit": "fitted into", "squeeze": "at"}


def _table(scores: Scores, title: str) -> str:
    rows = {**scores["classes"], "mean": scores["mean"]}
    columns = list(scores["mean"])
    width = max(len(name) for name in rows)
    lines = [title, " ".join([" " * width, *(f"{c:>6}" for c in columns), f"{'pixels':>10}"])]
    for name, row in rows.items():
        # A class has an IoU, their mean is the mIoU.
        values = (row.get(c, row.get("IoU", math.nan)) for c in columns)
        cells = ["     -" if math.isnan(value) else f"{value:6.1f}" for value in values]
        cells += [f"{row['pixels']:10d}"] if "pixels" in row else []
        lines.append(" ".join([f"{name:<{width}}", *cells]))
    return "\n".join(lines)


def _only_predicted(scores: dict[str, Scores]) -> list[str]:
    """Lines on classes that lower the mean though no label has them."""
    rows = scores["original size"]["classes"]
    names = [n for n, row in rows.items() if not row["pixels"] and not math.isnan(row["IoU"])]
    return [f"{name}: no pixel is labelled so, its IoU of 0 counts in mIoU" for name in names]


def _without_nan(value: Any) -> Any:
    """For JSON, which has no NaN."""
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def main(argv: Sequence[str]) -> int:
    """Run ``maskattn eval`` with the arguments ``argv``; returns the exit code."""
    parser = Parser(prog="maskattn eval", description="Score a checkpoint on labelled images.")
    add = parser.add_argument
    add("--checkpoint", required=True, help="folder as `maskattn train` leaves, or hf:owner/name")
    add_data_arguments(parser)
    add("--split", default="val", choices=SPLITS, help="default val")
    add("--batch_size", type=positive, default=16, help="default 16")
    add("--device", default="auto", help="cpu, cuda, .. (default: a GPU if there is one)")
    add_inference_arguments(parser)
    add_dial_arguments(parser, several=True)
    add_score_argument(parser)
    add_tile_arguments(parser)
    add("--hybrid", type=shares, metavar="SHARE,..", help="score instead the steps from a low "
        "resolution to all tiles: the least sure tiles again, these shares of them")  # fmt: skip
    add("--out", type=Path, default=Path("out/eval.json"), help="JSON (default out/eval.json)")
    given = parser.parse_args(argv)
    device = torch_device(given.device)
    checkpoint = Checkpoint.from_pretrained(given.checkpoint)
    keeps = given.keep or [None]
    if len(keeps) == 1:
        checkpoint = checkpoint.with_masks(keeps[0], given.selector)
    elif given.tiles or given.hybrid:
        raise ValueError(f"keep: expected one ratio with --tiles or --hybrid, got {keeps}")
    dataset = open_named(given, given.split)
    failed: list[str] = []
    options = {
        "batch_size": given.batch_size,
        "device": device,
        "failed": lambda error: failed.append(str(error)),
        "precision": given.precision,
        "compile": given.compile,
        "tta": given.tta,
        "min_score": given.min_score,
    }
    tiling = {"tiles": given.tiles, "overlap": given.overlap}
    report: dict[str, Any] = {
        "checkpoint": given.checkpoint,
        "data": given.data,
        "split": given.split,
        "size": list(checkpoint.size),
        "frame": checkpoint.frame,
        "precision": given.precision,
        "tta": given.tta,
        "min_score": given.min_score,
        "selector": given.selector or checkpoint.network.config["selector"],
        "keep": checkpoint.network.config["keep"] if len(keeps) == 1 else keeps,
        **tiling,
    }
    with Progress() as progress:
        if given.hybrid:
            steps = hybrid_steps(
                checkpoint,
                dataset,
                given.hybrid,
                each=lambda step, found: progress.show(f"{step}: image {found.place + 1}"),
                **options,
                **tiling,
            )
            report["steps"] = [_without_nan(step.as_dict()) for step in steps]
        elif len(keeps) > 1:
            rows = keep_curve(
                checkpoint,
                dataset,
                keeps,
                selector=given.selector,
                progress=lambda done: progress.show(f"{done}/{len(dataset)} images"),
                **options,
            )
            report["keeps"] = [_without_nan(row) for row in rows]
        else:
            drift = drift_of(checkpoint.reference, whole=given.tiles is None)
            scores = evaluate(
                checkpoint,
                dataset,
                progress=lambda done: progress.show(f"{done}/{len(dataset)} images"),
                measured=drift is not None,
                each=None if drift is None else drift.add,
                **options,
                **tiling,
            )
            report["scores"] = _without_nan(scores)
            report["drift"] = None if drift is None else drift.report()
    if given.hybrid:
        print(steps_table(steps))
    elif len(keeps) > 1:
        print(curve_table(rows))
    else:
        print(tables(scores, checkpoint.size, "own" if given.tiles else checkpoint.frame))
        for note in _only_predicted(scores):
            print(f"note: {note}", file=sys.stderr)
        tell_drift(report["drift"])
    failed = list(dict.fromkeys(failed))  # each step tells the same
    report |= {"images": len(dataset) - len(failed), "failed": failed}
    text = json.dumps(report, indent=2) + "\n"
    replace_file(given.out, lambda path: path.write_text(text, encoding="utf-8"))
    print(f"\nwritten: {given.out}")
    return told(failed)
