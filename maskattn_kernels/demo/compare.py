# SPDX-License-Identifier: BSD-3-Clause
"""Dense against masked attention in one network: do they agree, and what does each cost?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from maskattn_kernels.benchmark.cases import make_mask
from maskattn_kernels.benchmark.memory import in_fresh_process
from maskattn_kernels.benchmark.network import ACCURACY, make_network, relative_error
from maskattn_kernels.benchmark.timing import race
from maskattn_kernels.common.peak_memory import peak_growth
from maskattn_kernels.models import MaskAttnUNet
from maskattn_kernels.nn import MaskAttention2d, make_core
from maskattn_kernels.swap import SwapReport, swap_attention

Masks = Mapping[str, Tensor]
Row = dict[str, Any]


class Disagreement(Exception):
    """The swapped network does not give the dense network's answer."""


@dataclass(frozen=True)
class Networks:
    """One network four times, with the same weights.

    Attributes:
        dense: with dense PyTorch attention.
        swapped: a copy of it after `swap_attention`.
        bare: its attention products left out: what the rest of the network costs.
        exact: in float64, with torch's own fused attention: the yardstick of both.
        report: what `swap_attention` did.
    """

    dense: MaskAttnUNet
    swapped: MaskAttnUNet
    bare: MaskAttnUNet
    exact: MaskAttnUNet
    report: SwapReport


def build_networks() -> Networks:
    """The networks, in eval mode, with seeded random weights."""
    dense = make_network("dense").eval()
    swapped = copy.deepcopy(dense)
    report = swap_attention(swapped)
    bare, exact = make_network("identity").eval(), make_network("sdpa").eval().double()
    return Networks(dense, swapped, bare, exact, report)


@dataclass(frozen=True)
class Agreement:
    """Answers of the networks for one photograph.

    Attributes:
        dense: logits (classes, H, W).
        swapped: the same from masked attention.
        dense_error: |dense - exact| / |exact|.
        swapped_error: |swapped - exact| / |exact|.
        largest: largest absolute difference between dense and swapped logits.
        same_class: fraction of the pixels whose best class is the same.
    """

    dense: Tensor
    swapped: Tensor
    dense_error: float
    swapped_error: float
    largest: float
    same_class: float


@torch.no_grad()
def agreement(networks: Networks, image: Tensor, masks: Masks) -> Agreement:
    """Run all networks on an image and compare.

    Raises:
        Disagreement: when the swapped network is more than ``ACCURACY`` times as far from the
            float64 answer as the dense one is.
    """
    exact = networks.exact(image.double(), masks)
    dense, swapped = networks.dense(image, masks), networks.swapped(image, masks)
    errors = relative_error(dense, exact), relative_error(swapped, exact)
    if not errors[1] <= ACCURACY * errors[0]:  # NaN too
        raise Disagreement(
            f"the swapped network is off by {errors[1]:.1e} from float64, "
            f"more than {ACCURACY:g} times the dense network's {errors[0]:.1e}"
        )
    same = (dense.argmax(1) == swapped.argmax(1)).double().mean().item()
    largest = (dense - swapped).abs().max().item()
    return Agreement(dense[0], swapped[0], *errors, largest, same)


def layers(network: MaskAttnUNet) -> dict[str, MaskAttention2d]:
    """The attention modules by the names of their scales, in the order in which they run."""
    modules = [m for m in network.modules() if isinstance(m, MaskAttention2d)]
    return dict(zip(network.scales, modules, strict=True))


@torch.no_grad()
def layer_calls(network: MaskAttnUNet, image: Tensor, masks: Masks) -> dict[str, Row]:
    """What each attention core is called with on an image: args and keyword args, by scale."""
    calls: dict[str, Row] = {}

    def remember(scale: str) -> Any:
        def hook(core: nn.Module, args: Any, kwargs: Any) -> None:
            calls[scale] = {"args": args, "kwargs": kwargs}

        return hook

    hooks = [
        layer.core.register_forward_pre_hook(remember(scale), with_kwargs=True)
        for scale, layer in layers(network).items()
    ]
    try:
        network(image, masks)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def attention_flops(queries: int, keys: int, head_dim: int) -> int:
    """Operations of the two products of attention."""
    return 4 * queries * keys * head_dim


@torch.no_grad()
def measure_layer(scale: str, call: Row, seconds: float) -> Row:
    """Time and memory of one attention layer, dense and masked, on what it sees in the network."""
    query = call["args"][0]
    tokens, head_dim = query.shape[2:]
    selected = int(call["kwargs"]["key_mask"].sum())
    cores = {name: make_core(name) for name in ("dense", "sparse")}
    calls = {
        name: lambda core=core: core(*call["args"], **call["kwargs"])
        for name, core in cores.items()
    }
    for call_core in calls.values():
        call_core()
    times = race(calls, seconds)
    row: Row = {"scale": scale, "tokens": tokens, "head_dim": head_dim, "selected": selected}
    for name in calls:
        row[name] = asdict(times.timing(name))
        row[name]["peak_bytes"] = in_fresh_process(layer_memory, name, tokens, head_dim, selected)
    row["dense"]["flops"] = attention_flops(tokens, tokens, head_dim)
    row["sparse"]["flops"] = attention_flops(selected, selected, head_dim)
    row["times_faster"] = times.ratio("dense", "sparse")
    return row


@torch.no_grad()
def layer_memory(core_name: str, tokens: int, head_dim: int, selected: int) -> int:
    """Peak growth of one call of a core on tensors of these sizes; for a process of its own."""

    def call_for(tokens: int, selected: int) -> Any:
        qkv = torch.randn(1, tokens, 3, 1, head_dim)  # side by side, as one projection makes them
        query, key, value = (t.transpose(1, 2) for t in qkv.unbind(2))
        mask = make_mask(1, tokens, selected)
        return lambda: make_core(core_name)(query, key, value, key_mask=mask, query_mask=mask)

    call_for(64, 16)()
    return peak_growth(call_for(tokens, selected))


@torch.no_grad()
def forward_flops(network: nn.Module, image: Tensor) -> int:
    """Operations of a forward by torch's counter."""
    with FlopCounterMode(display=False) as counter:
        network(image)
    return counter.get_total_flops()


@torch.no_grad()
def measure_forward(
    networks: Networks, image: Tensor, masks: Mapping[float, Masks], keep: float, seconds: float
) -> Row:
    """Race whole forwards: dense, without attention products, and swapped at each keep ratio.

    Args:
        networks: who runs.
        image: what they run on.
        masks: masks by keep ratio.
        keep: the ratio of the masks that the dense and the bare network get, too.
        seconds: time to spend, about.
    """
    calls: dict[str, Callable[[], object]] = {
        "dense": lambda: networks.dense(image, masks[keep]),
        "bare": lambda: networks.bare(image, masks[keep]),
    }
    for ratio, chosen in masks.items():
        calls[f"keep {ratio:g}"] = partial(networks.swapped, image, chosen)
    for forward in calls.values():
        forward()
    swapped = f"keep {keep:g}"
    times = race(calls, seconds, focus=(swapped, "bare"))
    row: Row = {name: asdict(times.timing(name)) for name in ("dense", "bare")}
    row["swapped"] = asdict(times.timing(swapped))
    row["times_faster"] = times.ratio("dense", swapped)
    row["over_bare"] = times.ratio(swapped, "bare")
    row["keeps"] = [{"keep": k, **asdict(times.timing(f"keep {k:g}"))} for k in masks]
    return row
