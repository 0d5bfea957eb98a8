# SPDX-License-Identifier: BSD-3-Clause
"""What a call costs the host: everything about its launches is decided once, and kept.

A kind of call is what its tensors' shapes, strides, dtypes, devices and alignment say. From that
follow tiles, grids, results, workspace, which compiled kernel runs, and all its arguments but the
addresses and the scale. A `Plan` holds all of it. Its first run goes through Triton's JIT, which
compiles; later ones hand the compiled kernel's own launcher what is new.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from maskattn_kernels.backends import tuning
from maskattn_kernels.backends.triton_index import select_tokens_kernel

INTERPRETED = not isinstance(select_tokens_kernel, triton.runtime.JITFunction)
_KNOBS = triton.knobs.runtime
MOST_PLANS = 4096  # then all are forgotten: shapes that change at every call fill no memory
ABSENT = -1  # the place of no tensor
ALIGNED = 128  # bytes at whose multiples pieces of workspace start
# Asked for by name, because Triton warns that its default will change.
OPTIONS = {"enable_fp_fusion": True}


class Result(NamedTuple):
    """A tensor that a call makes: a result, or workspace."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    fill: float | None = None  # where nothing is launched that would write it

    def bytes(self) -> int:
        return math.prod(self.size) * self.dtype.itemsize


class Launch:
    """One kernel, its programs, and its arguments: pointers, multiples of the scale, the rest."""

    def __init__(
        self,
        kernel: Any,
        programs: int,
        places: Sequence[int],
        scales: Sequence[float],
        fixed: Sequence[Any],
        constants: dict[str, Any],
    ) -> None:
        """`places` of pointers are those among inputs and results, ABSENT for None; the scale of a
        call is multiplied by each of `scales`."""
        self.kernel, self.programs, self.constants = kernel, programs, constants
        self.places, self.scales, self.fixed = itemgetter(*places), tuple(scales), tuple(fixed)

    def first(self, tensors: Sequence[Tensor | None], scale: float) -> None:
        """Compiles and launches, and remembers how to launch again."""
        numbers = [scale * factor for factor in self.scales]
        compiled = self.kernel[(self.programs,)](
            *self.places(tensors), *numbers, *self.fixed, **self.constants, **OPTIONS
        )
        if compiled is not None:  # in the interpreter
            self._run, self._function = compiled.run, compiled.function
            self._packed = compiled.packed_metadata
            names = [p.name for p in self.kernel.params if p.is_constexpr]
            self._rest = (*self.fixed, *(self.constants[name] for name in names))

    def again(self, addresses: Sequence[int | None], scale: float, stream: int) -> None:
        self._run(
            self.programs, 1, 1, stream, self._function, self._packed, None, None, None,
            *self.places(addresses), *[scale * factor for factor in self.scales], *self._rest,
        )  # fmt: skip


class Plan:
    """The results and launches of one kind of call."""

    def __init__(
        self, results: Sequence[Result | None], returned: int, launches: Sequence[Launch]
    ) -> None:
        """The first `returned` of the results are the call's, the others are workspace; None keeps
        the place of one that this kind of call has no use for."""
        self.results, self.returned, self.launches = results, returned, launches
        # A repeated call allocates its workspace at once: an allocation costs a microsecond.
        self.offsets: list[int | None] = []
        self.workspace = 0  # bytes
        for piece in results[returned:]:
            self.offsets.append(None if piece is None else self.workspace)
            self.workspace += 0 if piece is None else -(-piece.bytes() // ALIGNED) * ALIGNED
        self.copied: list[int] = []  # places of inputs that are copied, see `as_read`

    def first(self, inputs: Sequence[Tensor | None], scale: float) -> list[Tensor]:
        """Runs the call through Triton's JIT."""
        like: Any = inputs[0]  # which every call has
        read = [None if t is None else as_read(t) for t in inputs]
        self.copied = [
            place
            for place, (t, r) in enumerate(zip(inputs, read, strict=True))
            if t is not None and r is not None and t.data_ptr() != r.data_ptr()
        ]
        made = [None if r is None else allocate(like, r) for r in self.results]
        with torch.cuda.device_of(like):
            for launch in self.launches:
                launch.first([*read, *made, None], scale)
        return [t for t in made[: self.returned] if t is not None]

    def again(
        self,
        inputs: Sequence[Tensor | None],
        addresses: list[int | None],
        scale: float,
        current: int,
    ) -> list[Tensor]:
        """The same for other tensors of the kind, at these addresses; `current` is the device."""
        like: Any = inputs[0]  # which every call has
        given: Sequence[Any] = inputs
        copies = [given[place].contiguous() for place in self.copied]
        for place, copy in zip(self.copied, copies, strict=True):
            addresses[place] = copy.data_ptr()
        made = [allocate(like, r) for r in self.results[: self.returned] if r is not None]
        addresses += [t.data_ptr() for t in made]
        if self.workspace:
            workspace = like.new_empty(self.workspace, dtype=torch.uint8)
            start = workspace.data_ptr()
            addresses += [None if offset is None else start + offset for offset in self.offsets]
        else:
            addresses += self.offsets
        addresses.append(None)
        device = like.get_device() if like.is_cuda else current
        stream = triton.runtime.driver.active.get_current_stream(device)
        if device == current:
            for launch in self.launches:
                launch.again(addresses, scale, stream)
        else:
            with torch.cuda.device(device):
                for launch in self.launches:
                    launch.again(addresses, scale, stream)
        return made


def as_read(t: Tensor) -> Tensor:
    """t as the kernels read it: rows and lists in one piece, copied where they are not; a mask as
    bytes."""
    if t.dtype is torch.bool:
        return t.view(torch.uint8)  # a bool may hold any byte; nonzero is True
    in_rows = t.dim() == 4 or (t.dim() == 3 and t.dtype is torch.int32)
    return t.contiguous() if in_rows and t.stride(-1) != 1 and t.shape[-1] != 1 else t


def allocate(like: Tensor, result: Result) -> Tensor:
    made = like.new_empty_strided(result.size, result.stride, dtype=result.dtype)
    return made if result.fill is None else made.fill_(result.fill)


_PLANS: dict[tuple, Plan] = {}


def call(
    make: Callable[..., Plan], inputs: Sequence[Tensor | None], scale: float, *more: Hashable
) -> list[Tensor]:
    """Runs the plan that `make(*inputs, *more)` gives for calls of this kind."""
    if INTERPRETED:
        return make(*inputs, *more).first(inputs, scale)
    current = triton.runtime.driver.active.get_current_device()
    addresses: list[int | None] = []
    kind: list[Hashable] = [make, current, tuning.forced_tiles(), *more]
    for t in inputs:
        if t is None:
            addresses.append(None)
            kind.append(None)
        else:  # address 0: empty, or its memory was given back, which `make` refuses
            address = t.data_ptr()
            addresses.append(address)
            kind += (t.shape, t.stride(), t.dtype, t.get_device(), address % 16 if address else -1)
    key = tuple(kind)
    plan = _PLANS.get(key)
    if plan is not None and not _watched():
        return plan.again(inputs, addresses, scale, current)
    plan = make(*inputs, *more)
    results = plan.first(inputs, scale)
    if len(_PLANS) >= MOST_PLANS:
        forget()
    _PLANS[key] = plan
    return results


def forget() -> None:
    """The next call of each kind goes through the JIT again."""
    _PLANS.clear()


def _watched() -> bool:
    """Whether a profiler waits for launches: the JIT tells it what it asks for."""
    hook = _KNOBS.launch_enter_hook
    return bool(getattr(hook, "calls", hook))
