# SPDX-License-Identifier: BSD-3-Clause
"""What the line of a finished training on real images holds."""

from pathlib import Path

from bench.real.plan import DATA, Run
from bench.trainings import Record

#: Sizes of the frames of sets whose frames all have one.
SCORED_AT = {"camvid": (360, 480)}


def scored(run: Run, folder: Path) -> Record:
    """The scores of the best checkpoint on the validation images, its cost, and the options."""
    from maskattn_kernels.models import prepare_for_inference
    from maskattn_kernels.segmentation.checkpoints import Checkpoint
    from maskattn_kernels.segmentation.data.opening import open_dataset
    from maskattn_kernels.segmentation.model.cost import measure_cost
    from maskattn_kernels.segmentation.scoring.evaluation import evaluate

    checkpoint = Checkpoint.from_pretrained(folder / "best")
    dataset = open_dataset("folder", DATA / run.data, "val")
    found = evaluate(checkpoint, dataset, batch_size=4)
    own = checkpoint.frame == "own"
    height, width = SCORED_AT.get(run.data, checkpoint.size) if own else checkpoint.size
    ready = prepare_for_inference(checkpoint.network)
    cost = measure_cost(checkpoint.network, (height, width), batch_size=1, runs=ready)
    return {
        "options": list(run.changes),
        "scores": {size: scores["mean"] for size, scores in found.items()},
        "classes": found["original size"]["classes"],
        "cost": {"size": [height, width], **cost.as_dict()},
    }


def in_short(record: Record) -> str:
    mean = record["scores"]["original size"]
    return "  ".join(f"{name} {score:.1f}" for name, score in mean.items())
