# SPDX-License-Identifier: BSD-3-Clause
"""Weights of a trained network for one that may have other classes: ``--init_from``."""

from collections.abc import Mapping

import torch

from maskattn_kernels.segmentation.checkpoint_files import CheckpointError
from maskattn_kernels.segmentation.model.architectures import ARCHITECTURES
from maskattn_kernels.segmentation.model.network import SegmentationNetwork

__all__ = ["load_matching"]

#: What depends on classes, task and selector; all else is common to one width and depth.
CLASS_HEADS = (*(f"{arch}.head." for arch in ARCHITECTURES), "coarse_heads.")
OWN = (*CLASS_HEADS, "objects.", ".mask_head.", ".query_head.", ".selector.")


def load_matching(
    network: SegmentationNetwork,
    trained: SegmentationNetwork,
    rows: Mapping[int, int] | None = None,
) -> list[str]:
    """Copy a trained network's weights into one for other classes; its own heads stay new.

    Args:
        network: is changed.
        trained: of the same encoder and sizes; its classes and task may be others.
        rows: class number of the network to that of the same class of ``trained``; other classes
            stay new. None = the classes are the same ones if there are as many.

    Returns:
        names of the tensors that did not fit and stay as they were: of heads and selectors only.

    Raises:
        CheckpointError: another encoder, or a tensor outside the heads of another size.
    """
    here, there = (n.config["encoder"] for n in (network, trained))
    if here != there:
        raise CheckpointError(
            f"init_from: the encoder is {here!r} here and {there!r} there; "
            f"give the network the encoder {there!r}"
        )
    own, theirs = network.state_dict(), dict(trained.state_dict())
    if rows is not None:
        for name in [n for n in own if n.startswith(CLASS_HEADS)]:
            old = theirs.pop(name, None)
            if old is not None and rows and old.shape[1:] == own[name].shape[1:]:
                theirs[name] = own[name].clone()
                theirs[name][list(rows.keys())] = old[list(rows.values())]
    fits = {
        name: tensor
        for name, tensor in theirs.items()
        if name in own and own[name].shape == tensor.shape
    }
    new = [name for name in own if name not in fits]
    for name in new:
        if not any(part in name for part in OWN):
            got = list(theirs[name].shape) if name in theirs else "none"
            raise CheckpointError(
                f"init_from: {name} is {list(own[name].shape)} here and {got} there; "
                "give the network the width and depth of the checkpoint, or its finest"
            )
    with torch.no_grad():
        network.load_state_dict({**own, **fits})
    return new
