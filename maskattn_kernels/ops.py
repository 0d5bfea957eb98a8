# SPDX-License-Identifier: BSD-3-Clause
"""The ops of all backends under one roof: fakes, gradients, autocast, and the eager
autograd.Function.

Every backend brings the same three ops (`backends/base.py`), so each rule is written once and
registered in a loop. Compiled and traced code calls the registered op, whose gradient is that of
`TransformableFunction`, as in code that torch.func transforms; other eager code goes through
`MaskedAttentionFunction`, the same formulas with a quarter of the overhead.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from maskattn_kernels.backends import on_register
from maskattn_kernels.backends.base import Backend, accumulation_dtype, empty_result
from maskattn_kernels.flops import bwd_flops, fwd_flops, infer_flops
from maskattn_kernels.token_index import TokenIndex
from maskattn_kernels.torch_compat import (
    OpOverload,
    below_autograd,
    in_forward_mode,
    in_functorch,
    in_jit_trace,
)

__all__ = ["MaskedAttentionFunction"]


class BackendOps(NamedTuple):
    """The registered ops of one backend."""

    select_tokens: OpOverload
    fwd: OpOverload
    bwd: OpOverload
    infer: OpOverload | None


def _find_ops(name: str) -> BackendOps:
    def op(field: str) -> OpOverload:
        return getattr(torch.ops.maskattn, f"{name}_{field}").default

    infer = op("infer") if hasattr(torch.ops.maskattn, f"{name}_infer") else None
    return BackendOps(op("select_tokens"), op("fwd"), op("bwd"), infer)


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
    backend_ops = OPS[backend]
    qkv = (query, key, value)
    function: Callable[..., Any]
    traced = _is_traced()
    if not traced and not _has_derivative(*qkv, key_bias):
        indexed = isinstance(query_tokens, TokenIndex) or isinstance(key_tokens, TokenIndex)
        if backend_ops.infer is not None and not indexed:
            return _below_autograd(
                backend_ops.infer, *qkv, query_tokens, key_tokens, key_bias, scale
            )
        function = partial(_below_autograd, backend_ops.fwd)
    elif torch.compiler.is_compiling() or in_jit_trace():
        function = backend_ops.fwd
    elif traced:
        function = partial(TransformableFunction.apply, backend)
    else:
        function = partial(MaskedAttentionFunction.apply, backend)
    key_index = _token_index(backend_ops, key_tokens)
    shared = query_tokens is key_tokens
    query_index = key_index if shared else _token_index(backend_ops, query_tokens)
    try:
        return function(*qkv, *query_index, *key_index, key_bias, scale)
    except RuntimeError as error:
        named = {
            "query": query, "key": key, "value": value,
            "query_mask": query_index[0], "key_mask": key_index[0],
        }  # fmt: skip
        fault = _fault_of_caller(error, named)
        if fault is None:
            raise
        raise fault from None


_BAD_LISTS = tuple(f"{m}_mask.{field}: " for m in ("query", "key") for field in TokenIndex._fields)


def _fault_of_caller(error: RuntimeError, named: dict[str, Tensor | None]) -> ValueError | None:
    """What the caller gave that an op could not take, in words; None if it is no such fault."""
    if str(error).startswith(_BAD_LISTS):  # a compiled library can raise no other class
        return ValueError(str(error))
    if "Inference tensors cannot be saved" not in str(error):
        return None
    names = [name for name, t in named.items() if t is not None and t.is_inference()]
    return ValueError(
        f"{', '.join(names)}: expected a tensor made outside of inference_mode, as gradients are "
        "wanted, got one made inside: clone it"
    )


def short_way() -> OpOverload | None:
    """The CPU's infer op, if it exists and plain eager code without gradients is running."""
    if torch.is_grad_enabled() or in_forward_mode() or _is_traced():
        return None
    return OPS["cpu"].infer if "cpu" in OPS else None


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or in_functorch() or in_jit_trace()


def _has_derivative(*inputs: Tensor | None) -> bool:
    return in_forward_mode() or (
        torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    )


def _token_index(backend_ops: BackendOps, selection: Selection) -> TokenIndex | tuple[None, None]:
    if selection is None:
        return None, None
    if isinstance(selection, TokenIndex):
        return selection
    return TokenIndex(*backend_ops.select_tokens(selection))


