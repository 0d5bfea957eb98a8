# SPDX-License-Identifier: BSD-3-Clause
"""`PixelContrastiveLoss`: pixels of one class near each other, and far from those of others.

And `PixelEmbedding`, the layers that give it what it compares. They belong to the loss, not to the
network: they exist in training only.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskattn_kernels.nn.checks import at_least_float32, positive_int, positive_number
from maskattn_kernels.segmentation.data.sample import VOID
from maskattn_kernels.segmentation.model.sampling import areas, even_draws

__all__ = ["PixelContrastiveLoss", "PixelEmbedding"]


class PixelEmbedding(nn.Sequential):
    """From a feature map to embeddings of its places: 1x1 convolution, GELU, 1x1 convolution.

    Args:
        channels: of the feature map.
        width: of the embeddings.

    Example:
        >>> import torch
        >>> from maskattn_kernels.segmentation.model.pixel_contrast import PixelEmbedding
        >>> PixelEmbedding(24)(torch.randn(1, 24, 8, 8)).shape
        torch.Size([1, 64, 8, 8])
    """

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__(nn.Conv2d(channels, channels, 1), nn.GELU(), nn.Conv2d(channels, width, 1))


class PixelContrastiveLoss(nn.Module):
    """InfoNCE between the embeddings of sampled pixels of an image, normalised to length 1.

        -log( exp(a.p / t) / (exp(a.p / t) + sum over n of exp(a.n / t)) )

    for an anchor a, a pixel p of its class, and all n of other classes: a mean over p, then over
    the anchors with such a p, then over images. An image with pixels of one class, or with none,
    adds 0 and no gradient. Images are not compared with each other, so processes with equal shares
    of a batch average to the loss of the whole batch.

    Half of the sample are pixels that the network classifies wrongly, as far as there are any; of
    the others any. Both halves are drawn with weights 1 / area of the class, so that rare classes
    count; see `sampling`. Void pixels are not sampled.

    Args:
        temperature: t, above 0.
        samples: pixels of an image.

    Raises:
        TypeError, ValueError: one line naming the argument, what came, and what was expected.

    Shapes:
        embedding (B,E,h,w); logits (B,C,H,W) and semantic int64 (B,H,W), classes or `VOID`, of any
        size: the pixel nearest to the middle of each place counts. Gradients flow to the embedding
        alone.

    Source: Wang et al., "Exploring Cross-Image Pixel Contrast for Semantic Segmentation", 2021, of
    which this compares pixels within an image.

    Example:
        >>> import torch
        >>> from maskattn_kernels.segmentation.model.pixel_contrast import PixelContrastiveLoss
        >>> semantic = torch.tensor([[[0, 0, 1, 1]]])
        >>> embedding = torch.eye(2)[semantic].permute(0, 3, 1, 2)
        >>> logits = torch.zeros(1, 2, 1, 4)
        >>> PixelContrastiveLoss(temperature=0.5)(embedding, logits, semantic)
        tensor(0.2395)
        >>> PixelContrastiveLoss(temperature=0.5)(torch.ones(1, 2, 1, 4), logits, semantic)
        tensor(1.0986)
    """

    def __init__(self, temperature: float = 0.1, samples: int = 256) -> None:
        super().__init__()
        self.temperature = positive_number("temperature", temperature)
        self.samples = positive_int("samples", samples)

    def forward(self, embedding: Tensor, logits: Tensor, semantic: Tensor) -> Tensor:
        size = embedding.shape[-2:]
        labels = _nearest(semantic.unsqueeze(1).float(), size).long().flatten(1)
        guesses = _nearest(logits.detach(), size).argmax(1).flatten(1)
        places = self._sample(labels, guesses != labels)
        classes = labels.gather(1, places)
        points = embedding.flatten(2).gather(
            2, places.unsqueeze(1).expand(-1, embedding.shape[1], -1)
        )
        points = F.normalize(at_least_float32(points), dim=1)
        scores = points.mT @ points / self.temperature
        known = classes != VOID
        both = known.unsqueeze(2) & known.unsqueeze(1)
        same = classes.unsqueeze(2) == classes.unsqueeze(1)
        itself = torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
        positive = both & same & ~itself
        # The lowest finite number and not -inf, whose log-sum-exp has no gradient but NaN.
        lowest = torch.finfo(scores.dtype).min
        others = scores.masked_fill(~(both & ~same), lowest).logsumexp(2, keepdim=True)
        return _mean(_mean(F.softplus(others - scores), positive), positive.any(2)).mean()

    def _sample(self, labels: Tensor, wrong: Tensor) -> Tensor:
        """Places (B,P) of the sample; where there are too few pixels, void ones fill it up."""
        count = min(self.samples, labels.shape[1])
        area = areas(labels, VOID).gather(1, labels)
        keys = -even_draws(labels.shape[1], labels.device).log() * area
        keys = keys.masked_fill(labels == VOID, float("inf"))
        hard = keys.masked_fill(~wrong, float("inf"))
        first = hard.topk(count // 2, dim=1, largest=False)
        # Below all keys, so that these come first; those of the lowest keys are drawn after them.
        taken = torch.where(first.values.isinf(), first.values, -1.0)
        lowered = torch.full_like(keys, float("inf")).scatter(1, first.indices, taken)
        return torch.minimum(keys, lowered).topk(count, dim=1, largest=False).indices


def _nearest(maps: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(maps, size=size, mode="nearest-exact")


def _mean(losses: Tensor, counts: Tensor) -> Tensor:
    """The mean over the last dimension of what counts; 0 where nothing does."""
    return torch.where(counts, losses, 0.0).sum(-1) / counts.sum(-1).clamp_min(1)
