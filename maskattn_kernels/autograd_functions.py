# SPDX-License-Identifier: BSD-3-Clause
"""The autograd functions of `masked_attention`: for lists, for masks, and for torch.func."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor

from maskattn_kernels.op_table import OPS, call_below_autograd
from maskattn_kernels.torch_compat import OpOverload, direct

__all__ = ["MaskedAttentionFunction"]


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
        out, lse = call_below_autograd(OPS[backend].fwd, *args)
        _save(ctx, args, out, lse)
        ctx.backend = backend
        return out, lse

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple:
        bwd = OPS[ctx.backend].bwd
        again = torch.is_grad_enabled()  # under create_graph; the next derivative is refused then
        call = TransformableGradients.apply if again else call_below_autograd
        return None, *_gradients(ctx, partial(call, bwd), dout, dlse)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        _refuse_forward_mode()


class MasksFunction(torch.autograd.Function):
    """The same from masks: their tokens are listed in each pass, and no list leaves the library.

    `apply(backend, query, key, value, query_mask, key_mask, key_bias, scale)`: the arguments are
    those of the op X_infer.
    """

    @staticmethod
    def forward(
        ctx: Any,
        backend: str,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_mask: Tensor | None,
        key_mask: Tensor | None,
        *rest: Any,
    ) -> tuple[Tensor, Tensor]:
        keys = _copied(key_mask)
        queries = keys if query_mask is key_mask else _copied(query_mask)
        args = (query, key, value, queries, keys, *rest)
        out, lse = direct(OPS[backend].infer)(*args)
        _save(ctx, args, out, lse)
        ctx.backend = backend
        return out, lse

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple:
        bwd = OPS[ctx.backend].masks_bwd
        again = torch.is_grad_enabled()
        call = partial(TransformableGradients.apply, bwd) if again else direct(bwd)
        return None, *_gradients(ctx, call, dout, dlse)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        _refuse_forward_mode()


def _copied(mask: Tensor | None) -> Tensor | None:
    """A mask that the caller cannot change before the backward pass."""
    return None if mask is None else mask.clone()


class TransformableFunction(torch.autograd.Function):
    """The same for torch.func, whose transforms need a setup_context: slower in eager code."""

    generate_vmap_rule = True

    @staticmethod
    def forward(backend: str, *args: Any) -> tuple[Tensor, Tensor]:
        return call_below_autograd(OPS[backend].fwd, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        ctx.backend, *args = inputs
        _save(ctx, args, *output)

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple:
        call = partial(TransformableGradients.apply, OPS[ctx.backend].bwd)
        return None, *_gradients(ctx, call, dout, dlse)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        _refuse_forward_mode()


class TransformableGradients(torch.autograd.Function):
    """A backward op: a function, so that torch.func transforms it and its derivative is refused."""

    generate_vmap_rule = True

    @staticmethod
    def forward(bwd: OpOverload, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return call_below_autograd(bwd, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        _refuse_double_backward(ctx, *grads)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        _refuse_forward_mode()


def _save(ctx: Any, args: Sequence[Any], out: Tensor, lse: Tensor) -> None:
    """Keeps the arguments and results of an X_fwd op for `_gradients`."""
    ctx.save_for_backward(*args[:-1], out, lse)
    ctx.scale, ctx.dtype = args[-1], args[0].dtype
    ctx.set_materialize_grads(False)  # an lse that is not used costs nothing


def _gradients(
    ctx: Any, bwd: Callable[..., Any], dout: Tensor | None, dlse: Tensor | None
) -> tuple:
    """The gradients of the arguments of an X_fwd or X_infer op, by its backward op."""
    if dout is None and dlse is None:
        return (None,) * len(ctx.needs_input_grad[1:])
    query, key, value, *tokens, key_bias, out, lse = ctx.saved_tensors
    _check_unpacked(query, ctx.dtype)
    if dout is None:
        dout = torch.zeros_like(out)
    dq, dk, dv, dbias = bwd(dout, dlse, query, key, value, out, lse, *tokens, key_bias, ctx.scale)
    return dq, dk, dv, *(None,) * len(tokens), dbias if key_bias is not None else None, None


def _check_unpacked(query: Tensor, dtype: torch.dtype) -> None:
    if query.dtype is not dtype:
        raise TypeError(f"saved_tensors_hooks: expected tensors back in {dtype}, got {query.dtype}")


def _refuse_double_backward(ctx: Any, *grads: Tensor) -> NoReturn:
    raise NotImplementedError("masked_attention: double backward is not supported")


def _refuse_forward_mode() -> NoReturn:
    raise NotImplementedError("masked_attention: forward-mode derivatives are not supported")
