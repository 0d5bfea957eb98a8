# SPDX-License-Identifier: BSD-3-Clause
"""The ops of all backends under one roof: the way of a call, fakes, autocast, vmap, FLOP counts.

Every backend brings the same three ops (`backends/base.py`), so each rule is written once and
registered in a loop. Compiled and traced code calls the registered op, whose gradient is that of
`TransformableFunction`, as in code that torch.func transforms. Other eager code goes through
`MasksFunction` or `MaskedAttentionFunction`: the same formulas with a quarter of the overhead.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from maskattn_kernels.autograd_functions import (
    MaskedAttentionFunction,
    MasksFunction,
    TransformableFunction,
    TransformableGradients,
)
from maskattn_kernels.backends import on_register
from maskattn_kernels.backends.base import Backend, accumulation_dtype, empty_result
from maskattn_kernels.flops import bwd_flops, fwd_flops, infer_flops, masks_bwd_flops
from maskattn_kernels.op_table import OPS, BackendOps, call_below_autograd, find_ops
from maskattn_kernels.token_index import TokenIndex
from maskattn_kernels.torch_compat import (
    OpOverload,
    any_autocast_enabled,
    apply_outside_transforms,
    direct,
    in_forward_mode,
    in_functorch,
    in_jit_trace,
)
from maskattn_kernels.validation import wants_gradients

Selection = Tensor | TokenIndex | None  # a bool mask (B | 1, H | 1, N), its TokenIndex, or all


def attention(
    backend: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_tokens: Selection,
    key_tokens: Selection,
    key_bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """(out, lse) of validated arguments, by the cheapest way that keeps their gradients right."""
    args = (query, key, value, query_tokens, key_tokens, key_bias, scale)
    try:
        if not _is_traced():
            return attention_in_plain_code(
                backend, _has_derivative(query, key, value, key_bias), *args
            )
        lists = _lists(backend, query_tokens, key_tokens)
        if torch.compiler.is_compiling() or in_jit_trace():
            return OPS[backend].fwd(query, key, value, *lists, key_bias, scale)
        return TransformableFunction.apply(backend, query, key, value, *lists, key_bias, scale)
    except RuntimeError as error:
        fault = _fault_of_caller(error, *args[:5])
        if fault is None:
            raise
        raise fault from None


def attention_in_plain_code(
    backend: str,
    derivative: bool,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_tokens: Selection,
    key_tokens: Selection,
    key_bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The same in code that is neither traced nor transformed.

    Args:
        derivative: whether a derivative may be asked for.
        query_tokens, key_tokens, key_bias: without TokenIndex, in the forms that X_infer takes.
    """
    ops, qkv = OPS[backend], (query, key, value)
    if derivative and key_bias is not None and key_bias.is_inference():
        key_bias = key_bias.clone()  # else it could not be saved
    indexed = type(query_tokens) is TokenIndex or type(key_tokens) is TokenIndex
    if indexed or (ops.masks_bwd if derivative else ops.infer) is None:
        args = (*qkv, *_lists(backend, query_tokens, key_tokens), key_bias, scale)
        if derivative:
            return apply_outside_transforms(MaskedAttentionFunction, backend, *args)
        return call_below_autograd(ops.fwd, *args)
    if derivative:
        masks = (query_tokens, key_tokens)
        return apply_outside_transforms(MasksFunction, backend, *qkv, *masks, key_bias, scale)
    return direct(ops.infer)(*qkv, query_tokens, key_tokens, key_bias, scale)


_BAD_LISTS = tuple(f"{m}_mask.{field}: " for m in ("query", "key") for field in TokenIndex._fields)


def _fault_of_caller(
    error: RuntimeError,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_tokens: Selection,
    key_tokens: Selection,
) -> ValueError | None:
    """What the caller gave that an op could not take, in words; None if it is no such fault."""
    if str(error).startswith(_BAD_LISTS):  # a compiled library can raise no other class
        return ValueError(str(error))
    if "Inference tensors cannot be saved" not in str(error):
        return None
    saved = {"query": query, "key": key, "value": value}
    for name, tokens in (("query_mask", query_tokens), ("key_mask", key_tokens)):
        if isinstance(tokens, TokenIndex):
            saved[name] = tokens.indices
    names = [name for name, t in saved.items() if t.is_inference()]
    return ValueError(
        f"{', '.join(names)}: expected a tensor made outside of inference_mode, as gradients are "
        "wanted, got one made inside: clone it"
    )


def in_plain_code() -> bool:
    """Whether plain eager code is running: no transform, trace, autocast or forward mode."""
    return not (any_autocast_enabled() or in_forward_mode() or _is_traced())


def lists_masks(backend: str) -> bool:
    """Whether a backend is there whose ops take masks, in training too."""
    return backend in OPS and OPS[backend].masks_bwd is not None


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or in_functorch() or in_jit_trace()


def _has_derivative(*inputs: Tensor | None) -> bool:
    return in_forward_mode() or wants_gradients(*inputs)


def _lists(
    backend: str, query_tokens: Selection, key_tokens: Selection
) -> tuple[Tensor | None, ...]:
    """Indices and counts of the queries, then of the keys."""

    def listed(tokens: Selection) -> tuple[Tensor | None, Tensor | None]:
        if tokens is None:
            return None, None
        return tokens if type(tokens) is TokenIndex else OPS[backend].select_tokens(tokens)

    keys = listed(key_tokens)
    return *(keys if query_tokens is key_tokens else listed(query_tokens)), *keys


