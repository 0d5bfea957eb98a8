# SPDX-License-Identifier: BSD-3-Clause
"""The rules that choose images: by how unsure the network is, and so that they differ."""

import numpy as np

__all__ = ["RULES", "choose"]

RULES = ("entropy+kcenter", "entropy", "kcenter", "random")
"""Names of the rules, the default first."""

UNCERTAIN = 4
"""One of so many images, those of highest entropy, is a candidate of "entropy+kcenter"."""


def choose(
    rule: str, entropy: np.ndarray, pooled: np.ndarray, count: int, seed: int = 0
) -> np.ndarray:
    """Choose images.

    Args:
        rule: a name in `RULES`:

            - "entropy": those of highest mean entropy;
            - "kcenter": those that differ most, by greedy k-centre (Sener and Savarese, 2018): the
              first is the one of highest entropy, and each next one is the farthest from those
              that are chosen already;
            - "entropy+kcenter": "kcenter" among the quarter of the images that has the highest
              entropy, or twice ``count`` of them if that is more;
            - "random": any.
        entropy: (N,), the mean entropy of each image.
        pooled: (N,F), what is in each image; distances are Euclidean after each column is divided
            by its standard deviation.
        count: K, at most N.
        seed: of "random".

    Returns:
        int64 (K,), numbers of the images in the order in which they were chosen.

    Example:
        >>> import numpy as np
        >>> entropy, pooled = np.array([0.9, 0.8, 0.7, 0.1]), np.array([[0.0], [0.1], [1.0], [9.0]])
        >>> choose("entropy", entropy, pooled, 2), choose("kcenter", entropy, pooled, 2)
        (array([0, 1]), array([0, 3]))
        >>> choose("entropy+kcenter", entropy, pooled, 1)
        array([0])
    """
    if rule == "random":
        return np.random.Generator(np.random.PCG64(seed)).permutation(len(entropy))[:count]
    order = np.argsort(-entropy, kind="stable")
    if rule == "entropy":
        return order[:count]
    if rule == "entropy+kcenter":
        order = order[: max(2 * count, -(-len(order) // UNCERTAIN))]
    return order[_k_centers(pooled[order], count)]


def _k_centers(points: np.ndarray, count: int) -> np.ndarray:
    """Rows of ``points``: the first one, then always the one farthest from all before."""
    points = points.astype(np.float32)
    spread = points.std(0)
    points = points / np.where(spread > 0, spread, 1)
    chosen = [0]
    nearest = np.full(len(points), np.inf, dtype=np.float32)
    while len(chosen) < count:
        nearest = np.minimum(nearest, np.square(points - points[chosen[-1]]).sum(1))
        nearest[chosen[-1]] = -1  # equal images are chosen once each
        chosen.append(int(nearest.argmax()))
    return np.array(chosen[:count], dtype=np.int64)
