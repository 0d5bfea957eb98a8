# SPDX-License-Identifier: BSD-3-Clause
"""Sharding rules of the ops for `torch.distributed.tensor.DTensor`: by batch, and by heads.

Importing this module registers them; nothing else of the package imports torch.distributed::

    import maskattn_kernels.distributed
    masked_attention(query, key, value, key_mask=mask)   # DTensors, masks among them

Tensors that are sharded by tokens or features are gathered first. With fewer heads of key than of
query, heads are sharded only where each shard gets whole groups. The rules are for the backends
that are registered when the module is imported.
"""

from collections.abc import Sequence
from typing import Any

from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding
from torch.distributed.tensor.placement_types import Placement

from maskattn_kernels.op_table import OPS

__all__: list[str] = []

BATCH, HEADS = 0, 1
Rule = tuple[list[Placement], list[Placement | None]]


def _placed(dim: int, tensors: Sequence[Any]) -> list[Placement | None]:
    """Every tensor sharded along a dimension; whole where it has size 1 there, for all to share."""
    return [None if t is None else Shard(dim) if t.shape[dim] > 1 else Replicate() for t in tensors]


def _rules(tensors: Sequence[Any], results: int, empty_last: bool, dims: Sequence[int]) -> list:
    """(results, arguments) of a call that is whole, and of one sharded along each of the dims."""
    whole = [None if t is None else Replicate() for t in tensors]
    rules: list[Rule] = [([Replicate()] * results, [*whole])]
    for dim in dims:
        placed: list[Placement] = [Shard(dim)] * results
        if empty_last:  # no key_bias: dbias (0,)
            placed[-1] = Replicate()
        rules.append((placed, _placed(dim, tensors)))
    return rules


def _dims(query: Any, key: Any) -> list[int]:
    """Where a call may be sharded: dimensions of which each shard gets its own part."""
    dims = [BATCH] if query.shape[BATCH] > 1 else []
    heads, kv_heads = query.shape[HEADS], key.shape[HEADS]
    whole_groups = kv_heads % query.mesh.size() == 0
    if kv_heads > 1 and (heads == kv_heads or whole_groups):
        dims.append(HEADS)
    return dims


def _select_tokens(mask: Any) -> list[Rule]:
    return _rules([mask], 2, False, [d for d in (BATCH, HEADS) if mask.shape[d] > 1])


def _forward(query: Any, key: Any, *rest: Any) -> list[Rule]:
    *tensors, _ = rest
    rules = _rules([query, key, *tensors], 2, False, _dims(query, key))
    return [(results, [*placed, None]) for results, placed in rules]  # scale is no tensor


def _backward(dout: Any, dlse: Any, query: Any, key: Any, *rest: Any) -> list[Rule]:
    *tensors, _ = rest
    given = [dout, dlse, query, key, *tensors]
    rules = _rules(given, 4, tensors[-1] is None, _dims(query, key))
    return [(results, [*placed, None]) for results, placed in rules]


for _ops in OPS.values():
    register_sharding(_ops.select_tokens)(_select_tokens)
    register_sharding(_ops.fwd)(_forward)
    register_sharding(_ops.bwd)(_backward)
    if _ops.infer is not None:
        register_sharding(_ops.infer)(_forward)
    if _ops.masks_bwd is not None:
        register_sharding(_ops.masks_bwd)(_backward)
