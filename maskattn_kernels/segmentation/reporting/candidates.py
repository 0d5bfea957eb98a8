# SPDX-License-Identifier: BSD-3-Clause
"""`Candidate`: one way to run a checkpoint; which there are, and why some cannot be."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch

from maskattn_kernels.common.text import one_line, quoted
from maskattn_kernels.models import fast_bfloat16
from maskattn_kernels.segmentation.exporting.onnx_file import check_writer
from maskattn_kernels.segmentation.exporting.precisions import PRECISIONS
from maskattn_kernels.segmentation.runtimes import RUNTIMES, RuntimeMissing, runtime_version

__all__ = ["Candidate", "candidates", "check_named", "obstacle"]

DEFAULT_PRECISIONS = ("fp32", "bf16", "int8")  # fp16 is as fast as fp32
_NEVER = {
    ("torch", "fp16"): "torch computes in fp32 or bf16; fp16 is of files",
    ("torch", "int8"): "int8 is of files",
    ("onnxruntime", "bf16"): "ONNX Runtime has no convolution in bfloat16",
}


@dataclass(frozen=True)
class Candidate:
    """One way to run a checkpoint.

    Attributes:
        keep: fraction of tokens that attention takes; None = as trained.
        size: height and width that images are brought to; None = their own, each as it is.
        precision: as ``maskattn export`` takes it. OpenVINO computes in bf16 from a file in fp32.
        runtime: a name in `RUNTIMES`.
    """

    keep: float | None
    size: tuple[int, int] | None
    precision: str
    runtime: str

    @property
    def size_text(self) -> str:
        """Such as "96x128"; "own" = the images' own."""
        return "own" if self.size is None else f"{self.size[0]}x{self.size[1]}"

    @property
    def file(self) -> str | None:
        """The name of the folder of its exported file; None = it runs in torch, without one."""
        if self.runtime == "torch":
            return None
        precision = "fp32" if self.precision == "bf16" else self.precision
        keep = "" if self.keep is None else f"-keep-{self.keep:g}"
        return f"{self.size_text}{keep}-{precision}"

    def __str__(self) -> str:
        keep = "" if self.keep is None else f"keep {self.keep:g}, "
        return f"{keep}{self.size_text}, {self.precision} in {self.runtime}"


def obstacle(runtime: str, precision: str) -> str | None:
    """Why a runtime cannot run a checkpoint in a precision here; None where it can.

    Args:
        runtime: a name in `RUNTIMES`.
        precision: a name in `PRECISIONS`.

    Example:
        >>> from maskattn_kernels.segmentation.reporting.candidates import obstacle
        >>> obstacle("torch", "fp32"), obstacle("torch", "int8")
        (None, 'int8 is of files')
    """
    if never := _NEVER.get((runtime, precision)):
        return never
    try:
        runtime_version(runtime)
        if runtime != "torch":
            check_writer()
        if precision == "int8":
            runtime_version("onnxruntime")  # its tool makes it
    except (RuntimeMissing, ModuleNotFoundError) as missing:
        return one_line(missing)
    if precision == "bf16" and not fast_bfloat16(torch.device("cpu")):
        return "this processor does not multiply bfloat16"
    return None


def check_named(runtimes: Sequence[str] | None, precisions: Sequence[str] | None) -> None:
    """Refuse what a user has named and none of the candidates could have.

    Args:
        runtimes, precisions: None = all; not named by the user.

    Raises:
        ValueError: one of them, with the reason.
    """
    for name, given, known in (
        ("runtime", runtimes, tuple(RUNTIMES)),
        ("precision", precisions, PRECISIONS),
    ):
        for value in given or ():
            if value not in known:
                raise ValueError(f"{name}: expected some of {quoted(known)}, got {value!r}")
    for runtime in runtimes or ():
        reasons = [obstacle(runtime, precision) for precision in precisions or PRECISIONS]
        if None not in reasons:
            raise ValueError(f"runtime: {runtime} cannot be used: {_curable(reasons)}")
    for precision in precisions or ():
        reasons = [obstacle(runtime, precision) for runtime in runtimes or RUNTIMES]
        if None not in reasons:
            raise ValueError(f"precision: {precision} cannot be used: {_curable(reasons)}")


def _curable(reasons: Sequence[str | None]) -> str | None:
    """The first reason that an installation removes, or else the first."""
    return next((reason for reason in reasons if reason not in _NEVER.values()), reasons[0])


def candidates(
    keeps: Sequence[float | None],
    sizes: Sequence[tuple[int, int] | None],
    precisions: Sequence[str] | None,
    runtimes: Sequence[str] | None,
) -> Iterator[tuple[Candidate, str | None]]:
    """All combinations, each with the reason why it cannot be, if there is one.

    Args:
        keeps, sizes: see `Candidate`.
        precisions, runtimes: None = all, but fp16, which is as fast as fp32.
    """
    for keep, size, precision, runtime in product(
        keeps, sizes, precisions or DEFAULT_PRECISIONS, runtimes or RUNTIMES
    ):
        reason = obstacle(runtime, precision)
        if reason is None and size is None and runtime != "torch":
            reason = "a file has one size, and the images have their own"
        yield Candidate(keep, size, precision, runtime), reason