class MaskedAttentionFunction(torch.autograd.Function):
    """The autograd function under `masked_attention` in eager code.

    `MaskedAttentionFunction.apply(backend, query, key, value, query_indices, query_counts,
    key_indices, key_counts, key_bias, scale)` returns `(out, lse)`, for the name of a backend and
    tensors as `backends/base.py` describes them. It validates nothing: call `masked_attention`.
    Differentiable once, in query, key, value and key_bias.

    Example:
        >>> import torch
        >>> from maskattn_kernels import MaskedAttentionFunction, masked_attention
        >>> q, k, v = torch.randn(3, 1, 2, 5, 8).unbind()
        >>> everything = (None, None, None, None, None)  # all tokens, and no bias
        >>> out, lse = MaskedAttentionFunction.apply("reference", q, k, v, *everything, 8**-0.5)
        >>> torch.equal(out, masked_attention(q, k, v, backend="reference"))
        True
    """

    @staticmethod
    def forward(ctx: Any, backend: str, *args: Any) -> tuple[Tensor, Tensor]:
        out, lse = _below_autograd(OPS[backend].fwd, *args)
        _save(ctx, args, out, lse)
        ctx.backend = backend
        return out, lse

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple:
        bwd = OPS[ctx.backend].bwd
        # Under create_graph the op's own autograd must see the call, to refuse the next derivative.
        quick = bwd if torch.is_grad_enabled() else partial(_below_autograd, bwd)
        return None, *_gradients(ctx, quick, dout, dlse)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        _refuse_forward_mode()


class TransformableFunction(torch.autograd.Function):
    """The same for torch.func, whose transforms need a setup_context: slower in eager code."""

    generate_vmap_rule = True

    @staticmethod
    def forward(backend: str, *args: Any) -> tuple[Tensor, Tensor]:
        return _below_autograd(OPS[backend].fwd, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        ctx.backend, *args = inputs
        _save(ctx, args, *output)

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple:
        return None, *_gradients(
            ctx, partial(TransformableGradients.apply, ctx.backend), dout, dlse
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        _refuse_forward_mode()


class TransformableGradients(torch.autograd.Function):
    """The backward of TransformableFunction: a function, so that its derivative is refused."""

    generate_vmap_rule = True

    @staticmethod
    def forward(backend: str, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return _below_autograd(OPS[backend].bwd, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        _refuse_double_backward(ctx, *grads)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        _refuse_forward_mode()


def _below_autograd(op: OpOverload, *args: Any) -> Any:
    """The op without the cost of its registered autograd."""
    with below_autograd():
        return op(*args)


def _save(ctx: Any, args: Sequence[Any], out: Tensor, lse: Tensor) -> None:
    """Keeps the arguments and results of an X_fwd op for `_gradients`."""
    ctx.save_for_backward(*args[:-1], out, lse)
    ctx.scale, ctx.dtype = args[-1], args[0].dtype
    ctx.set_materialize_grads(False)  # an lse that is not used costs nothing


def _gradients(
    ctx: Any, bwd: Callable[..., Any], dout: Tensor | None, dlse: Tensor | None
) -> tuple:
    """The gradients of the arguments of an X_fwd op."""
    if dout is None and dlse is None:
        return (None,) * 9
    query, key, value, *index, key_bias, out, lse = ctx.saved_tensors
    if query.dtype is not ctx.dtype:
        raise TypeError(
            f"saved_tensors_hooks: expected tensors back in {ctx.dtype}, got {query.dtype}"
        )
    if dout is None:
        dout = torch.zeros_like(out)
    dq, dk, dv, dbias = bwd(dout, dlse, query, key, value, out, lse, *index, key_bias, ctx.scale)
    return dq, dk, dv, None, None, None, None, dbias if key_bias is not None else None, None


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
    dbias_shape = key.shape[:3] if key_bias is not None else (0,)
    dbias = key.new_empty(dbias_shape, dtype=accumulation_dtype(key.dtype))
    return empty_result(query), empty_result(key), empty_result(value), dbias


def _refuse_double_backward(ctx: Any, *grads: Tensor) -> NoReturn:
    raise NotImplementedError("masked_attention: double backward is not supported")


def _refuse_forward_mode() -> NoReturn:
    raise NotImplementedError("masked_attention: forward-mode derivatives are not supported")


def _autograd_rule(name: str, op: OpOverload, function: type[torch.autograd.Function]) -> Any:
    """The op through its autograd function, where a derivative may be asked for."""

    def rule(*args: Any) -> Any:
        tensors = (arg for arg in args if isinstance(arg, Tensor))
        if in_functorch() or _has_derivative(*tensors):
            return function.apply(name, *args)
        return _below_autograd(op, *args)

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
    for op, function in ((ops.fwd, TransformableFunction), (ops.bwd, TransformableGradients)):
        _LIBRARY.impl(op, _autograd_rule(name, op, function), "Autograd")
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
    for fwd in forwards:
        for device_type, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
            _LIBRARY.impl(fwd, _autocast_rule(fwd, device_type), key)


def _adopt(backend: Backend) -> None:
    """Gives the ops of a backend their rules, once it has ops: a library may not be built."""
    if hasattr(torch.ops.maskattn, f"{backend.name}_fwd"):
        OPS[backend.name] = _find_ops(backend.name)
        _register(backend.name, OPS[backend.name])


_LIBRARY = torch.library.Library("maskattn", "FRAGMENT")
OPS: dict[str, BackendOps] = {}
on_register(_adopt)
