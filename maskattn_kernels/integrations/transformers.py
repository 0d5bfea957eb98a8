# SPDX-License-Identifier: BSD-3-Clause
"""`register`: ``attn_implementation="maskattn"`` for models of Hugging Face transformers.

transformers asks an implementation for two functions. The mask function leaves a padding mask as
one row for all queries, where transformers' own for SDPA repeats it for each; all other masks are
made by that one. The attention function runs calls with such masks on masked_attention, and gives
all others to transformers' own for SDPA.
"""

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

from torch import Tensor, nn

from maskattn_kernels.common.extras import missing_package
from maskattn_kernels.integrations.calls import Calls, reason_to_hand_on, run

__all__ = ["NAME", "register"]

NAME = "maskattn"
"""The name to give as ``attn_implementation``."""

#: What only other implementations know: attention sinks, capped scores, keys by number.
_UNKNOWN = ("s_aux", "sinks", "softcap", "indices", "block_indices")


def register() -> Calls:
    """Makes ``attn_implementation="maskattn"`` known to transformers, for all models.

    On `masked_attention` run calls with a padding mask, or without a mask on CPUs, and steps of
    generation, whose one query has a mask of keys alone. All other calls give exactly what
    ``attn_implementation="sdpa"`` gives: causal ones, masks of pairs, position biases, dropout in
    training, attention weights asked for. Results are those of "sdpa" up to rounding, gradients
    too, in padded rows as well. Models that "sdpa" cannot compute (attention sinks, capped scores)
    raise `NotImplementedError` when they are called.

    It can be called again, and then counts anew.

    Returns:
        `Calls`: how many attention calls of all models ran on the op, how many on SDPA, and why.
        Those in code compiled by torch.compile are not counted.

    Raises:
        ModuleNotFoundError: transformers is not installed; the line says how to install it.
        ImportError: it is older than 5.8.

    Example::

        from maskattn_kernels.integrations.transformers import register

        calls = register()
        model = AutoModel.from_pretrained(name, attn_implementation="maskattn")
        model.set_attn_implementation("maskattn")  # or later
    """
    try:
        from transformers import AttentionInterface, AttentionMaskInterface, __version__
        from transformers.integrations.sdpa_attention import sdpa_attention_forward
        from transformers.masking_utils import bidirectional_mask_function, sdpa_mask
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(missing_package(error, "transformers"), name=error.name) from None
    if "q_length" not in signature(sdpa_mask).parameters:
        raise ImportError(f"transformers: expected version 5.8 or newer, got {__version__}")
    calls = Calls()
    AttentionInterface.register(NAME, partial(_attend, calls, sdpa_attention_forward))
    AttentionMaskInterface.register(NAME, partial(_mask, sdpa_mask, bidirectional_mask_function))
    return calls


def _mask(
    sdpa_mask: Callable[..., Tensor | None],
    bidirectional: Callable[..., Any],
    *,
    q_length: int,
    mask_function: Callable[..., Any],
    allow_is_bidirectional_skip: bool = False,
    **options: Any,
) -> Tensor | None:
    """The mask (B,1,Nq,Nk) that SDPA would get, or one row (B,1,1,Nk) of it where all are equal.

    Without leave to skip a mask, a model joins it to others, and needs all of it.
    """
    if mask_function is bidirectional and allow_is_bidirectional_skip:
        q_length = 1
    return sdpa_mask(
        q_length=q_length,
        mask_function=mask_function,
        allow_is_bidirectional_skip=allow_is_bidirectional_skip,
        **options,
    )


def _attend(
    calls: Calls,
    by_sdpa: Callable[..., tuple[Tensor, None]],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention (B,Nq,H,D) of queries (B,H,Nq,D), as transformers calls it; and no weights."""
    for name in _UNKNOWN:
        if options.get(name) is not None:
            raise NotImplementedError(
                f"{name}: expected None with attn_implementation={NAME!r}, got one from "
                f"{type(module).__name__}; this model needs another implementation, such as eager"
            )
    if options.get("position_bias") is not None:
        reason: str | None = "position bias"
    elif options.get("output_attentions"):
        reason = "weights asked for"
    else:
        # As SDPA is called: a mask says all, and one query sees all keys.
        alone = attention_mask is None and query.shape[2] > 1
        causal = alone and (getattr(module, "is_causal", True) if is_causal is None else is_causal)
        reason = reason_to_hand_on(query, key, value, attention_mask, dropout, causal)
    calls.count(reason)
    if reason is not None:
        return by_sdpa(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=is_causal,
            **options,
        )
    shared = query.shape[1] != key.shape[1]  # heads of keys
    out = run(query, key, value, attention_mask, scale=scaling, enable_gqa=shared)
    return out.transpose(1, 2).contiguous(), None
