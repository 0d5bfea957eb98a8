# SPDX-License-Identifier: BSD-3-Clause
"""Half of what one training frame shows, pasted into another.

For classes of stuff this is ClassMix (Olsson et al., 2021), for objects Simple Copy-Paste (Ghiasi
et al., 2021). It shows rare things in more surroundings, and so helps most where labels are few.
"""

from dataclasses import replace

import numpy as np

from maskattn_kernels.segmentation.data.frame import Frame
from maskattn_kernels.segmentation.data.sample import VOID

__all__ = ["pasted"]


def pasted(onto: Frame, source: Frame, rng: np.random.Generator) -> Frame:
    """``onto`` with half of what ``source`` shows, at its place there.

    Args:
        onto: stays as it is.
        source: of the same size. Its objects are taken or left one by one, what has no objects
            class by class; half of all these, rounded up. Void is never taken.
        rng: for the draws.

    Example:
        >>> def frame(label):
        ...     grey = np.full((2, 2, 3), 10 * label, np.uint8)
        ...     return Frame(grey, np.full((2, 2), label, np.uint8), np.zeros((2, 2), np.int32))
        >>> pasted(frame(3), frame(5), np.random.default_rng(0)).semantic.tolist()
        [[5, 5], [5, 5]]
    """
    labelled = source.semantic != VOID
    parts = source.instance.astype(np.int64) * (VOID + 1) + source.semantic
    shown, which = np.unique(parts[labelled], return_inverse=True)
    taken = np.zeros(len(shown), dtype=bool)
    taken[rng.permutation(len(shown))[: (len(shown) + 1) // 2]] = True
    where = np.zeros_like(labelled)
    where[labelled] = taken[which]
    first = onto.instance.max()  # so that the numbers of both frames' objects differ
    objects = np.where(source.instance > 0, source.instance + first, 0)
    return replace(
        onto,
        image=np.where(where[..., None], source.image, onto.image),
        semantic=np.where(where, source.semantic, onto.semantic),
        instance=np.where(where, objects, onto.instance),
    )
