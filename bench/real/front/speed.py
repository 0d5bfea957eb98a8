# SPDX-License-Identifier: BSD-3-Clause
"""How long an image takes the networks where an edge box would run them: one thread, ONNX.

Every network is exported with ``maskattn export``, masks inside, and its labels must equal those of
torch on 99.9% of the pixels of validation images in both runtimes before it is timed. All networks
in both runtimes are timed in one process and in turns, so that what else the machine does falls on
all alike.
"""

import json
import tempfile
from functools import partial
from pathlib import Path

import torch

from bench.deploy import RUNTIMES, make_checkpoint, measure
from bench.frm.plan import runs as frm_runs
from bench.real.front.plan import FRM, NETWORKS, TABLE, runs
from bench.real.plan import DATA, Run
from bench.trainings import ROOT
from maskattn_kernels.benchmark.machine import machine_facts
from maskattn_kernels.segmentation import Checkpoint, export
from maskattn_kernels.segmentation.exporting.checking import Check, scaled, some_images
from maskattn_kernels.segmentation.model.cost import gflops_of
from maskattn_kernels.segmentation.runtimes import Exported
from maskattn_kernels.segmentation.training.options import parse

SIZE, CLASSES = (192, 256), 11
IMAGES = DATA / "camvid" / "val" / "images"
OUT = ROOT / "out"


def runs_to_time() -> dict[str, Run]:
    """The run of the first seed of each network, by the network's name."""
    known = {run.name: run for run in (*frm_runs(), *runs())}
    groups = {**{name: f"{TABLE}-{name}" for name in NETWORKS}, **FRM}
    return {name: known[f"{group}-seed0"] for name, group in groups.items()}


def checkpoint_of(run: Run) -> Checkpoint:
    """What a run has trained; or, as the time does not depend on the weights, its network as made.

    Args:
        run: of this study or of bench/frm.
    """
    for study in ("front", "frm"):
        folder = OUT / study / run.name / "best"
        if folder.is_dir():
            return Checkpoint.from_pretrained(folder)
    print(f"{run.name}: not trained yet, timed with random weights", flush=True)
    options = parse(run.options).network.as_dict()
    del options["encoder_weights"], options["task"]
    return make_checkpoint(SIZE, CLASSES, **options)


def measure_all(rounds: int, file: Path) -> None:
    """Time all networks and write a row for each and each runtime, and what each network costs.

    Args:
        rounds: calls of each.
        file: to write.

    Raises:
        ValueError: there are no images.
        Mismatch: a file gives other labels than its network in torch.
    """
    torch.set_num_threads(1)  # runtimes take as many
    image = scaled(some_images(IMAGES)[:1], SIZE).permute(0, 2, 3, 1).contiguous().numpy()
    calls, costs = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, run in runs_to_time().items():
            out, made = Path(folder) / name, checkpoint_of(run)
            for check in export(made, out, SIZE, verify=IMAGES, labels_only=True)["checks"]:
                print(f"{name}: {Check(**check)}", flush=True)
            costs[name] = {
                "gflops": gflops_of(made.network, SIZE),
                "parameters": sum(p.numel() for p in made.network.parameters()),
            }
            for runtime in RUNTIMES:
                calls[f"{name}, {runtime}"] = partial(Exported(out, runtime).named, image)
        rows = measure(calls, rounds)
    facts = machine_facts()
    machine = {name: facts[name] for name in ("cpu", "threads", "torch")}
    report = {"machine": machine, "costs": costs, "rows": rows}
    file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"written: {file}")
