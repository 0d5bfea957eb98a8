# SPDX-License-Identifier: BSD-3-Clause
"""`MaskedMultiheadAttention`: `torch.nn.MultiheadAttention` that skips padded keys.

Masks are turned the right way round here: a bool ``key_padding_mask`` is True where a key is to be
ignored, masked_attention's masks are True where a token is selected.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self  # comes with torch; Python's own is of 3.11

from maskattn_kernels.nn.checks import (
    check_dtype_of_weights,
    fraction,
    positive_int,
    split_in_heads,
)
from maskattn_kernels.nn.cores import SparseAttentionCore
from maskattn_kernels.problem import MAX_HEAD_DIM
from maskattn_kernels.torch_compat import nested_from_padded, nested_lengths

__all__ = ["MaskedMultiheadAttention"]


class MaskedMultiheadAttention(nn.Module):
    """`nn.MultiheadAttention`, weights and call, but keys that are padded are never loaded.

    The same results, with these differences:

    - Attention weights are never formed: ``need_weights`` is False by default, the second result is
      always None, and asking for weights raises `NotImplementedError`.
    - ``attn_mask`` and ``is_causal`` raise `NotImplementedError`: the op masks keys, not pairs.
    - Where every key is padded, the attention is zero (so the output is ``out_proj``'s bias), not
      NaN.
    - ``dropout`` on attention weights does not exist: training with ``dropout > 0`` raises
      `NotImplementedError`; in eval mode dropout does nothing anyway.
    - ``add_bias_kv`` and ``add_zero_attn`` do not exist.

    Args:
        embed_dim, num_heads, dropout, bias, kdim, vdim, batch_first, device, dtype: as in
            `nn.MultiheadAttention`.
        backend: as in `masked_attention`.

    Shapes:
        ``query`` (L,B,E), or (B,L,E) with ``batch_first``, or (L,E) without a batch; ``key`` and
        ``value`` likewise with S tokens and ``kdim``, ``vdim`` channels. Gradients flow to all
        three, the parameters, and a float ``key_padding_mask``.

    Example:
        >>> import torch
        >>> from maskattn_kernels.nn import MaskedMultiheadAttention
        >>> mine = MaskedMultiheadAttention(16, 4, batch_first=True)
        >>> theirs = torch.nn.MultiheadAttention(16, 4, batch_first=True)
        >>> mine.load_state_dict(theirs.state_dict())
        <All keys matched successfully>
        >>> x = torch.randn(2, 6, 16)
        >>> padded = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
        >>> ours, weights = mine(x, x, x, key_padding_mask=padded)
        >>> torch.allclose(ours, theirs(x, x, x, key_padding_mask=padded)[0], atol=1e-5)
        True
    """

    # nn.TransformerEncoderLayer has an eval-mode shortcut that reads its attention's weights and
    # never calls it. It asks for this attribute of nn.MultiheadAttention first, and False keeps it
    # off.
    _qkv_same_embed_dim = False
    # As nn.MultiheadAttention without add_bias_kv and add_zero_attn: what some code looks for.
    bias_k = bias_v = None
    add_zero_attn = False

    in_proj_weight: Tensor | None
    q_proj_weight: Tensor
    k_proj_weight: Tensor
    v_proj_weight: Tensor
    in_proj_bias: Tensor | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        embed_dim, num_heads = split_in_heads("embed_dim", embed_dim, num_heads)
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.dropout = fraction("dropout", dropout)
        self.batch_first = batch_first
        self.kdim = embed_dim if kdim is None else positive_int("kdim", kdim)
        self.vdim = embed_dim if vdim is None else positive_int("vdim", vdim)
        self.core = SparseAttentionCore(backend)

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        if self.kdim == self.vdim == embed_dim:
            self.in_proj_weight = empty(3 * embed_dim, embed_dim)
            for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
                self.register_parameter(name, None)
        else:
            self.register_parameter("in_proj_weight", None)
            self.q_proj_weight = empty(embed_dim, embed_dim)
            self.k_proj_weight = empty(embed_dim, self.kdim)
            self.v_proj_weight = empty(embed_dim, self.vdim)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias, device=device, dtype=dtype)
        if bias:
            self.in_proj_bias = empty(3 * embed_dim)
        else:
            self.register_parameter("in_proj_bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the projections anew, as `nn.MultiheadAttention` does: Xavier, and zero biases."""
        for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            weight = getattr(self, name)
            if weight is not None:
                nn.init.xavier_uniform_(weight)
        if self.in_proj_bias is not None:
            nn.init.zeros_(self.in_proj_bias)
            nn.init.zeros_(self.out_proj.bias)

    @classmethod
    def from_mha(cls, mha: nn.MultiheadAttention, backend: str | None = None) -> Self:
        """One that shares the parameters of ``mha``: the same objects, not copies.

        Raises:
            NotImplementedError: ``mha`` has ``add_bias_kv``, ``add_zero_attn`` or heads of more
                than 256 channels.

        Example:
            >>> import torch
            >>> from maskattn_kernels.nn import MaskedMultiheadAttention
            >>> theirs = torch.nn.MultiheadAttention(16, 4)
            >>> mine = MaskedMultiheadAttention.from_mha(theirs)
            >>> mine.in_proj_weight is theirs.in_proj_weight
            True
        """
        if not isinstance(mha, nn.MultiheadAttention):
            raise TypeError(f"mha: expected an nn.MultiheadAttention, got {type(mha).__name__}")
        reason = unsupported_mha(mha)
        if reason:
            raise NotImplementedError(f"mha: {reason}")
        new = cls(
            mha.embed_dim,
            mha.num_heads,
            mha.dropout,
            mha.in_proj_bias is not None,
            mha.kdim,
            mha.vdim,
            mha.batch_first,
            device="meta",  # no memory and no random numbers: the parameters are replaced below
            backend=backend,
        )
        share_parameters(mha, new)
        new.training = mha.training
        return new

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention, projected; and None in the place of the weights.

        Args:
            query, key, value: see the class.
            key_padding_mask: (B,S), or (S,) without a batch. Bool: True = ignore this key. Float:
                added to the scaled scores, -inf = ignore this key.
            need_weights, attn_mask, average_attn_weights, is_causal: there for the signature; see
                the class.

        Returns:
            ``(output, None)``, output shaped as ``query``.
        """
        self._check(query, key, value, key_padding_mask, need_weights, attn_mask, is_causal)
        if query.is_nested:
            return self._forward_nested(query, key, value), None
        batched = query.dim() == 3
        if not batched:
            same_key, same_value = key is query, value is key
            query = query.unsqueeze(0)
            key = query if same_key else key.unsqueeze(0)
            value = key if same_value else value.unsqueeze(0)
            if key_padding_mask is not None:
                key_padding_mask = key_padding_mask.unsqueeze(0)
        tokens_first = batched and not self.batch_first

        q, k, v = self._project(query, key, value)
        if tokens_first:  # (L,B,H,D) -> (B,H,L,D)
            q, k, v = (t.permute(1, 2, 0, 3) for t in (q, k, v))
        else:  # (B,L,H,D) -> (B,H,L,D)
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        key_mask, key_bias = _selected(key_padding_mask)
        out = self.core(q, k, v, key_mask=key_mask, key_bias=key_bias)
        out = out.permute(2, 0, 1, 3) if tokens_first else out.transpose(1, 2)
        out = self.out_proj(out.flatten(2))
        return (out if batched else out.squeeze(0)), None

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (.., .., H, D); one product if they come of one tensor."""
        heads = (self.num_heads, self.head_dim)
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if weight is not None and query is key and key is value:
            qkv = F.linear(query, weight, bias).unflatten(-1, (3, *heads))
            return qkv.unbind(2)
        if weight is not None:
            weights = weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None, None, None) if bias is None else bias.chunk(3)
        inputs = (query, key, value)
        q, k, v = (
            F.linear(x, w, b).unflatten(-1, heads)
            for x, w, b in zip(inputs, weights, biases, strict=True)
        )
        return q, k, v

    def _forward_nested(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Self-attention over a nested tensor.

        nn.TransformerEncoder in eval mode makes one of a batch that is padded on the right. It is
        padded again here, the padding selected neither as query nor as key, and the result nested.
        """
        if not (query is key and key is value):
            raise NotImplementedError(
                "query: expected self-attention, got a nested tensor beside another key or value"
            )
        if query.layout is not torch.strided:
            raise NotImplementedError(
                f"query: expected a nested tensor of layout torch.strided, got {query.layout}"
            )
        lengths = nested_lengths(query).to(query.device)
        padded = query.to_padded_tensor(0.0)
        tokens = padded.shape[1]
        valid = torch.arange(tokens, device=query.device) < lengths[:, None]
        q, k, v = (t.transpose(1, 2) for t in self._project(padded, padded, padded))
        out = self.core(q, k, v, key_mask=valid, query_mask=valid)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        return nested_from_padded(out, valid)

    def refusal(self, need_weights: bool, attn_mask: Tensor | None, is_causal: bool) -> str | None:
        """Why a call with these arguments of `forward` raises; None if they are no reason."""
        if need_weights:
            return "need_weights: expected False (attention weights are never formed), got True"
        if attn_mask is not None or is_causal:
            what = "is_causal" if attn_mask is None else "attn_mask"
            return (
                f"{what}: expected none (keys are masked, not pairs; use key_padding_mask), got one"
            )
        if self.training and self.dropout > 0.0:
            return f"dropout: expected 0 (weights are never formed), got {self.dropout} in training"
        return None

    def _check(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None,
        need_weights: bool,
        attn_mask: Tensor | None,
        is_causal: bool,
    ) -> None:
        self._check_inputs(query, key, value)
        refusal = self.refusal(need_weights, attn_mask, is_causal)
        if refusal is not None:
            raise NotImplementedError(refusal)
        if key_padding_mask is None:
            return
        if query.is_nested:
            raise ValueError("key_padding_mask: expected None, got one with a nested query")
        if not isinstance(key_padding_mask, Tensor):
            kind = type(key_padding_mask).__name__
            raise TypeError(f"key_padding_mask: expected a bool or float Tensor, got {kind}")
        if key_padding_mask.dtype != torch.bool and not key_padding_mask.is_floating_point():
            raise TypeError(
                f"key_padding_mask: expected dtype bool or float, got {key_padding_mask.dtype}"
            )
        expected = tuple(key.shape[:-1])
        if len(expected) == 2 and not self.batch_first:
            expected = expected[::-1]
        if tuple(key_padding_mask.shape) != expected:
            raise ValueError(
                f"key_padding_mask: expected shape {expected}, got {tuple(key_padding_mask.shape)}"
            )
        if key_padding_mask.device != key.device:
            raise ValueError(
                f"key_padding_mask: expected device {key.device} as key, "
                f"got {key_padding_mask.device}"
            )

    def _check_inputs(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        weight = self.q_proj_weight if self.in_proj_weight is None else self.in_proj_weight
        for name, t, width in (
            ("query", query, self.embed_dim),
            ("key", key, self.kdim),
            ("value", value, self.vdim),
        ):
            if not isinstance(t, Tensor):
                raise TypeError(f"{name}: expected a Tensor, got {type(t).__name__}")
            if t.dim() not in (2, 3) or t.dim() != query.dim():
                raise ValueError(
                    f"{name}: expected 3 dimensions (2 without a batch) as query, got {t.dim()}"
                )
            if t.size(-1) != width:
                raise ValueError(f"{name}: expected {width} channels, got {t.size(-1)}")
            check_dtype_of_weights(name, t, weight)
        if query.is_nested or (query is key and key is value):
            return
        batch, tokens = (0, 1) if self.batch_first else (1, 0)
        for name, t in (("key", key), ("value", value)):
            if query.dim() == 3 and t.size(batch) != query.size(batch):
                raise ValueError(
                    f"{name}: expected batch size {query.size(batch)} as query (dimension {batch}, "
                    f"batch_first={self.batch_first}), got shape {tuple(t.shape)}"
                )
        tokens = tokens if query.dim() == 3 else 0
        if value.size(tokens) != key.size(tokens):
            raise ValueError(
                f"value: expected {key.size(tokens)} tokens as key (dimension {tokens}), "
                f"got shape {tuple(value.shape)}"
            )

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, {self.num_heads}, batch_first={self.batch_first}"


def unsupported_mha(mha: nn.MultiheadAttention) -> str | None:
    """Why ``mha`` has no `MaskedMultiheadAttention`, in a few words; None if it has one."""
    if mha.bias_k is not None or mha.bias_v is not None:
        return "add_bias_kv=True is not supported"
    if mha.add_zero_attn:
        return "add_zero_attn=True is not supported"
    if mha.head_dim > MAX_HEAD_DIM:
        return f"head_dim {mha.head_dim} is over {MAX_HEAD_DIM}"
    return None


def share_parameters(source: nn.Module, target: nn.Module) -> None:
    """Gives ``target`` the very parameters and ``out_proj`` of ``source``."""
    for name in (
        "in_proj_weight",
        "q_proj_weight",
        "k_proj_weight",
        "v_proj_weight",
        "in_proj_bias",
        "out_proj",
    ):
        setattr(target, name, getattr(source, name))


def _selected(key_padding_mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """key_padding_mask -> (key_mask, key_bias) of masked_attention."""
    if key_padding_mask is None:
        return None, None
    if key_padding_mask.dtype == torch.bool:
        return ~key_padding_mask, None
    return None, key_padding_mask
