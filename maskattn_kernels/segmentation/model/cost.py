# SPDX-License-Identifier: BSD-3-Clause
"""What a network costs to run: latency, rate, FLOPs, memory."""

import statistics
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from maskattn_kernels.segmentation.model.mirrored import with_tta
from maskattn_kernels.segmentation.model.network import SegmentationNetwork
from maskattn_kernels.segmentation.model.prepared import (
    images_together,
    inference_dtype,
    prepared,
)

__all__ = ["Cost", "flop_counter", "gflops_of", "inference_cost", "measure_cost", "peak_memory"]

_SLOW = 10  # times the seconds that a measurement may take


@dataclass(frozen=True)
class Cost:
    """Of a network alone, at one input size: without reading, grouping and writing.

    Attributes:
        parameters: of the network.
        gflops: of one image, by torch's counter; a multiplication and an addition count as two.
        latency_ms: median time of one image by itself.
        images_per_second: in batches.
    """

    parameters: int
    gflops: float
    latency_ms: float
    images_per_second: float

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


@torch.inference_mode()
def measure_cost(
    network: nn.Module,
    size: tuple[int, int],
    batch_size: int = 16,
    runs: nn.Module | None = None,
    seconds: float = 1.0,
) -> Cost:
    """Measure a network with random images on its own device.

    Args:
        network: a `SegmentationNetwork` in eval mode, or one that is `Mirrored`.
        size: height and width of the images.
        batch_size: for the rate.
        runs: the module that is timed, as `prepare_for_inference` makes it; None = ``network``.
        seconds: spent on each of the two times.
    """
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, 3, *size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
    timed = network if runs is None else runs
    one = _median(timed, images[:1], seconds)
    together = one if batch_size == 1 else _median(timed, images, seconds)
    return Cost(
        parameters=sum(p.numel() for p in network.parameters()),
        gflops=gflops_of(network, size),
        latency_ms=1e3 * one,
        images_per_second=batch_size / together,
    )


@torch.inference_mode()
def gflops_of(network: nn.Module, size: tuple[int, int]) -> float:
    """GFLOPs of a ``network`` for one image of a ``size``, height and width, as in `Cost`."""
    image = torch.zeros(1, 3, *size, dtype=torch.uint8, device=next(network.parameters()).device)
    with flop_counter() as counter:
        network(image)
    return counter.get_total_flops() / 1e9


def flop_counter() -> FlopCounterMode:
    """torch's counter, which also counts torch's own attention on CPUs."""
    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={on_cpu: _attention_flops})


def _attention_flops(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *rest: Any, **out: Any
) -> int:
    """Two products of 2 D operations for each pair, by the shapes (B,H,N,D) that torch gives."""
    batch, heads, queries, _ = query
    return 2 * batch * heads * queries * key[2] * (key[3] + value[3])


def inference_cost(
    network: SegmentationNetwork,
    size: tuple[int, int],
    trained_size: tuple[int, int],
    *,
    batch_size: int = 16,
    precision: str = "float32",
    compile: bool = False,
    tta: str | None = None,
    exported: nn.Module | None = None,
) -> Cost:
    """Measure a network as `Checkpoint.segment` runs it.

    Args:
        network: in eval mode, on the device to compute on.
        size: height and width of the frames.
        trained_size: of those that it was trained on.
        batch_size, precision, compile, tta: as in `Checkpoint.segment`.
        exported: what runs in place of the network; None = the network.
    """
    dtype = inference_dtype(precision, next(network.parameters()).device)
    together = images_together(batch_size, network, size, dtype, trained_size)
    ready = prepared(network, dtype, compile) if exported is None else exported
    return measure_cost(with_tta(network, tta), size, together, with_tta(ready, tta))


def _median(network: nn.Module, images: torch.Tensor, seconds: float) -> float:
    times: list[float] = []
    network(images)
    # Where a single run takes long, it must do.
    while not times or sum(times) < (seconds if len(times) >= 3 else _SLOW * seconds):
        start = time.perf_counter()
        network(images)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_memory(device: torch.device) -> int | None:
    """Most bytes in use so far: of ``device``'s allocator, or else of this whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ModuleNotFoundError:  # not on Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
