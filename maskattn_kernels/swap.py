# SPDX-License-Identifier: BSD-3-Clause
"""`swap_attention`: exchange a model's dense attention for masked_attention, and back.

Each exchanged module is replaced in its parent by one that shares its parameters and remembers it.
"""

import re
from collections import Counter
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
    SDPAAttentionCore,
    SparseAttentionCore,
)
from maskattn_kernels.nn.multihead import share_parameters, unsupported_mha
from maskattn_kernels.nn.selecting import SelectiveAttention2d
from maskattn_kernels.nn.swapped_multihead import SwappedMultiheadAttention

__all__ = ["SwapReport", "swap_attention", "unswap_attention"]


@dataclass
class SwapReport:
    """What `swap_attention` did.

    Attributes:
        swapped: (name, from, to) of each module exchanged (with ``dry_run``: that would be).
        skipped: (name, class, reason) of each attention module left as it was.
        notes: (name, note) of modules exchanged of which some calls will not run on the op.
        seen: how many modules there are of each other class that is called attention, by the full
            name of the class; shown where nothing was exchanged.
        handed_on: how many calls each exchanged module has handed to its original, by name and
            argument; counted after the exchange, on and on.
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
    seen: Counter[str] = field(default_factory=Counter)
    handed_on: Counter[tuple[str, str]] = field(default_factory=Counter)
    dry_run: bool = False

    def __str__(self) -> str:
        verb = "would swap" if self.dry_run else "swapped"
        rows = [(verb, name, f"{old} -> {new}") for name, old, new in self.swapped]
        rows += [("skipped", name, f"{kind}: {reason}") for name, kind, reason in self.skipped]
        rows += [("note", name, note) for name, note in self.notes]
        rows += [
            ("handed on", name, f"calls with {argument} to the original: {count}")
            for (name, argument), count in self.handed_on.items()
        ]
        lines = [f"{verb} {len(self.swapped)}, skipped {len(self.skipped)}"]
        if not rows:
            lines.append("  no attention module of this package or of torch.nn in this model")
        if not self.swapped:
            rows += [("seen", f"{n} x {kind}", _served_by(kind)) for kind, n in self.seen.items()]
        wide = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
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
    - An `nn.MultiheadAttention` is exchanged for a `SwappedMultiheadAttention`, which is a
      `MaskedMultiheadAttention` with the same parameter objects, so optimizers, tied weights and
      ``state_dict`` names stay as they are. It gives attention weights only when called with
      ``need_weights=True``. Calls that ask for them, have an ``attn_mask`` or ``is_causal``, or
      come in training mode with dropout run on the original module: the first one of each kind
      warns, and `SwapReport.handed_on` counts them.

    Modules that cannot be exchanged faithfully are left alone, and the report says why: subclasses
    (quantised, parametrised), modules that were changed (hooks on them or on their ``out_proj``,
    another ``out_proj``, methods, attributes, buffers or submodules of their own), ``add_bias_kv``,
    ``add_zero_attn``. Where nothing is exchanged, the report names the classes of other libraries
    that look like attention, and which of `maskattn_kernels.integrations` serves them.

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
          swapped  self_attn  MultiheadAttention -> SwappedMultiheadAttention
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

    report = SwapReport(seen=_other_attention(model), dry_run=dry_run)
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
            replacements[id(module)] = _replacement(module, name, report, backend)
        new = replacements[id(module)]
        report.swapped.append((name, kind, type(new).__name__))
        dropout = getattr(module, "dropout", 0.0)
        if dropout > 0.0:
            note = f"dropout {dropout}: in training mode it runs on the original; set it to 0"
            report.notes.append((name, note))
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
            if isinstance(module, SwappedMultiheadAttention):
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


def _replacement(
    module: nn.Module, name: str, report: SwapReport, backend: str | None
) -> nn.Module:
    if isinstance(module, nn.MultiheadAttention):
        return SwappedMultiheadAttention.of(module, name, report.handed_on, backend)
    new = SparseAttentionCore(backend)
    new.training = module.training
    # In a tuple, so that nn.Module does not take it for a submodule.
    object.__setattr__(new, "_swapped_from", (module,))
    return new


def _other_attention(model: nn.Module) -> Counter[str]:
    """Modules that other libraries call attention, by the full names of their classes."""
    kinds = (type(module) for module in model.modules())
    return Counter(
        f"{kind.__module__}.{kind.__qualname__}"
        for kind in kinds
        if re.search("attention|attn", kind.__name__, re.IGNORECASE)
        and not kind.__module__.startswith(("torch.", "maskattn_kernels."))
    )


def _served_by(kind: str) -> str:
    """Which part of `maskattn_kernels.integrations` serves a class of another library."""
    served = {
        "transformers": "transformers.register",
        "segmentation_models_pytorch": "smp.add_mask_attention",
    }
    by = served.get(kind.partition(".")[0], "sdpa.replace_sdpa")
    return f"not exchanged; see maskattn_kernels.integrations.{by}"


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
