# SPDX-License-Identifier: BSD-3-Clause
"""`Subject`: a checkpoint with the images of a report, whose candidates are measured."""

import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskattn_kernels.segmentation import sessions
from maskattn_kernels.segmentation.checkpoint_files import weights_file
from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.data.frame import GREY, whole_frame
from maskattn_kernels.segmentation.data.sample import Sample, SegmentationDataset
from maskattn_kernels.segmentation.model.prepared import prepared
from maskattn_kernels.segmentation.reporting.candidates import Candidate
from maskattn_kernels.segmentation.reporting.memory import peak_of_program
from maskattn_kernels.segmentation.runtimes import HINTS, Exported
from maskattn_kernels.segmentation.scoring.evaluation import evaluate

__all__ = ["Subject", "race"]

_LEAST, _MOST, _SECONDS = 5, 30, 4.0  # rounds of a candidate, and the time after which it stops
_DTYPES = {"bf16": torch.bfloat16}
#: Runs a file as a program without importing the package that it is in, and torch with it.
_ALONE = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"

Call = Callable[[int], object]


@dataclass(frozen=True)
class Subject:
    """A checkpoint, and the images that it is measured on.

    Attributes:
        checkpoint: as trained.
        source: from which another process reads it.
        selector: rule that chooses tokens; None = as trained.
        dataset: labelled images, for scores.
        samples: some of them, for times and memory.
        files: folder of exported files.
    """

    checkpoint: Checkpoint
    source: str
    selector: str | None
    dataset: SegmentationDataset
    samples: Sequence[Sample]
    files: Path

    def turned(self, candidate: Candidate) -> Checkpoint:
        """The checkpoint with the masks and the frame of a ``candidate``."""
        made = copy.copy(self.checkpoint.with_masks(candidate.keep, self.selector))
        if candidate.size is None:
            made.frame = "own"
        else:
            made.frame = "squeeze" if made.frame == "squeeze" else "fit"
            made.size = candidate.size
        return made

    def opened(self, candidate: Candidate) -> Exported | None:
        """The exported file of a ``candidate`` in its runtime; None = it runs in torch."""
        if candidate.file is None:
            return None
        return Exported(self.files / candidate.file, candidate.runtime, _dtype(candidate))

    def scores(self, candidate: Candidate, progress: Callable[[int], object]) -> dict[str, float]:
        """The mean scores at the images' own size, 0 to 100, as ``maskattn eval`` takes them.

        Args:
            candidate: that is scored.
            progress: called with the number of images that are done.
        """
        scores = evaluate(
            self.turned(candidate),
            self.dataset,
            device="cpu",
            precision=_name(candidate) if candidate.file is None else "float32",
            exported=self.opened(candidate),
            progress=progress,
        )
        return scores["original size"]["mean"]

    def inputs(self, candidate: Candidate) -> list[np.ndarray]:
        """The samples as a ``candidate`` takes them, uint8, each a batch of one."""
        turned = self.turned(candidate)
        frames = [whole_frame(s, turned.size, turned.frame).image for s in self.samples]
        if candidate.file is None or candidate.size is None:
            return [np.ascontiguousarray(frame.transpose(2, 0, 1))[None] for frame in frames]
        whole = np.full((len(frames), *candidate.size, 3), GREY, np.uint8)
        for frame, padded in zip(frames, whole, strict=True):
            padded[: frame.shape[0], : frame.shape[1]] = frame
        return np.split(whole, len(frames))

    def call(self, candidate: Candidate) -> Call:
        """A function that makes the labels of the sample of a number by a ``candidate``."""
        inputs, exported = self.inputs(candidate), self.opened(candidate)
        if exported is not None:
            run = exported.run
            return lambda number: run(inputs[number])
        ready = prepared(self.turned(candidate).network, _dtype(candidate))
        images = [torch.from_numpy(image) for image in inputs]
        return lambda number: ready(images[number]).semantic.argmax(1)

    def peak_memory(self, candidate: Candidate) -> int | None:
        """Highest resident bytes of a process that runs the samples by a ``candidate``.

        All of the process counts: Python, the runtime, the network, its maps.

        Raises:
            ProgramEnded: it ended before it was done.
        """
        with tempfile.TemporaryDirectory() as folder:
            images = str(Path(folder) / "images.npz")
            np.savez(images, *self.inputs(candidate))
            return peak_of_program([sys.executable, *self._program(candidate), images])

    def _program(self, candidate: Candidate) -> list[str]:
        threads = torch.get_num_threads()
        exported = self.opened(candidate)
        if exported is not None:
            file = self.files / str(candidate.file) / exported.description["file"]
            words = (candidate.runtime, file, threads, HINTS[_dtype(candidate)])
            return ["-c", _ALONE, sessions.__file__, *map(str, words)]
        options: dict[str, Any] = {
            "checkpoint": self.source,
            "keep": candidate.keep,
            "selector": self.selector,
            "precision": _name(candidate),
            "threads": threads,
        }
        module = "maskattn_kernels.segmentation.reporting.torch_process"
        return ["-m", module, json.dumps(options)]

    def file_bytes(self, candidate: Candidate) -> int:
        """The size of the file that a ``candidate`` needs: exported, or the weights."""
        exported = self.opened(candidate)
        if exported is None:
            return weights_file(self.source).stat().st_size
        file = self.files / str(candidate.file) / exported.description["file"]
        return file.stat().st_size


def _dtype(candidate: Candidate) -> torch.dtype:
    return _DTYPES.get(candidate.precision, torch.float32)


def _name(candidate: Candidate) -> str:
    return str(_dtype(candidate)).removeprefix("torch.")


@torch.inference_mode()
def race(
    calls: Mapping[str, Call], samples: int, progress: Callable[[int], object]
) -> dict[str, dict[str, float]]:
    """Times of one image at a time; all take turns, so that what disturbs one disturbs all.

    Before each call that counts there is one that does not: it takes the caches and the threads
    back from the candidate before. Each has 5 rounds or more, up to 30 in 4 seconds of its own.

    Args:
        calls: by name.
        samples: how many there are; each round takes the next one.
        progress: called with the number of the round.

    Returns:
        by name "ms", the median; "processor_ms", that of the time of all threads that computed,
        which other work of the machine hardly changes; "images_per_second", one after another; and
        "rounds".
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    busy: dict[str, list[float]] = {name: [] for name in calls}
    running = list(calls)
    for number in range(_MOST):
        progress(number + 1)
        shift = number % len(running)
        for name in running[shift:] + running[:shift]:
            calls[name](number % samples)
            start, busy_start = time.perf_counter(), time.process_time()
            calls[name](number % samples)
            taken[name].append(time.perf_counter() - start)
            busy[name].append(time.process_time() - busy_start)
        running = [n for n in running if number + 1 < _LEAST or sum(taken[n]) < _SECONDS]
        if not running:
            break
    return {
        name: {
            "ms": 1e3 * statistics.median(times),
            "processor_ms": 1e3 * statistics.median(busy[name]),
            "images_per_second": len(times) / sum(times),
            "rounds": len(times),
        }
        for name, times in taken.items()
    }
