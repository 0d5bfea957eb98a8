# SPDX-License-Identifier: BSD-3-Clause
"""Networks made ready for inference: norms folded, weights packed, bfloat16, compiled.

What a layer is used for is read from traces (torch.fx) of the largest parts of a network that can
be traced; the parts keep their own ``forward``, only their layers are replaced. A layer that no
trace shows, or that is used more than once, stays as it is.
"""

import copy
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from maskattn_kernels.common.processor import has_slow_bfloat16_pairs
from maskattn_kernels.models.depthwise import DepthwiseConv2d
from maskattn_kernels.nn.selecting import SelectiveAttention2d
from maskattn_kernels.torch_compat import (
    cpu_has_amx,
    cpu_has_bfloat16_pairs,
    onednn_linear,
    pack_convolution,
    packed_convolution,
    packs_layers,
)

__all__ = ["fast_bfloat16", "folded", "prepare_for_inference"]

_CONVOLUTIONS: dict[type, Any] = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
}
#: Layers that compute in the dtype of their weight.
_CASTS = (*_CONVOLUTIONS, nn.Linear, nn.LayerNorm)
_DTYPES = (torch.float32, torch.bfloat16)
_TRACING = threading.Lock()  # a trace patches nn.Module for all threads, and takes it back after


@torch.no_grad()
def prepare_for_inference(
    network: nn.Module, dtype: torch.dtype = torch.float32, compile: bool = False
) -> nn.Module:
    """A copy of a network that computes the same faster; the original is not changed.

    * BatchNorm is folded into the convolution before it. The results differ by rounding: for the
      networks of this package in float32 by less than 1e-4 of the standard deviation of the logits.
    * 4-d weights are channels_last.
    * On a CPU, weights of convolutions are packed once for oneDNN, modules of GELU, ReLU and ReLU6
      are computed together with the convolution before them, and linear layers run in oneDNN.
      The process keeps up to 62 MiB of freed memory for later layers.
    * With bfloat16, convolutions, linear layers and LayerNorm compute in bfloat16 and cast their
      input. Mask heads stay in float32, and so do the layers that ``output_layers()`` of a module
      returns, so that logits do not tie. Near the border of a selection, other tokens may be
      selected. 0.2% to 1.5% of the pixels got another label in what we compared.

    The copy is for calls without gradients, on the device of the network: it is neither trained,
    moved, nor saved. It does not follow later changes of the original.

    Args:
        network: in float32: a `MaskAttnUNet`, a ``SegmentationNetwork``, or any module. Its pairs
            of convolution and BatchNorm are found where torch.fx can trace the part that holds
            them; a convolution whose result is used elsewhere, or a layer that is called more than
            once or has hooks, stays as it is.
        dtype: torch.float32 or torch.bfloat16.
        compile: by torch.compile, in one graph; the first call of each shape takes up to minutes.

    Returns:
        a module with the arguments and results of ``network``, in eval mode.

    Raises:
        TypeError: ``network`` is not a module, or ``dtype`` is another one.
        ValueError: bfloat16 is asked for, and no layer was found that can compute in it.

    Example:
        >>> import torch
        >>> from maskattn_kernels.models import MaskAttnUNet, prepare_for_inference
        >>> network = MaskAttnUNet(classes=5, width=8, depth=2).eval()
        >>> image = torch.randn(1, 3, 32, 32)
        >>> with torch.inference_mode():
        ...     fast = prepare_for_inference(network)(image)
        ...     torch.allclose(fast, network(image), atol=1e-4)
        True
    """
    prepared, calls = _folded(network, dtype)
    on_cpu = all(t.device.type == "cpu" for t in prepared.parameters())
    if on_cpu:
        _keep_freed_memory()
    if on_cpu and not compile and packs_layers():
        _pack(prepared, calls)
    if not compile:
        return prepared
    # Freezing lets the compiler pack weights and fuse what follows convolutions, as `_pack` does.
    options: Any = {"freezing": True} if on_cpu else None
    compiled: Any = torch.compile(prepared, fullgraph=True, options=options)
    return compiled


