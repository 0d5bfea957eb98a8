# SPDX-License-Identifier: BSD-3-Clause
"""The measurements of a report, one after another; each is kept as soon as it is done."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from maskattn_kernels.common.errors import CommandError
from maskattn_kernels.common.text import one_line
from maskattn_kernels.segmentation.data.sample import Sample
from maskattn_kernels.segmentation.exporting.command import AGREEMENT, export
from maskattn_kernels.segmentation.reporting.candidates import Candidate
from maskattn_kernels.segmentation.reporting.finished import Finished
from maskattn_kernels.segmentation.reporting.measuring import Subject, race
from maskattn_kernels.segmentation.runtimes import runtime_version

__all__ = ["measure"]

_HALF_AGREEMENT = 0.99  # of fp16, whose rounded weights are other weights

Show = Callable[[str], object]


def measure(
    subject: Subject,
    planned: Mapping[Candidate, str | None],
    finished: Finished,
    calibration: list[Sample] | None,
    show: Show,
) -> list[dict[str, Any]]:
    """A row for each candidate.

    Args:
        subject: what is measured.
        planned: the candidates, with the reason why one cannot be measured.
        finished: what was measured before; gets what is measured now.
        calibration: images for int8; None = there are none.
        show: called with a text that says what is done.

    Raises:
        KeyboardInterrupt: stopped; what is finished is kept.
    """
    reasons = dict(planned)
    possible = [candidate for candidate, reason in planned.items() if reason is None]
    failed: dict[str | None, str] = {}
    try:
        for number, candidate in enumerate(possible, start=1):
            name, told = str(candidate), partial(_tell, show, f"{number}/{len(possible)}")
            if candidate.file in failed:
                reasons[candidate] = failed[candidate.file]
                continue
            try:
                _make_file(subject, candidate, calibration, told)
            except (ValueError, CommandError) as error:
                reasons[candidate] = failed[candidate.file] = one_line(error)
                continue
            before = finished.rows.get(name)
            if before is not None and before["version"] == runtime_version(candidate.runtime):
                continue
            try:
                row = _measured(subject, candidate, told)
            except (ValueError, CommandError) as error:  # such as a process that was ended
                reasons[candidate] = one_line(error)
                continue
            finished.add_row(name, row)
        names = [str(candidate) for candidate, reason in reasons.items() if reason is None]
        if not finished.has_times_of(names):
            finished.set_times(_raced(subject, reasons, show))
    except KeyboardInterrupt as stop:
        folder, count = finished.file.parent, len(finished.rows)
        raise type(stop)(
            f"stopped; {count} rows are in {folder}, and the same command resumes"
        ) from None
    return [_row(candidate, reason, finished) for candidate, reason in reasons.items()]


def _tell(show: Show, place: str, text: str) -> None:
    show(f"{place} {text}")


def _make_file(
    subject: Subject, candidate: Candidate, calibration: list[Sample] | None, show: Show
) -> None:
    """Export the file that a candidate needs, unless it is there."""
    if candidate.file is None or candidate.size is None:
        return
    folder = subject.files / candidate.file
    if folder.exists():
        return
    precision = candidate.file.rpartition("-")[2]
    if precision == "int8" and calibration is None:
        raise ValueError("int8 needs images to calibrate on, and none were given (--calibrate)")
    show(f"{candidate}: the file is made")
    export(
        subject.checkpoint,
        folder,
        candidate.size,
        precision=precision,
        keep=candidate.keep,
        selector=subject.selector,
        verify=list(subject.samples),
        min_agreement=_HALF_AGREEMENT if precision == "fp16" else AGREEMENT,
        calibrate=calibration,
        max_drop=None,
    )


def _measured(subject: Subject, candidate: Candidate, show: Show) -> dict[str, Any]:
    """What is measured of a candidate by itself."""
    count = len(subject.dataset)
    scores = subject.scores(candidate, lambda done: show(f"{candidate}: {done}/{count} images"))
    show(f"{candidate}: memory")
    peak = subject.peak_memory(candidate)
    return {
        "version": runtime_version(candidate.runtime),
        "scores": {k: None if math.isnan(v) else v for k, v in scores.items()},
        "peak_memory_mb": None if peak is None else peak / 2**20,
        "file_mb": subject.file_bytes(candidate) / 1e6,
    }


def _raced(
    subject: Subject, reasons: Mapping[Candidate, str | None], show: Show
) -> dict[str, dict[str, float]]:
    running = [candidate for candidate, reason in reasons.items() if reason is None]
    calls = {str(candidate): subject.call(candidate) for candidate in running}
    return race(calls, len(subject.samples), lambda number: show(f"times: round {number}"))


def _row(candidate: Candidate, reason: str | None, finished: Finished) -> dict[str, Any]:
    nothing = {"ms": None, "processor_ms": None, "images_per_second": None, "rounds": 0}
    empty: dict[str, Any] = {"version": None, "scores": {}, "peak_memory_mb": None, "file_mb": None}
    name = str(candidate)
    return {
        "keep": candidate.keep,
        "size": None if candidate.size is None else list(candidate.size),
        "precision": candidate.precision,
        "runtime": candidate.runtime,
        **(finished.rows[name] if reason is None else empty),
        **(finished.times[name] if reason is None else nothing),
        "reason": reason,
    }
