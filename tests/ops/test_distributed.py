# SPDX-License-Identifier: BSD-3-Clause
"""DTensors in two processes: sharded by batch, by heads, and by what has to be gathered."""

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from maskattn_kernels import masked_attention

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch has no torch.distributed")


def call(tensors: dict[str, Tensor], **kwargs: Any) -> list[Tensor]:
    """Forward without and with gradients, and the gradients."""
    with torch.no_grad():
        inferred = masked_attention(**tensors, **kwargs)
    leaves = {n: t.detach().requires_grad_(t.is_floating_point()) for n, t in tensors.items()}
    out, lse = masked_attention(**leaves, return_lse=True, **kwargs)
    grads = torch.autograd.grad(
        out.square().sum() + lse.sum(), [t for t in leaves.values() if t.requires_grad]
    )
    return [inferred, out.detach(), lse.detach(), *grads]


def compare(rank: int, folder: str) -> None:
    """One of the processes: sharded calls against the whole one."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

    import maskattn_kernels.distributed  # noqa: F401  # registers the rules, here only

    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for kv_heads, per_head, bias in itertools.product((4, 2), (False, True), (False, True)):
        torch.manual_seed(0)
        masks = (2, kv_heads, 9) if per_head else (2, 9)
        tensors = {
            "query": torch.randn(2, 4, 7, 8),
            "key": torch.randn(2, kv_heads, 9, 8),
            "value": torch.randn(2, kv_heads, 9, 8),
            "key_mask": torch.rand(masks) < 0.7,
            "query_mask": torch.rand(2, 7) < 0.8,
        }
        if bias:
            tensors["key_bias"] = torch.randn(2, kv_heads, 9)
        right = call(tensors, enable_gqa=True)
        for placement in (Shard(0), Shard(1), Shard(2), Replicate()):
            sharded = {}
            for name, t in tensors.items():
                shared = t.dim() == 2 and placement != Shard(0)  # has no heads
                own = Replicate() if shared else placement
                sharded[name] = distribute_tensor(t, mesh, [own])
            got = call(sharded, enable_gqa=True)
            if placement in (Shard(0), Shard(1)):
                assert got[1].placements == (placement,), got[1].placements
            for a, b in zip(got, right, strict=True):
                torch.testing.assert_close(a.full_tensor(), b)
    Path(folder, f"{rank}.done").touch()
    dist.barrier()  # both have all they need of the other
    # gloo's threads outlive the group, which the mesh holds; one that lets go of a tensor
    # while the interpreter is finalizing aborts the process (pytorch/pytorch#190489)
    os._exit(0)


def test_sharded_calls_are_the_whole_one(tmp_path: Path) -> None:
    mp.spawn(compare, (str(tmp_path),), nprocs=2)
    assert len(list(tmp_path.glob("*.done"))) == 2
