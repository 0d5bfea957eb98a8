# SPDX-License-Identifier: BSD-3-Clause
"""`swap_attention`: exchange a model's dense attention for masked_attention, and back.

Each exchanged module is replaced in its parent by one that shares its parameters and remembers it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from operator import attrgetter
from typing import Any

from torch import nn

from maskattn_kernels.functional import check_backend
from maskattn_kernels.nn import (
    DenseAttentionCore,
    MaskedMultiheadAttention,
    SDPAAttentionCore,
    SparseAttentionCore,
)
from maskattn_kernels.nn.multihead import share_parameters, unsupported_mha
from maskattn_kernels.nn.selecting import SelectiveAttention2d

__all__ = ["SwapReport", "swap_attention", "unswap_attention"]


@dataclass
class SwapReport:
    """What `swap_attention` did.

    Attributes:
        swapped: (name, from, to) of each module exchanged (with ``dry_run``: that would be).
        skipped: (name, class, reason) of each attention module left as it was.
        notes: (name, note) of modules exchanged that will not do all that they did.
        dry_run: nothing was changed.

    Example:
        >>> from maskattn_kernels.swap import SwapReport
        >>> print(SwapReport([("encoder.attention", "DenseAttentionCore", "SparseAttentionCore")]))
        swapped 1, skipped 0
          swapped  encoder.attention  DenseAttentionCore -> SparseAttentionCore
    """

    swapped: list[tuple[str, str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    dry_run: bool = False

    def __str__(self) -> str:
        verb = "would swap" if self.dry_run else "swapped"
        rows = [(verb, name, f"{old} -> {new}") for name, old, new in self.swapped]
        rows += [("skipped", name, f"{kind}: {reason}") for name, kind, reason in self.skipped]
        rows += [("note", name, note) for name, note in self.notes]
        lines = [f"{verb} {len(self.swapped)}, skipped {len(self.skipped)}"]
        if not rows:
            lines.append("  no attention module of this package or of torch.nn in this model")
            return lines[0] + "\n" + lines[1]
        wide = [max(len(row[column]) for row in rows) for column in (0, 1)]
        lines += [f"  {what:<{wide[0]}}  {name:<{wide[1]}}  {note}" for what, name, note in rows]
        return "\n".join(lines)


def swap_attention(
    model: nn.Module,
    *,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    dry_run: bool = False,
    backend: str | None = None,
) -> SwapReport:
    """Exchanges dense attention in ``model`` for masked_attention, in place.

    - In a `MaskAttention2d` or `DisentangledAttention2d` the dense core is exchanged for the sparse
      one.
    - An `nn.MultiheadAttention` is exchanged for a `MaskedMultiheadAttention` with the same
      parameter objects, so optimizers, tied weights and ``state_dict`` names stay as they are. It
      returns no attention weights and takes no ``attn_mask``: exclude modules called with one.

    Modules that cannot be exchanged faithfully are left alone, and the report says why: subclasses
    (quantised, parametrised), modules that were changed (hooks on them or on their ``out_proj``,
    another ``out_proj``, methods, attributes, buffers or submodules of their own), ``add_bias_kv``,
    ``add_zero_attn``, dropout while training.

    Args:
        model: searched with all its submodules.
        include: shell patterns (``"encoder.*"``) of module names; None = all.
        exclude: the same, left out even if included.
        dry_run: report only.
        backend: as in `masked_attention`.

    Returns:
        A `SwapReport`; printing it gives a table.

    Raises:
        TypeError: ``model`` is not a module, or patterns are not strings.
        ValueError: a pattern matches no attention module.

    Example:
        >>> import torch
        >>> from maskattn_kernels import swap_attention, unswap_attention
        >>> layer = torch.nn.TransformerEncoderLayer(16, 2, dropout=0.0, batch_first=True)
        >>> print(swap_attention(layer))
        swapped 1, skipped 0
          swapped  self_attn  MultiheadAttention -> MaskedMultiheadAttention
        >>> unswap_attention(layer)
        ['self_attn']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    check_backend(backend)
    candidates = list(_candidates(model))
    names = [name for name, *_ in candidates]
    include = _patterns("include", include, names)
    exclude = _patterns("exclude", exclude, names)

    report = SwapReport(dry_run=dry_run)
    replacements: dict[int, nn.Module] = {}  # a module used in two places is exchanged for one, too
    reason: str | None
    for name, parent, attribute, module in candidates:
        kind = type(module).__name__
        if include is not None and not _matches(name, include):
            reason = "not included"
        elif exclude is not None and _matches(name, exclude):
            reason = "excluded"
        elif parent is None:
            reason = "it is the model itself; use MaskedMultiheadAttention.from_mha"
        else:
            reason = _reason_to_skip(module)
        if reason is not None:
            report.skipped.append((name, kind, reason))
            continue
        if id(module) not in replacements:
            replacements[id(module)] = _replacement(module, backend)
        new = replacements[id(module)]
        report.swapped.append((name, kind, type(new).__name__))
        dropout = getattr(module, "dropout", 0.0)
        if dropout > 0.0:
            report.notes.append((name, f"dropout {dropout} raises in training mode: set it to 0"))
        if not dry_run:
            setattr(parent, attribute, new)
    return report


