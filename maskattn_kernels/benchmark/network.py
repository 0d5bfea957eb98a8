# SPDX-License-Identifier: BSD-3-Clause
"""End to end: the U-Net on one 128 x 128 image, with each core of its attention modules."""

from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor

from maskattn_kernels.benchmark.check import WrongResult
from maskattn_kernels.benchmark.memory import in_fresh_process
from maskattn_kernels.benchmark.rows import Row
from maskattn_kernels.benchmark.timing import race
from maskattn_kernels.common.peak_memory import gpu_peak_growth, peak_growth
from maskattn_kernels.models import MaskAttnUNet

__all__ = [
    "ACCURACY",
    "CLASSES",
    "CORES",
    "KEEP",
    "make_image",
    "make_network",
    "measure_network",
    "network_call",
    "network_errors",
    "network_memory",
    "relative_error",
]

#: Our op, textbook attention, torch's fused attention, and no attention products.
CORES = ("sparse", "dense", "sdpa", "identity")
SIDE, CLASSES, KEEP, PRESET = 128, 150, 0.25, "published"
#: Accepted error of the sparse network as a multiple of the dense network's own, both against
#: float64.
ACCURACY = 4.0


def make_network(core: str) -> MaskAttnUNet:
    """The network with seeded random weights, the same for every core."""
    torch.manual_seed(0)
    return MaskAttnUNet.from_preset(PRESET, classes=CLASSES, keep=KEEP, sparsity="qk", core=core)


def make_image(side: int = SIDE) -> Tensor:
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))


def network_call(
    core: str, trains: bool, side: int = SIDE, device: str = "cpu"
) -> Callable[[], object]:
    """Forward in eval mode without grad, or forward+backward in train mode to all parameters."""
    network, image = make_network(core).train(trains).to(device), make_image(side).to(device)
    parameters = list(network.parameters())
    dout = torch.ones(1, CLASSES, side, side, device=device)

    def forward() -> object:
        with torch.no_grad():
            return network(image)

    def forward_backward() -> object:
        # The identity core returns the values, so that no gradient reaches queries and keys.
        return torch.autograd.grad(network(image), parameters, dout, allow_unused=True)

    return forward_backward if trains else forward


def relative_error(answer: Tensor, right: Tensor) -> float:
    return float((answer.double() - right).norm() / right.norm())


def network_errors(device: str = "cpu") -> dict[str, float]:
    """Error of the sparse and of the dense network against the dense one in float64.

    Raises:
        WrongResult: the sparse one's is more than ``ACCURACY`` times the dense one's.
    """
    image = make_image().to(device)
    with torch.no_grad():
        right = make_network("sdpa").to(device).double().eval()(image.double())
        errors = {
            core: relative_error(make_network(core).to(device).eval()(image), right)
            for core in ("sparse", "dense")
        }
    if not errors["sparse"] <= ACCURACY * errors["dense"]:
        raise WrongResult(
            f"the sparse network is off by {errors['sparse']:.1e}, dense {errors['dense']:.1e}"
        )
    return errors


def network_memory(core: str, trains: bool) -> int:
    """Peak growth in bytes of one call; to be called in its own process."""
    network_call(core, trains, side=32)()
    return peak_growth(network_call(core, trains))


def measure_network(
    trains: bool, seconds: float, with_memory: bool = True, device: str = "cpu"
) -> Row:
    """Race the cores; the sparse network must agree with float64 first.

    Returns:
        a row fit for JSON: for each core its seconds, ``times_ours`` and peak bytes.
    """
    errors = network_errors(device)
    calls = {core: network_call(core, trains, device=device) for core in CORES}
    for call in calls.values():
        call()
    times = race(calls, seconds, focus=("sparse", "identity", "dense"), device=device)
    rows: dict[str, Row] = {}
    for core in CORES:
        rows[core] = asdict(times.timing(core)) | {"times_ours": times.ratio(core, "sparse")}
        if with_memory and device == "cuda":
            rows[core]["peak_bytes"] = gpu_peak_growth(calls[core])
        elif with_memory:
            rows[core]["peak_bytes"] = in_fresh_process(network_memory, core, trains)
    return {
        "phase": "forward+backward" if trains else "forward",
        "side": SIDE,
        "keep": KEEP,
        "preset": PRESET,
        "errors": errors,
        "cores": rows,
    }
