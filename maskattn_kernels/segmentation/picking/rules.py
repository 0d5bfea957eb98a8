# SPDX-License-Identifier: BSD-3-Clause
"""The rules that choose images: by how unsure the network is, and so that they differ."""

import numpy as np

__all__ = ["RULES", "choose"]

RULES = ("entropy+kmeans", "entropy+kcenter", "entropy", "kcenter", "random")
"""Names of the rules, the default first."""

UNCERTAIN = 4
"""One of so many images, those of highest entropy, is a candidate of "entropy+kcenter"."""

ROUNDS = 100
"""At most so many rounds of k-means."""

LEAST = 1e-6
"""Weight of an image of which the network is sure, so that such images can be chosen too."""


def choose(
    rule: str, entropy: np.ndarray, pooled: np.ndarray, count: int, seed: int = 0
) -> np.ndarray:
    """Choose images.

    Args:
        rule: a name in `RULES`:

            - "entropy+kmeans": the most typical images of ``count`` groups, by k-means in which an
              image weighs as much as its entropy (Zhdanov, 2019), so that there are more groups
              where the network is unsure; the group of largest weight first;
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
        seed: of "random", and of where the groups of "entropy+kmeans" start.

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
    points = _scaled(pooled[order])
    if rule == "entropy+kmeans":
        rng = np.random.Generator(np.random.PCG64(seed))
        return order[_k_means(points, entropy[order], count, rng)]
    return order[_k_centers(points, count)]


def _scaled(points: np.ndarray) -> np.ndarray:
    """Points whose columns have a standard deviation of 1."""
    points = points.astype(np.float32)
    spread = points.std(0)
    return points / np.where(spread > 0, spread, 1)


def _k_means(
    points: np.ndarray, weights: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Rows of ``points``: of each of ``count`` groups the one nearest to its weighted middle.

    Groups start as in k-means++ (Arthur and Vassilvitskii, 2007).
    """
    weights = np.maximum(weights, LEAST)
    middles = np.empty((count, points.shape[1]), np.float32)
    shares = weights
    nearest = np.full(len(points), np.inf)
    for number in range(count):
        middles[number] = points[rng.choice(len(points), p=shares / shares.sum())]
        nearest = np.minimum(nearest, _distances(points, middles[number, None])[:, 0])
        shares = weights * np.maximum(nearest, LEAST)
    groups = _distances(points, middles).argmin(1)
    for _ in range(ROUNDS):
        for number in np.unique(groups):
            inside = groups == number
            middles[number] = np.average(points[inside], axis=0, weights=weights[inside])
        before, groups = groups, _distances(points, middles).argmin(1)
        if np.array_equal(before, groups):
            break
    sizes = np.bincount(groups, weights, minlength=count)
    chosen: list[int] = []
    for number in np.argsort(-sizes, kind="stable"):
        far = _distances(points, middles[number, None])[:, 0]
        far[chosen] = np.inf  # the middle of an empty group may be nearest to one that is chosen
        chosen.append(int(far.argmin()))
    return np.array(chosen, dtype=np.int64)


def _distances(points: np.ndarray, middles: np.ndarray) -> np.ndarray:
    """Squared distances, (N,K)."""
    squares = np.square(points).sum(1)[:, None] + np.square(middles).sum(1)
    return np.maximum(squares - 2 * points @ middles.T, 0)


def _k_centers(points: np.ndarray, count: int) -> np.ndarray:
    """Rows of ``points``: the first one, then always the one farthest from all before."""
    chosen = [0]
    nearest = np.full(len(points), np.inf, dtype=np.float32)
    while len(chosen) < count:
        nearest = np.minimum(nearest, np.square(points - points[chosen[-1]]).sum(1))
        nearest[chosen[-1]] = -1  # equal images are chosen once each
        chosen.append(int(nearest.argmax()))
    return np.array(chosen[:count], dtype=np.int64)
