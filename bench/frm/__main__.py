# SPDX-License-Identifier: BSD-3-Clause
"""Trainings of FRMNet on CamVid: what each of its parts is worth, and the tables of docs/frm.md.

    python -m bench.frm train [--only PATTERN ..] [--jobs 2]   the runs not done yet
    python -m bench.frm table [--write]    the results as Markdown; into docs/frm.md
    python -m bench.frm list               the names of all runs

plan.py says what the runs are; see ../trainings.py for how runs are trained.
"""

import sys
from pathlib import Path

from bench.frm.plan import MASKED_AFTERWARDS, attends_to_all, runs
from bench.frm.tables import TABLE, blocks
from bench.real.plan import DATA, Run
from bench.real.scoring import SCORED_AT, in_short, scored
from bench.trainings import ROOT, Record, Study, command_line
from maskattn_kernels.segmentation import Checkpoint, evaluate, open_dataset
from maskattn_kernels.segmentation.model.cost_parts import PRODUCTS, gflops_by_part
from maskattn_kernels.segmentation.model.network import SegmentationNetwork


def told(run: Run, folder: Path) -> Record:
    """Scores and costs, also of the network masked afterwards if it was trained with all tokens."""
    checkpoint = Checkpoint.from_pretrained(folder / "best")
    dataset = open_dataset("folder", DATA / run.data, "val")
    afterwards: list[Record] = []
    for selector, keep in MASKED_AFTERWARDS if attends_to_all(run) else ():
        found = evaluate(checkpoint, dataset, batch_size=4, selector=selector, keep=keep)
        mean = found["original size"]["mean"]
        dial = checkpoint.with_masks(keep, selector)
        afterwards.append({"selector": selector, "keep": keep, **mean, **work(dial.network)})
    own = work(checkpoint.network)
    return {**scored(run, folder), "work": own, "afterwards": afterwards}


def work(network: SegmentationNetwork) -> dict[str, float]:
    """GFLOPs of a frame at its own size, and of them the products of attention."""
    parts = gflops_by_part(network, SCORED_AT["camvid"])
    return {"gflops": sum(parts.values()), "attention_gflops": parts[PRODUCTS]}


STUDY = Study("bench.frm", tuple(runs()), TABLE, told, in_short, ROOT / "docs/frm.md", blocks)


if __name__ == "__main__":
    sys.exit(command_line(STUDY, str(__doc__)))
