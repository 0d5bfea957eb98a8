# SPDX-License-Identifier: BSD-3-Clause
"""Trainings of FRMNet on CamVid: what each of its parts is worth, and the tables of docs/frm.md.

    python -m bench.frm train [--only PATTERN ..] [--jobs 2]   the runs not done yet
    python -m bench.frm table [--write]    the results as Markdown; into docs/frm.md
    python -m bench.frm list               the names of all runs

plan.py says what the runs are; see ../trainings.py for how runs are trained.
"""

import sys
from pathlib import Path
from typing import Any

from bench.frm.plan import MASKED_AFTERWARDS, attends_to_all, runs
from bench.frm.tables import TABLE, blocks
from bench.real.plan import DATA, Run
from bench.real.scoring import SCORED_AT, in_short, scored
from bench.trainings import ROOT, Record, Study, command_line


def told(run: Run, folder: Path) -> Record:
    """Scores and costs, also of the network masked afterwards if it was trained with all tokens."""
    from maskattn_kernels.segmentation import Checkpoint, evaluate, open_dataset

    checkpoint = Checkpoint.from_pretrained(folder / "best")
    afterwards: list[Record] = []
    for selector, keep in MASKED_AFTERWARDS if attends_to_all(run) else ():
        dataset = open_dataset("folder", DATA / run.data, "val")
        found = evaluate(checkpoint, dataset, batch_size=4, selector=selector, keep=keep)
        mean = found["original size"]["mean"]
        dial = checkpoint.with_masks(keep, selector)
        afterwards.append({"selector": selector, "keep": keep, **mean, **work(dial.network)})
    own = work(checkpoint.network)
    return {**scored(run, folder), "work": own, "afterwards": afterwards}


def work(network: Any) -> dict[str, float]:
    """GFLOPs of a frame at its own size, and of them the products of attention."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    image = torch.zeros(1, 3, *SCORED_AT["camvid"], dtype=torch.uint8)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(image)
    counts = counter.get_flop_counts()["Global"]
    attention = sum(count for op, count in counts.items() if str(op).startswith("maskattn"))
    return {"gflops": counter.get_total_flops() / 1e9, "attention_gflops": attention / 1e9}


STUDY = Study("bench.frm", tuple(runs()), TABLE, told, in_short, ROOT / "docs/frm.md", blocks)


if __name__ == "__main__":
    sys.exit(command_line(STUDY, str(__doc__), None))
