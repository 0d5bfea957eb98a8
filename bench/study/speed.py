# SPDX-License-Identifier: BSD-3-Clause
"""What the variants of the study cost: a training step, an image, and their memory, at 128 x 128.

    python -m bench.study.speed [--seconds 400] [--parts times memory loading prediction]

All variants run in one process, in turns, with random weights (the time of a step does not depend
on them). A step is forward, losses, backward and Muon on a batch of 8 scenes; in float32, and with
bfloat16 autocast as the study trains. An image is a batch of one, float32. Dense attention is
measured twice: by torch's SDPA, and by our own op with every token selected. Then the work around
the network: how many images a second one core loads, and the rate of `predict`, files to files, as
a share of the network's own; that needs the study's run "gumbel-topk-q+k-0.25-seed0".
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from bench.study.plan import HERE, NETWORKS, WITHOUT_LEGEND
from bench.study.tables import SDPA, SPEED
from bench.trainings import ROOT
from maskattn_kernels.benchmark.machine import machine_facts
from maskattn_kernels.benchmark.memory import in_fresh_process, peak_growth
from maskattn_kernels.benchmark.rows import Results, save
from maskattn_kernels.benchmark.timing import race
from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.data.batches import Batches
from maskattn_kernels.segmentation.model.losses import SegmentationLoss
from maskattn_kernels.segmentation.model.network import SegmentationNetwork
from maskattn_kernels.segmentation.prediction.command import predict
from maskattn_kernels.segmentation.training.module import SegmentationModule
from maskattn_kernels.segmentation.training.options import parse

SIDE, BATCH = 128, 8
OPTIONS = {
    SDPA: ("--network.selector=none", "--network.core=sdpa"),
    **{name: NETWORKS[name] for name in WITHOUT_LEGEND},
}


def network_of(variant: str, classes: int, things: tuple[int, ...]) -> SegmentationNetwork:
    torch.manual_seed(0)
    options = parse(["--config", str(HERE / "base.yaml"), *OPTIONS[variant]]).network
    return SegmentationNetwork(classes, things, **options.as_dict())


def step_of(variant: str, bf16: bool = False) -> Callable[[], None]:
    """A training step; always the same batch."""
    batches = Batches("digit-scenes", size=SIDE, batch_size=BATCH, count=BATCH)
    batch = next(iter(batches.train_loader(batches=1)))
    classes = batches.classes
    network = network_of(variant, len(classes), classes.things).train()
    loss = SegmentationLoss(classes.things, network.task)
    module = SegmentationModule(network, loss, classes, steps=1000)
    optimizer = module.configure_optimizers()["optimizer"]

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            total = loss(network(batch["image"]), batch)["loss"]
        total.backward()
        optimizer.step()

    step()
    return step


def inference_of(variant: str) -> Callable[[], None]:
    """One image through the network, no gradients."""
    batches = Batches("digit-scenes", size=SIDE, batch_size=1, count=1)
    (batch,) = next(iter(batches.val_loader()))
    image = batch["image"]
    network = network_of(variant, len(batches.classes), batches.classes.things).eval()

    @torch.inference_mode()
    def infer() -> None:
        network(image)

    infer()
    return infer


PARTS = ("times", "memory", "loading", "prediction")
KINDS: dict[str, Callable[[str], Callable[[], None]]] = {
    "step": step_of,
    "step, bf16": partial(step_of, bf16=True),
    "image": inference_of,
}


def memory(variant: str) -> int:
    """Bytes that a float32 step adds to its process, weights and optimizer state not counted."""
    return peak_growth(step_of(variant))


def loaded_per_second(batches_to_load: int = 32) -> float:
    """Scenes that one core makes and augments for training in a second."""
    batches = Batches("digit-scenes", size=SIDE, batch_size=BATCH)
    loader = iter(batches.train_loader(batches_to_load + 1))
    next(loader)  # reads the textures
    start = time.perf_counter()
    for _ in range(batches_to_load):
        next(loader)
    return batches_to_load * BATCH / (time.perf_counter() - start)


def prediction_shares(run: str = "gumbel-topk-q+k-0.25-seed0", repeats: int = 5) -> list[float]:
    """Rate of `predict`, files to files, over that of its network alone, ascending.

    With a network that the study trained: the time of grouping and writing depends on the objects
    that it finds. The network alone runs over the same images right before each prediction.
    """
    checkpoint = Checkpoint.from_pretrained(ROOT / "out" / "study" / run / "final")
    checkpoint.size = (SIDE, SIDE)
    network = checkpoint.network.eval()
    batches = Batches("digit-scenes", size=SIDE, batch_size=16)
    images = [part["image"] for batch in batches.val_loader() for part in batch]

    @torch.inference_mode()
    def network_alone() -> float:
        start = time.perf_counter()
        for batch in images:
            network(batch)
        return sum(map(len, images)) / (time.perf_counter() - start)

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "images").mkdir()
        scenes = batches.dataset("val")
        for scene in (scenes[i] for i in range(len(scenes))):
            Image.fromarray(scene.image).save(Path(folder) / "images" / f"{scene.name}.png")
        checkpoint.save_pretrained(Path(folder) / "network")
        shares = []
        for _ in range(repeats):
            alone = network_alone()
            shutil.rmtree(Path(folder) / "out", ignore_errors=True)
            summary = predict(
                f"{folder}/images", f"{folder}/network", Path(folder) / "out", device="cpu"
            )
            shares.append(summary["images_per_second"] / alone)
    return sorted(shares)


def measure_times(report: Results, seconds: float) -> None:
    for kind, make in KINDS.items():
        calls = {variant: make(variant) for variant in OPTIONS}
        found = race(calls, seconds / len(KINDS))
        del calls
        rows = {}
        for variant in OPTIONS:
            rows[variant] = asdict(found.timing(variant)) | {
                "faster than": {dense: found.ratio(dense, variant) for dense in (SDPA, "dense")},
            }
            print(f"{kind} {variant}: {rows[variant]}", flush=True)
        report[kind] = rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=400, help="for timing, about (default 400)"
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=PARTS,
        help="to measure; others stay",
    )
    given = parser.parse_args()
    report: Results = json.loads(SPEED.read_text(encoding="utf-8")) if SPEED.exists() else {}
    report |= {"side": SIDE, "batch": BATCH}
    for part in given.parts:
        if part == "times":
            measure_times(report, given.seconds)
        elif part == "memory":
            report["bytes"] = {variant: in_fresh_process(memory, variant) for variant in OPTIONS}
        elif part == "loading":
            report["loaded_per_second"] = loaded_per_second()
        else:
            report["prediction_shares"] = prediction_shares()
        report.setdefault("machines", {})[part] = machine_facts()
        save(report, SPEED)


if __name__ == "__main__":
    main()
