# SPDX-License-Identifier: BSD-3-Clause
"""What each part of a network costs: floating point operations, time, parameters.

Hooks on the modules where a part begins tell which part runs. What is spent there belongs to the
part that was entered last, so nothing counts twice, and all parts together are the whole network.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from maskattn_kernels.common.peak_memory import Unmeasurable, gpu_peak_growth, peak_growth
from maskattn_kernels.models import prepare_for_inference
from maskattn_kernels.segmentation.model.cost import flop_counter, measure_cost
from maskattn_kernels.segmentation.model.network import SegmentationNetwork

__all__ = ["PARTS", "CostReport", "PartCost", "cost_report", "cost_table", "gflops_by_part"]

LAYERS, PRODUCTS, DECODER = "attention: the rest", "attention: products", "decoder and heads"
PARTS = ("encoder", "refinement", LAYERS, PRODUCTS, DECODER)


@dataclass(frozen=True)
class PartCost:
    """Of one part, for one image.

    Attributes:
        gflops: by torch's counter; a multiplication and an addition count as two.
        milliseconds: of the latency.
        parameters: how many.
    """

    gflops: float
    milliseconds: float
    parameters: int


@dataclass(frozen=True)
class CostReport:
    """Of a network alone, for one image: without reading, grouping and writing.

    Attributes:
        size: height and width of the image.
        parameters: of the network.
        gflops: by torch's counter; a multiplication and an addition count as two.
        gmacs: half of that; what papers mean by FLOPs.
        milliseconds: median latency.
        peak_memory_mb: what the process needs beside the weights; None where the system does not
            tell.
        parts: by name, those that the network has, in the order of their names here: encoder;
            refinement, the rest of an `FRMNet`'s module around its attention; attention's layers
            and the choice of its tokens; its products and softmax; decoder and heads, which is all
            the rest. Their costs add up to those above.
    """

    size: tuple[int, int]
    parameters: int
    gflops: float
    gmacs: float
    milliseconds: float
    peak_memory_mb: float | None
    parts: dict[str, PartCost]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@torch.inference_mode()
def cost_report(
    network: SegmentationNetwork,
    size: tuple[int, int],
    dtype: torch.dtype = torch.float32,
    seconds: float = 1.0,
) -> CostReport:
    """Count and measure a network and its parts, with a random image on its own device.

    Args:
        network: in eval mode.
        size: height and width of the image.
        dtype: to compute in, float32 or bfloat16; operations are the same in both.
        seconds: spent on each of two measurements of time.

    Example:
        >>> from maskattn_kernels.segmentation.model.cost_parts import cost_report
        >>> from maskattn_kernels.segmentation.model.network import SegmentationNetwork
        >>> network = SegmentationNetwork(5, task="semantic", arch="frm", preset="tiny").eval()
        >>> list(cost_report(network, (64, 96), seconds=0.0).parts)[:2]
        ['encoder', 'refinement']
    """
    ready = prepare_for_inference(network, dtype)
    cost = measure_cost(network, size, batch_size=1, runs=ready, seconds=seconds)
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8, generator=generator).to(device)
    gflops = gflops_by_part(network, size)
    times = dict.fromkeys(PARTS, 0.0)
    rounds = max(1, round(seconds / (cost.latency_ms / 1e3)))
    for _ in range(rounds):
        for part, spent in _spent(ready, image, _clock(device)).items():
            times[part] += spent
    scale = cost.latency_ms / sum(times.values())
    parameters = _parameters(network)
    return CostReport(
        size=size,
        parameters=cost.parameters,
        gflops=cost.gflops,
        gmacs=cost.gflops / 2,
        milliseconds=cost.latency_ms,
        peak_memory_mb=_peak(ready, image),
        parts={
            part: PartCost(gflops[part], scale * times[part], parameters[part])
            for part in PARTS
            if times[part]
        },
    )


@torch.inference_mode()
def gflops_by_part(network: SegmentationNetwork, size: tuple[int, int]) -> dict[str, float]:
    """The GFLOPs of each part for one image, by its name in `PARTS`; see `CostReport`.

    Args:
        network: in eval mode.
        size: height and width of the image.
    """
    image = torch.zeros(1, 3, *size, dtype=torch.uint8, device=next(network.parameters()).device)
    with flop_counter() as counter:
        spent = _spent(network, image, counter.get_total_flops)
    return {part: flops / 1e9 for part, flops in spent.items()}


def cost_table(report: CostReport) -> str:
    """A report for people.

    Args:
        report: from `cost_report`.
    """
    memory = report.peak_memory_mb
    lines = [
        f"one image of {report.size[0]} x {report.size[1]}: {report.gflops:.2f} GFLOPs "
        f"({report.gmacs:.2f} GMACs), {report.milliseconds:.1f} ms, "
        f"{report.parameters / 1e6:.2f} M parameters"
        + ("" if memory is None else f", {memory:.0f} MB beside the weights"),
        "",
        f"{'':20} {'GFLOPs':>8} {'share':>6} {'ms':>8} {'share':>6} {'parameters':>11}",
    ]
    for name, part in report.parts.items():
        lines.append(
            f"{name:20} {part.gflops:8.3f} {part.gflops / report.gflops:6.1%} "
            f"{part.milliseconds:8.2f} {part.milliseconds / report.milliseconds:6.1%} "
            f"{part.parameters:11d}"
        )
    return "\n".join(lines)


def _starts(network: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """The modules where parts begin, outer ones before those within them."""
    body: Any = network.body
    for part in body.encoder_parts():
        yield from ((module, "encoder") for module in _called(part))
    for part in body.refinement_parts():
        yield from ((module, "refinement") for module in _called(part))
    for attention in body.attentions().values():
        # The last three are called before the module itself, when tokens are chosen.
        others = (attention.selector, attention.mask_head, attention.query_head)
        for module in (attention, *others):
            if module is not None:
                yield module, LAYERS
        yield attention.core, PRODUCTS


def _called(module: nn.Module) -> Iterator[nn.Module]:
    """A module, or those of a list, which is never called itself."""
    if isinstance(module, nn.ModuleList):
        for part in module:
            yield from _called(part)
    else:
        yield module


def _spent(network: nn.Module, image: Tensor, clock: Callable[[], float]) -> dict[str, float]:
    """What a clock counts in each part while the network runs."""
    spent = dict.fromkeys(PARTS, 0.0)
    within = [DECODER]
    last = 0.0

    def count() -> None:
        nonlocal last
        now = clock()
        spent[within[-1]] += now - last
        last = now

    def enter(part: str) -> Callable[..., None]:
        def hook(*call: Any) -> None:
            count()
            within.append(part)

        return hook

    def leave(*call: Any) -> None:
        count()
        within.pop()

    with _hooks(network, enter, leave):
        last = clock()
        network(image)
        count()
    return spent


@contextmanager
def _hooks(
    network: nn.Module, enter: Callable[[str], Callable[..., None]], leave: Callable[..., None]
) -> Iterator[None]:
    handles = []
    for module, part in _starts(network):
        handles.append(module.register_forward_pre_hook(enter(part)))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _clock(device: torch.device) -> Callable[[], float]:
    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def _parameters(network: nn.Module) -> dict[str, int]:
    part_of = dict.fromkeys(network.parameters(), DECODER)
    for module, part in _starts(network):
        part_of |= dict.fromkeys(module.parameters(), part)
    counts = dict.fromkeys(PARTS, 0)
    for parameter, part in part_of.items():
        counts[part] += parameter.numel()
    return counts


def _peak(network: nn.Module, image: Tensor) -> float | None:
    measure = gpu_peak_growth if image.is_cuda else peak_growth
    try:
        return measure(lambda: network(image)) / 2**20
    except Unmeasurable:
        return None
