# SPDX-License-Identifier: BSD-3-Clause
"""How long a frame takes the best network of each cost class.

    python -m bench.real.speed [--seconds 60] [--threads 2]     into bench/real/speed.json
    python -m bench.real table --write                          into the table of docs/real.md

One frame, float32, prepared for inference, random weights (the time does not depend on them), all
networks in one process and in turns. A prepared network must agree with its origin before it is
timed.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

import torch

from bench.frames import check_agrees, frame, write
from bench.real.plan import BEST, Run, runs
from bench.real.tables import SPEED, TABLE
from maskattn_kernels.benchmark.timing import race
from maskattn_kernels.models import prepare_for_inference
from maskattn_kernels.segmentation.model.network import SegmentationNetwork
from maskattn_kernels.segmentation.training.options import parse

CLASSES = 11
#: Accepted difference of the logits, of their standard deviation: the mean over pixels.
ACCEPTED = 1e-4


def network_of(run: Run) -> SegmentationNetwork:
    """The network that a run trains, with random weights."""
    torch.manual_seed(0)
    options = parse([*run.options, "--out=unused"]).network.as_dict()
    del options["encoder_weights"]
    return SegmentationNetwork(CLASSES, **{**options, "task": "semantic"}).eval()


@torch.inference_mode()
def ready(run: Run, size: Sequence[int]) -> Callable[[], object]:
    """A call of a run's network, prepared for inference, with an image of ``size``.

    Raises:
        ValueError: its logits are not those of the network.
    """
    image, network = frame(size), network_of(run)
    expected, prepared = network(image).semantic, prepare_for_inference(network)
    check_agrees(run.name, prepared(image).semantic, expected, ACCEPTED)

    def call() -> object:
        with torch.inference_mode():
            return prepared(image)

    return call


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--threads", type=int, default=2, help="default 2")
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    finished = TABLE.read()
    named = {run.row: run for run in runs() if run.table == "camvid-best"}
    calls = {
        row: ready(named[row], finished[named[row].name]["cost"]["size"])
        for row in BEST
        if named[row].name in finished
    }
    found = race(calls, given.seconds, focus=calls)
    took = {row: 1e3 * found.timing(row).median for row in calls}
    write(SPEED, {"ms": took})
    print(*(f"{row}: {ms:.1f} ms" for row, ms in took.items()), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