def unswap_attention(model: nn.Module) -> list[str]:
    """Puts back what `swap_attention` exchanged: the very objects, with today's parameters.

    Args:
        model: the one given to `swap_attention`, or a copy of it.

    Returns:
        Names of the modules put back; empty when nothing was exchanged.

    Raises:
        TypeError: ``model`` is not a module.

    Example:
        >>> from maskattn_kernels import swap_attention, unswap_attention
        >>> from maskattn_kernels.models import MaskAttnUNet
        >>> network = MaskAttnUNet(width=8, depth=1, core="dense")
        >>> report = swap_attention(network)
        >>> unswap_attention(network)
        ['down_attention.0', 'up_attention.0']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    put_back = []
    for name, parent in list(model.named_modules(remove_duplicate=False)):
        for attribute, module in list(parent._modules.items()):
            original = getattr(module, "_swapped_from", (None,))[0]
            if original is None:
                continue
            if isinstance(module, MaskedMultiheadAttention):
                share_parameters(module, original)
            original.train(module.training)
            setattr(parent, attribute, original)
            ours = isinstance(parent, SelectiveAttention2d)
            put_back.append(name if ours else _join(name, attribute))
    return put_back


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module | None, str, nn.Module]]:
    """(name to report, parent, attribute, module) of everything that does attention, in order."""
    if isinstance(model, nn.MultiheadAttention):
        yield "", None, "", model
    for name, parent in model.named_modules(remove_duplicate=False):
        if isinstance(parent, SelectiveAttention2d):
            yield name, parent, "core", parent.core
            continue
        for attribute, module in parent._modules.items():
            if isinstance(module, nn.MultiheadAttention):
                yield _join(name, attribute), parent, attribute, module


def _reason_to_skip(module: nn.Module) -> str | None:
    if isinstance(module, SparseAttentionCore):
        return "sparse already"
    if type(module) not in (DenseAttentionCore, SDPAAttentionCore, nn.MultiheadAttention):
        return "a class of its own; only torch's and this package's dense attention are exchanged"
    kind: Any = type(module)
    unchanged = _unchanged(kind)
    if not isinstance(module, nn.MultiheadAttention):
        return _change(module, unchanged)
    if module.training and module.dropout > 0.0:
        return f"dropout {module.dropout} in training mode; call eval() or set its dropout to 0"
    return (
        unsupported_mha(module)
        or _change(module, unchanged)
        or _change(module.out_proj, unchanged.out_proj)
    )


@cache
def _unchanged(kind: Any) -> Any:
    """A module of the class as its constructor leaves it."""
    return kind(1, 1, device="meta") if kind is nn.MultiheadAttention else kind()


def _change(module: nn.Module, unchanged: nn.Module) -> str | None:
    """What was done to a module that an exchange would lose; None if nothing was."""
    if type(module) is not type(unchanged):
        return f"a {type(module).__name__} in place of its {type(unchanged).__name__}"
    hooks = sum(len(getattr(module, registry)) for registry in _HOOKS)
    if hooks:
        return f"{hooks} hook(s) are registered on its {type(module).__name__}"
    for registry in (vars, _parameters, _buffers, _modules):
        more = [name for name in registry(module) if name not in registry(unchanged)]
        if more:
            return f"{', '.join(more)} set on its {type(module).__name__}"
    return None


_parameters, _buffers, _modules = map(attrgetter, ("_parameters", "_buffers", "_modules"))
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def _replacement(module: nn.Module, backend: str | None) -> nn.Module:
    new: nn.Module
    if isinstance(module, nn.MultiheadAttention):
        new = MaskedMultiheadAttention.from_mha(module, backend)
        # torch.fx takes modules of torch.nn as leaves, as this one was before the exchange.
        new.__module__ = "torch.nn"
    else:
        new = SparseAttentionCore(backend)
        new.training = module.training
    # In a tuple, so that nn.Module does not take it for a submodule.
    object.__setattr__(new, "_swapped_from", (module,))
    return new


def _patterns(
    argument: str, patterns: Iterable[str] | None, names: list[str]
) -> tuple[str, ...] | None:
    if patterns is None:
        return None
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"{argument}: expected patterns as str, got {type(pattern).__name__}")
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"{argument}: expected patterns that match among {names}, got {pattern!r}"
            )
    return patterns


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