def folded(network: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The first steps of `prepare_for_inference`, whose result `torch.export` can trace.

    Norms are folded and layers in their dtype; no weights are packed.

    Args:
        network, dtype: as there.

    Raises:
        TypeError, ValueError: as there.
    """
    return _folded(network, dtype)[0]


@torch.no_grad()
def _folded(network: nn.Module, dtype: torch.dtype) -> tuple[nn.Module, list["_Call"]]:
    if not isinstance(network, nn.Module):
        raise TypeError(f"network: expected a torch.nn.Module, got {type(network).__name__}")
    if dtype not in _DTYPES:
        raise TypeError(f"dtype: expected torch.float32 or torch.bfloat16, got {dtype}")
    prepared = copy.deepcopy(network).eval().requires_grad_(False)
    for layer in prepared.modules():
        if type(layer) is DepthwiseConv2d:  # it differs from nn.Conv2d in training only
            layer.__class__ = nn.Conv2d  # type: ignore[assignment]
    calls = list(_calls(prepared))
    for call in calls:
        _fold(prepared, call)
    for parameter in prepared.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    if dtype == torch.bfloat16:
        _to_bfloat16(prepared, calls)
    return prepared, calls


def _keep_freed_memory() -> None:
    """Lets glibc keep up to 62 MiB of freed memory: what layer after layer allocates and frees.

    Blocks of megabytes else go back to the system when they are freed, and are cleared page by page
    when the next layer wants them: a tenth of the time of a small network. glibc raises its limits
    to the size of the largest block that was freed, of up to 32 MiB; this one is never written.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


def fast_bfloat16(device: torch.device) -> bool:
    """Whether networks were measured to be faster in bfloat16 on such a device.

    On CPUs that multiply bfloat16 faster than float32: see docs/benchmarks.md. With AMX, or with
    AVX512-BF16 on AMD's; Intel's Sapphire and Emerald Rapids are slower in it where AMX is hidden.
    Networks were not measured on a GPU in both, so False for GPUs.

    Example:
        >>> import torch
        >>> from maskattn_kernels.models import fast_bfloat16
        >>> fast_bfloat16(torch.device("cpu")) in (True, False)
        True
    """
    if device.type != "cpu":
        return False
    return cpu_has_amx() or (cpu_has_bfloat16_pairs() and not has_slow_bfloat16_pairs())


@dataclass
class _Call:
    """A layer that a trace shows: its name in the network, and the names of what follows it."""

    layer: str
    norms: list[str]
    activation: str | None


def _calls(network: nn.Module) -> Iterator[_Call]:
    """The layers that are called once, of all parts that can be traced."""
    names = Counter(id(m) for _, m in network.named_modules(remove_duplicate=False))

    def replaceable(module: nn.Module) -> bool:
        watched = module._forward_hooks or module._forward_pre_hooks
        return not watched and names[id(module)] == 1

    def in_trace(graph: fx.Graph, root: nn.Module, name: str) -> Iterator[_Call]:
        times = Counter(node.target for node in graph.nodes if node.op == "call_module")

        def once(node: fx.Node | None) -> Any:
            """The module that a node calls, if nothing else does; else None."""
            if node is None or node.op != "call_module" or times[node.target] > 1:
                return None
            module = root.get_submodule(str(node.target))
            return module if replaceable(module) else None

        for node in graph.nodes:
            layer = once(node)
            if type(layer) not in _CASTS:
                continue
            call = _Call(f"{name}{node.target}", [], None)
            after, norm = _only_user(node), _CONVOLUTIONS.get(type(layer))
            while norm is not None and _folds(once(after), norm):
                call.norms.append(f"{name}{after.target}")
                after = _only_user(after)
            if type(layer) is nn.Conv2d and _activation(once(after)) is not None:
                call.activation = f"{name}{after.target}"
            yield call

    def visit(name: str, root: nn.Module) -> Iterator[_Call]:
        graph = _trace(root)
        if graph is not None:
            yield from in_trace(graph, root, name)
            return
        for child, module in root.named_children():
            # Attention looks at its arguments, so that it has no trace: these are its calls.
            if isinstance(root, SelectiveAttention2d) and module in root.layers:
                if type(module) in _CASTS and replaceable(module):
                    yield _Call(f"{name}{child}", [], None)
            else:
                yield from visit(f"{name}{child}.", module)

    return visit("", network)


class _Tracer(fx.Tracer):
    """Traces in its own thread; modules that other threads call meanwhile run as always."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()

    def call_module(self, m: Any, forward: Any, args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)


def _trace(module: nn.Module) -> fx.Graph | None:
    if next(module.children(), None) is None:
        return None
    try:
        with _TRACING:
            return _Tracer().trace(module)
    except Exception:  # code that looks at shapes or types fails in its own ways
        return None


def _only_user(node: Any) -> Any:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _activation(module: Any) -> str | None:
    """The name of an activation that `packed_convolution` computes; else None."""
    if type(module) is nn.GELU:
        return "gelu" if module.approximate == "none" else None
    return {nn.ReLU: "relu", nn.ReLU6: "relu6"}.get(type(module))


def _folds(module: Any, norm: Any) -> bool:
    return type(module) is norm and bool(module.track_running_stats)  # else it needs the batch


def _fold(network: nn.Module, call: _Call) -> None:
    for norm in call.norms:
        layer: Any = network.get_submodule(call.layer)
        after: Any = network.get_submodule(norm)
        network.set_submodule(call.layer, fuse_conv_bn_eval(layer, after))
        network.set_submodule(norm, nn.Identity())


def _to_bfloat16(network: nn.Module, calls: list[_Call]) -> None:
    outputs = {
        id(layer)
        for module in network.modules()
        for layer in getattr(module, "output_layers", lambda: ())()
    }
    layers = [network.get_submodule(call.layer) for call in calls]
    lower = [layer for layer in layers if id(layer) not in outputs]
    if not lower:
        raise ValueError(
            "dtype: expected torch.float32, as no convolution or linear layer of the network is in "
            "a part that torch.fx can trace, got torch.bfloat16"
        )
    for layer in lower:
        layer.to(torch.bfloat16)
    for module in network.modules():
        if type(module) in _CASTS or isinstance(module, SelectiveAttention2d):
            module.register_forward_pre_hook(_cast_input)


def _cast_input(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Casts the first argument to the dtype of the weight, if there is one."""
    weight = (module.layers[0] if isinstance(module, SelectiveAttention2d) else module).weight
    if weight is None:
        return args
    return (*(x.to(weight.dtype) for x in args[:1]), *args[1:])


def _pack(network: nn.Module, calls: list[_Call]) -> None:
    for call in calls:
        layer = network.get_submodule(call.layer)
        if type(layer) is nn.Linear and layer.weight.dtype in _DTYPES:
            network.set_submodule(call.layer, _OneDNNLinear(layer))
        if type(layer) is not nn.Conv2d or not _packs(layer):
            continue
        activation = None
        if call.activation is not None:
            activation = _activation(network.get_submodule(call.activation))
            network.set_submodule(call.activation, nn.Identity())
        kind = _PointwiseConv2d if _is_pointwise(layer) else _PackedConv2d
        network.set_submodule(call.layer, kind(layer, activation))


def _packs(conv: nn.Conv2d) -> bool:
    plain = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return plain and conv.weight.dtype in _DTYPES


def _is_pointwise(conv: nn.Conv2d) -> bool:
    places: Any = (conv.kernel_size, conv.stride)
    return all(place == (1, 1) for place in places) and (*conv.padding, conv.groups) == (0, 0, 1)


class _PackedConv2d(nn.Module):
    """A convolution whose weight oneDNN has ordered, and an activation after it."""

    def __init__(self, conv: nn.Conv2d, activation: str | None) -> None:
        super().__init__()
        self.dtype, self.activation, self.groups = conv.weight.dtype, activation, conv.groups
        places: Any = (conv.padding, conv.stride, conv.dilation)
        self.places = tuple(list(place) for place in places)
        self.weight, self.bias = self._ordered(conv), conv.bias

    def _ordered(self, conv: nn.Conv2d) -> Tensor:
        return pack_convolution(conv)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        if x.dim() == 3:  # without a batch, as nn.Conv2d takes it too
            return self.compute(x.unsqueeze(0)).squeeze(0)
        return self.compute(x)

    def compute(self, x: Tensor) -> Tensor:
        return packed_convolution(
            x, self.weight, self.bias, self.places, self.groups, self.activation
        )


class _PointwiseConv2d(_PackedConv2d):
    """A 1x1 convolution as a linear layer of the pixels, which channels_last maps are in memory.

    The order that oneDNN chooses for its weight without the size of the map can be one that it has
    to change at each call: 7 ms in place of 0.3 for 1152 to 192 channels of a 12 x 15 map.
    """

    def _ordered(self, conv: nn.Conv2d) -> Tensor:
        return conv.weight.detach().flatten(1).contiguous()

    def compute(self, x: Tensor) -> Tensor:
        pixels = x.permute(0, 2, 3, 1)
        y = onednn_linear(pixels, self.weight, self.bias, self.activation)
        return y.permute(0, 3, 1, 2)


class _OneDNNLinear(nn.Module):
    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return onednn_linear(x.to(self.weight.dtype), self.weight, self.bias)
