# SPDX-License-Identifier: BSD-3-Clause
"""Selectors that explore: in training they choose by logits with noise, which fades out.

A token that is never selected gets no gradient, so a head without noise keeps to the tokens that it
happened to select first. Noise selects every token now and then while the head is young. At a
temperature of 0 the rule is that of inference.
"""

import torch
from torch import Tensor

from maskattn_kernels.nn.checks import fraction
from maskattn_kernels.nn.score_selectors import ScoreSelector, ThresholdSelector, TopKSelector
from maskattn_kernels.nn.selectors import Selection

__all__ = ["ExploringSelector", "GumbelSelector", "GumbelTopKSelector"]


class ExploringSelector(ScoreSelector):
    """Base of the selectors here: ``choose`` of the other base, by noisy logits in training.

    Args:
        keep, min_keep: as in the other base.
        temperature: scale of the noise at the start and at the end of training.

    The current temperature is part of the ``state_dict``. The noise comes from torch's global
    generator. `Selection.logits` are those without noise.

    Example:
        >>> from maskattn_kernels.nn import ExploringSelector, GumbelTopKSelector
        >>> selector = GumbelTopKSelector()
        >>> if isinstance(selector, ExploringSelector):
        ...     selector.anneal(1.0)  # at the end of training
        >>> selector.temperature
        tensor(0.0500)
    """

    temperature: Tensor

    def __init__(
        self,
        keep: float = 0.25,
        *,
        min_keep: int = 1,
        temperature: tuple[float, float] = (1.0, 0.05),
    ) -> None:
        super().__init__(keep, min_keep=min_keep)
        self.range = _checked_range(temperature)
        self.register_buffer("temperature", torch.tensor(self.range[0]))

    def reset_parameters(self) -> None:
        """Sets the temperature of the start of training."""
        self.temperature.fill_(self.range[0])

    def anneal(self, progress: float) -> None:
        """Sets the temperature for ``progress`` of training, 0 to 1: geometric from start to end.

        Raises:
            TypeError, ValueError: progress is not a number from 0 to 1.
        """
        progress = fraction("progress", progress)
        start, end = self.range
        self.temperature.fill_(start * (end / start) ** progress)

    def noise(self, uniform: Tensor) -> Tensor:
        """The noise of temperature 1, made of ``uniform``: numbers drawn evenly from 0 to 1."""
        raise NotImplementedError("ExploringSelector.noise: a subclass must implement it")

    def choose(self, logits: Tensor) -> Selection:
        noisy = logits
        if self.training:
            uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
            noisy = logits + self.temperature.to(logits.dtype) * self.noise(uniform)
        return super().choose(noisy)._replace(logits=logits)


def _checked_range(temperature: object) -> tuple[float, float]:
    """(start, end) of the temperature, if they are that."""
    try:
        start, end = (float(t) for t in temperature)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise TypeError(
            f"temperature: expected two numbers (start, end), got {temperature!r}"
        ) from None
    if not (0.0 < end <= start < float("inf")):
        raise ValueError(f"temperature: expected start >= end > 0, got {temperature}")
    return start, end


class GumbelSelector(ExploringSelector, ThresholdSelector):
    """`ThresholdSelector` that explores.

    A token is selected with probability ``sigmoid(logit / temperature)`` in training (the
    Gumbel-softmax trick for two choices; Jang et al., Maddison et al., 2017), and where its logit
    is positive in inference.

    Args:
        keep, min_keep: as in `ThresholdSelector`.
        temperature: scale of the noise at the start and at the end of training.

    Example:
        >>> import torch
        >>> from maskattn_kernels.nn import GumbelSelector
        >>> selector = GumbelSelector(temperature=(1.0, 0.01))
        >>> selector.anneal(0.5)
        >>> selector.temperature
        tensor(0.1000)
    """

    def noise(self, uniform: Tensor) -> Tensor:
        return uniform.log() - torch.log1p(-uniform)


class GumbelTopKSelector(ExploringSelector, TopKSelector):
    """`TopKSelector` that explores.

    In training the k tokens are drawn without replacement, each time with probabilities
    proportional to ``exp(logit / temperature)`` among those left: the top k of logits with Gumbel
    noise (Kool et al., "Stochastic Beams and Where to Find Them", 2019). Always exactly k.

    Args:
        keep, min_keep: as in `TopKSelector`.
        temperature: scale of the noise at the start and at the end of training.

    Example:
        >>> import torch
        >>> from maskattn_kernels.nn import GumbelTopKSelector
        >>> selector = GumbelTopKSelector(keep=0.5)
        >>> logits = torch.tensor([[[[3.0, 1.0], [2.0, 0.0]]]])
        >>> selector(logits).mask.sum()
        tensor(2)
        >>> selector.eval()(logits).mask
        tensor([[[ True, False],
                 [ True, False]]])
    """

    def noise(self, uniform: Tensor) -> Tensor:
        return -(-uniform.log()).log()