def _fake_select_tokens(mask: Tensor) -> tuple[Tensor, Tensor]:
    b, h, n = mask.shape
    return mask.new_empty((b, h, n), dtype=torch.int32), mask.new_empty((b, h), dtype=torch.int32)


def _fake_fwd(query: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return empty_result(query), query.new_empty(
        query.shape[:3], dtype=accumulation_dtype(query.dtype)
    )


def _fake_bwd(
    dout: Tensor, dlse: Tensor | None, query: Tensor, key: Tensor, value: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    key_bias = rest[-2]
    dbias_shape = key_bias.shape if key_bias is not None else (0,)
    dbias = key.new_empty(dbias_shape, dtype=accumulation_dtype(key.dtype))
    return empty_result(query), empty_result(key), empty_result(value), dbias


def _autograd_rule(op: OpOverload, function: Callable[..., Any]) -> Callable[..., Any]:
    """The op through its autograd function, where a derivative may be asked for."""

    def rule(*args: Any) -> Any:
        tensors = (arg for arg in args if isinstance(arg, Tensor))
        if in_functorch() or _has_derivative(*tensors):
            return function(*args)
        return call_below_autograd(op, *args)

    return rule


def _autocast_rule(fwd: OpOverload, device_type: str) -> Any:
    """query, key and value cast as for scaled_dot_product_attention, the rest as it is."""

    def rule(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        qkv = autocast_cast(device_type, query, key, value)
        with torch.autocast(device_type, enabled=False):
            return fwd(*qkv, *rest)

    return rule


def autocast_cast(device_type: str, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the autocast dtype of the device; float64 is left alone, as autocast does."""
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(
        t.to(dtype) if t.is_floating_point() and t.dtype is not torch.float64 else t
        for t in tensors
    )


def _vmap_rule(op: OpOverload, batched_arg: int) -> Callable[..., Any]:
    """Folds the mapped dimension into the batch; args[batched_arg] has the batch size."""

    def rule(info: Any, in_dims: tuple, *args: Any) -> tuple:
        size = info.batch_size
        unmapped = [
            arg
            if not isinstance(arg, Tensor)
            else arg.expand(size, *arg.shape)
            if dim is None
            else arg.movedim(dim, 0)
            for arg, dim in zip(args, in_dims, strict=True)
        ]
        batch = unmapped[batched_arg].shape[1]
        results = op(*(_folded(arg, batch) for arg in unmapped))
        return (
            tuple(r.unflatten(0, (size, batch)) if r.dim() > 1 else r for r in results),
            tuple(
                0 if r.dim() > 1 else None for r in results
            ),  # no key_bias: dbias (0,) is not mapped
        )

    return rule


def _folded(arg: Any, batch: int) -> Any:
    """(V, B | 1, ...) as (V * B, ...)."""
    if not isinstance(arg, Tensor):
        return arg
    return arg.expand(arg.shape[0], batch, *arg.shape[2:]).flatten(0, 1)


def _register(name: str, ops: BackendOps) -> None:
    """The rules of one backend's ops."""
    torch.library.register_fake(ops.select_tokens, _fake_select_tokens)
    torch.library.register_fake(ops.fwd, _fake_fwd)
    torch.library.register_fake(ops.bwd, _fake_bwd)
    # Not register_autograd: what it makes is no function that torch.func can transform.
    forward = partial(TransformableFunction.apply, name)
    _LIBRARY.impl(ops.fwd, _autograd_rule(ops.fwd, forward), "Autograd")
    gradients = partial(TransformableGradients.apply, ops.bwd)
    _LIBRARY.impl(ops.bwd, _autograd_rule(ops.bwd, gradients), "Autograd")
    torch.library.register_vmap(ops.select_tokens, _vmap_rule(ops.select_tokens, batched_arg=0))
    torch.library.register_vmap(ops.fwd, _vmap_rule(ops.fwd, batched_arg=0))
    torch.library.register_vmap(ops.bwd, _vmap_rule(ops.bwd, batched_arg=2))
    register_flop_formula(ops.fwd.overloadpacket, get_raw=True)(fwd_flops)
    register_flop_formula(ops.bwd.overloadpacket, get_raw=True)(bwd_flops)
    forwards = [ops.fwd]
    if ops.infer is not None:
        forwards.append(ops.infer)
        torch.library.register_fake(ops.infer, _fake_fwd)
        register_flop_formula(ops.infer.overloadpacket, get_raw=True)(infer_flops)
    if ops.masks_bwd is not None:
        torch.library.register_fake(ops.masks_bwd, _fake_bwd)
        register_flop_formula(ops.masks_bwd.overloadpacket, get_raw=True)(masks_bwd_flops)
    for fwd in forwards:
        for device_type, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
            _LIBRARY.impl(fwd, _autocast_rule(fwd, device_type), key)


def _adopt(backend: Backend) -> None:
    """Gives the ops of a backend their rules, once it has ops: a library may not be built."""
    if hasattr(torch.ops.maskattn, f"{backend.name}_fwd"):
        OPS[backend.name] = find_ops(backend.name)
        _register(backend.name, OPS[backend.name])


_LIBRARY = torch.library.Library("maskattn", "FRAGMENT")
on_register(_adopt)
