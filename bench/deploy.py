# SPDX-License-Identifier: BSD-3-Clause
"""How fast exported networks are where they run: masks inside against dense, runtime by runtime.

    python bench/deploy.py                    both presets, one image; rows go to bench/results/
    python bench/deploy.py --compile          with torch.compile, which takes some minutes

Random weights, 19 classes, a quarter of queries and of keys. Every file must give the labels of
torch on 99.9% of the pixels of real pictures before it is timed; int8 and bfloat16, which change
some, are timed alone: what they cost is a matter of a trained network. All contestants run in one
process, in turns. Times are CPU time of the process, and wall time beside it, as in inference.py.
"""

import argparse
import datetime
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from maskattn_kernels.benchmark.machine import machine_facts
from maskattn_kernels.models import prepare_for_inference
from maskattn_kernels.segmentation import Checkpoint, Classes, SegmentationNetwork, export
from maskattn_kernels.segmentation.exporting.checking import scaled, some_images
from maskattn_kernels.segmentation.exporting.int8 import quantise
from maskattn_kernels.segmentation.runtimes import Exported

RESULTS = Path(__file__).resolve().parent / "results"
SIDE, CLASSES, PRESETS = 128, 19, ("edge", "published")
MASKED, DENSE = {"selector": "gumbel-topk"}, {"selector": "none", "core": "sdpa"}
RUNTIMES = ("onnxruntime", "openvino")
#: What is compared: the slower and the faster, each the best of some contestants.
RATIOS = {
    "best dense export / our best": (
        ("onnxruntime, dense", "openvino, dense"),
        ("torch", "torch, compiled", "onnxruntime", "openvino"),
    ),
    "onnxruntime, dense / with masks": (("onnxruntime, dense",), ("onnxruntime",)),
    "openvino, dense / with masks": (("openvino, dense",), ("openvino",)),
    "torch / our best file": (("torch", "torch, compiled"), ("onnxruntime", "openvino")),
    "onnxruntime, float32 / int8": (("onnxruntime",), ("onnxruntime, int8",)),
    "openvino, float32 / int8": (("openvino",), ("openvino, int8",)),
}

Call = Callable[[], object]


def make_checkpoint(
    size: int | tuple[int, int], count: int = CLASSES, **options: object
) -> Checkpoint:
    """A network with random weights for ``count`` classes, by options of `SegmentationNetwork`."""
    torch.manual_seed(0)
    network = SegmentationNetwork(count, task="semantic", **options).eval()
    names = tuple(f"class {number}" for number in range(count))
    classes = Classes(names, (False,) * count, ((0, 0, 0),) * count, tuple(range(count)))
    return Checkpoint(network, classes, size)


def contestants(
    folder: Path, image: Tensor, compiles: bool = False, **options: object
) -> dict[str, Call]:
    """Calls for one image by name; the files are made in a folder, and checked there."""
    side = image.shape[-1]
    masked, dense = (make_checkpoint(side, **options, **which) for which in (MASKED, DENSE))
    calls: dict[str, Call] = {}

    def add(name: str, module: torch.nn.Module) -> None:
        calls[name] = lambda: module(image)

    add("torch", prepare_for_inference(masked.network))
    add("torch, bfloat16", prepare_for_inference(masked.network, torch.bfloat16))
    add("torch, dense", prepare_for_inference(dense.network))
    if compiles:
        add("torch, compiled", prepare_for_inference(masked.network, compile=True))
        half = prepare_for_inference(masked.network, torch.bfloat16, compile=True)
        add("torch, compiled, bfloat16", half)
    for name, checkpoint in (("masked", masked), ("dense", dense)):
        checks = export(checkpoint, folder / name, side)["checks"]
        assert [check["runtime"] for check in checks] == list(RUNTIMES), "both must be installed"
    shutil.copytree(folder / "masked", folder / "int8")
    pictures = scaled(some_images(None), (side, side))
    quantise(folder / "int8" / "model.onnx", masked.network, pictures, "nhwc")
    for runtime in RUNTIMES:
        add(runtime, Exported(folder / "masked", runtime))
        add(f"{runtime}, dense", Exported(folder / "dense", runtime))
        add(f"{runtime}, int8", Exported(folder / "int8", runtime))
    add("openvino, bfloat16", Exported(folder / "masked", "openvino", torch.bfloat16))
    return calls


@torch.inference_mode()
def measure(calls: dict[str, Call], rounds: int) -> list[dict[str, object]]:
    """A row a contestant: the median and the least time over rounds, in ms."""
    clocks = {"cpu": time.process_time, "wall": time.perf_counter}
    taken: dict[str, dict[str, list[float]]] = {n: {c: [] for c in clocks} for n in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            start = {clock: read() for clock, read in clocks.items()}
            call()
            for clock, read in clocks.items():
                taken[name][clock].append(1e3 * (read() - start[clock]))
    return [
        {
            "name": name,
            "threads": torch.get_num_threads(),
            **{f"{clock}_ms": statistics.median(times[clock]) for clock in clocks},
            **{f"least_{clock}_ms": min(times[clock]) for clock in clocks},
            "rounds": rounds,
        }
        for name, times in taken.items()
    ]


def ratios(rows: Sequence[dict[str, object]], clock: str) -> dict[str, float]:
    """The ratios of `RATIOS`, of median times."""
    times = {str(row["name"]): float(str(row[f"{clock}_ms"])) for row in rows}

    def best(names: Sequence[str]) -> float:
        return min(times[name] for name in names if name in times)

    return {title: best(slower) / best(faster) for title, (slower, faster) in RATIOS.items()}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--presets", nargs="+", default=PRESETS, choices=PRESETS)
    add("--threads", nargs="+", type=int, default=[1])
    add("--rounds", type=int, default=15, help="default 15")
    add("--compile", action="store_true")
    add("--out", type=Path, help="JSON, one row a line (default bench/results/DATE-deploy.jsonl)")
    given = parser.parse_args(argv)
    now = datetime.datetime.now().astimezone()
    out = given.out or RESULTS / f"{now:%Y%m%d-%H%M%S}-deploy.jsonl"
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    with out.open("w", encoding="utf-8") as file:
        file.write(json.dumps(machine_facts()) + "\n")
        for threads in given.threads:
            torch.set_num_threads(threads)  # runtimes take as many
            for preset in given.presets:
                with tempfile.TemporaryDirectory() as folder:
                    calls = contestants(Path(folder), image, given.compile, preset=preset)
                    rows = measure(calls, given.rounds)
                for row in rows:
                    file.write(json.dumps({"preset": preset, **row}) + "\n")
                    times = f"{row['cpu_ms']:8.1f} ms of processor time, {row['wall_ms']:8.1f} wall"
                    print(f"{preset:10} {row['name']:26} {times}")
                for title, ratio in ratios(rows, "cpu").items():
                    print(f"{preset:10} {title:34} {ratio:5.2f}x", flush=True)
                file.flush()
    print(f"written: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
