# SPDX-License-Identifier: BSD-3-Clause
"""What each step of `prepare_for_inference` is worth: the whole network, interleaved, one process.

    python bench/inference.py                 both presets; the rows go to bench/results/
    python bench/inference.py --compile       with torch.compile, which takes some minutes
    python bench/report.py --write            the rows as a table of docs/benchmarks.md

Every step must agree with the network as it is before it is timed. Times are CPU time of the
process, which other users of a machine disturb less than time on the wall; wall time is recorded
beside it. With two threads and more, CPU time has the waiting of the threads for each other in it.
"""

import argparse
import datetime
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

from maskattn_kernels.benchmark.machine import machine_facts
from maskattn_kernels.models import inference, prepare_for_inference
from maskattn_kernels.segmentation.model.network import Outputs, SegmentationNetwork
from maskattn_kernels.segmentation.model.prepared import images_together

RESULTS = Path(__file__).resolve().parent / "results"
SIDE, CLASSES, PRESETS = 128, 19, ("edge", "published")
AS_IT_IS = "as it is"
#: Accepted difference of the logits, of their standard deviation: the largest one in float32; the
#: mean in bfloat16, where a token at the border of a selection may change.
LARGEST, MEAN = 1e-4, 0.05


def make_network(**options: object) -> SegmentationNetwork:
    """Random weights, and norms with statistics that are far from those of a new network."""
    torch.manual_seed(0)
    network = SegmentationNetwork(CLASSES, things=(11, 12, 13), **options)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2.0)
    return network.eval()


def make_images(batch: int, side: int = SIDE) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, generator=generator)


def steps(
    network: SegmentationNetwork, images: Tensor, compiles: bool
) -> Iterator[tuple[str, Callable[[], Outputs]]]:
    """Calls by the name of their step, each with all steps before it."""

    def in_parts(module: nn.Module, dtype: torch.dtype) -> Callable[[], Outputs]:
        side = images.shape[-1]
        together = images_together(len(images), network, (side, side), dtype)

        def call() -> Outputs:
            outputs = [module(part) for part in images.split(together)]
            return outputs[0]

        return call

    float32, bfloat16 = torch.float32, torch.bfloat16
    packed = prepare_for_inference(network)
    with mock.patch.object(inference, "packs_layers", return_value=False):
        folded = prepare_for_inference(network)
    yield AS_IT_IS, lambda: network(images)
    yield "norms folded", lambda: folded(images)
    yield "layers packed, GELU joined", lambda: packed(images)
    if len(images) > 1:
        yield "in parts", in_parts(packed, float32)
    yield "bfloat16", in_parts(prepare_for_inference(network, bfloat16), bfloat16)
    if compiles:
        for dtype in (float32, bfloat16):
            compiled = prepare_for_inference(network, dtype, compile=True)
            yield f"compiled, {str(dtype)[6:]}", in_parts(compiled, dtype)


def difference(name: str, got: Tensor, expected: Tensor) -> dict[str, float]:
    """How far logits are off, of their standard deviation.

    Raises:
        ValueError: further than is accepted.
    """
    off = (got - expected[: len(got)]).abs() / expected.std()
    found = {"largest": off.max().item(), "mean": off.mean().item()}
    kind, accepted = ("mean", MEAN) if "bfloat16" in name else ("largest", LARGEST)
    if not found[kind] <= accepted:
        raise ValueError(f"{name}: the {kind} difference is {found[kind]:.1e} of the deviation")
    return found


@torch.inference_mode()
def measure(
    network: SegmentationNetwork, images: Tensor, rounds: int, compiles: bool = False
) -> list[dict[str, object]]:
    """A row a step: medians over rounds, and of ratios within rounds to the network as it is."""
    calls = dict(steps(network, images, compiles))
    expected = network(images).semantic
    off = {name: difference(name, call().semantic, expected) for name, call in calls.items()}
    clocks = {"cpu": time.process_time, "wall": time.perf_counter}
    taken: dict[str, dict[str, list[float]]] = {n: {c: [] for c in clocks} for n in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = {clock: read() for clock, read in clocks.items()}
            call()
            for clock, read in clocks.items():
                taken[name][clock].append(read() - start[clock])
    rows = []
    for name, times in taken.items():
        pairs = zip(times["cpu"], taken[AS_IT_IS]["cpu"], strict=True)
        rows.append(
            {
                "step": name,
                "batch": len(images),
                "threads": torch.get_num_threads(),
                "cpu_ms": 1e3 * statistics.median(times["cpu"]),
                "wall_ms": 1e3 * statistics.median(times["wall"]),
                "of_as_it_is": statistics.median(own / base for own, base in pairs),
                "rounds": rounds,
                "difference": off[name],
            }
        )
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--presets", nargs="+", default=PRESETS, choices=PRESETS)
    add("--batches", nargs="+", type=int, default=[1, 16])
    add("--threads", nargs="+", type=int, default=[1])
    add("--rounds", type=int, default=7, help="default 7")
    add("--compile", action="store_true")
    add(
        "--out", type=Path, help="JSON, one row a line (default bench/results/DATE-inference.jsonl)"
    )
    given = parser.parse_args(argv)
    now = datetime.datetime.now().astimezone()
    out = given.out or RESULTS / f"{now:%Y%m%d-%H%M%S}-inference.jsonl"
    with out.open("w", encoding="utf-8") as file:
        file.write(json.dumps(machine_facts()) + "\n")
        for preset in given.presets:
            network = make_network(preset=preset)
            for threads in given.threads:
                torch.set_num_threads(threads)
                for batch in given.batches:
                    rows = measure(network, make_images(batch), given.rounds, given.compile)
                    for row in rows:
                        file.write(json.dumps({"preset": preset, **row}) + "\n")
                        print(preset, json.dumps(row), flush=True)
                    file.flush()
    print(f"written: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
