# SPDX-License-Identifier: BSD-3-Clause
"""How long a frame takes FRMNet with selected places, with all of them, and with torch's SDPA.

    python -m bench.frm.speed [--seconds 60] [--threads 2]     into bench/frm/speed.json
    python -m bench.frm table --write                          as a table of docs/frm.md

One frame, prepared for inference, random weights (the time does not depend on them), all ways in
one process and in turns. Ways to compute the same attention must agree before they are timed.
"""

import argparse
import json
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.frames import check_agrees, frame, write
from bench.frm.tables import MASKED, SPEED, WAYS
from maskattn_kernels.benchmark.timing import race
from maskattn_kernels.models import prepare_for_inference
from maskattn_kernels.segmentation.model.network import SegmentationNetwork

SIZES = ((360, 480), (1024, 2048))
DTYPES = (torch.float32, torch.bfloat16)
PRESET, CLASSES = "lite", 19
#: Accepted difference of the logits, of their standard deviation: the mean over pixels.
ACCEPTED = {torch.float32: 1e-4, torch.bfloat16: 0.05}


def network_of(way: str, preset: str = PRESET) -> SegmentationNetwork:
    """The network of a way; the weights of all ways are the same."""
    torch.manual_seed(0)
    made = SegmentationNetwork(CLASSES, task="semantic", arch="frm", preset=preset, **WAYS[way])
    return made.eval()


def check(logits: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Raises unless the ways with the same tokens agree.

    Raises:
        ValueError: they are further apart than is accepted.
    """
    for way, got in logits.items():
        same = next(w for w in WAYS if WAYS[w]["selector"] == WAYS[way]["selector"])
        check_agrees(way, got, logits[same], ACCEPTED[dtype])


@torch.inference_mode()
def measure(
    size: tuple[int, int], dtype: torch.dtype, seconds: float, preset: str = PRESET
) -> list[dict[str, object]]:
    """A row for each way: milliseconds, and how many times as long as with selected places."""
    image = frame(size)
    ready = {way: prepare_for_inference(network_of(way, preset), dtype) for way in WAYS}
    check({way: made(image).semantic.float() for way, made in ready.items()}, dtype)

    def call(way: str) -> Callable[[], object]:
        return lambda: ready[way](image)

    found = race({way: call(way) for way in WAYS}, seconds, focus=WAYS)
    rows: list[dict[str, object]] = []
    for way in WAYS:
        timing = found.timing(way)
        rows.append(
            {
                "size": list(size),
                "precision": str(dtype).removeprefix("torch."),
                "way": way,
                "ms": 1e3 * timing.median,
                "low_ms": 1e3 * timing.low,
                "high_ms": 1e3 * timing.high,
                "rounds": timing.rounds,
                "times_masked": found.ratio(way, MASKED),
            }
        )
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60, help="for each size and precision")
    parser.add_argument("--threads", type=int, default=2, help="default 2")
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    rows = []
    for size in SIZES:
        for dtype in DTYPES:
            rows += measure(size, dtype, given.seconds)
            print(json.dumps(rows[-len(WAYS) :], indent=1), flush=True)
    write(SPEED, {"rows": rows})
    return 0


if __name__ == "__main__":
    main()
