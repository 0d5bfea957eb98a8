# SPDX-License-Identifier: BSD-3-Clause
"""`lowered`: a network for images of one size in standard operators, masks and selectors inside.

Our op and tensors whose sizes depend on values stop exporters to ONNX. Where a selector keeps a
share of the tokens, the size of the image gives the number of selected tokens of each scale, and
attention is then gather, matrix products and scatter of fixed shapes.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from maskattn_kernels.nn import (
    EntropySelector,
    LocalTopKSelector,
    RandomSelector,
    Selection,
    Selector,
    SparseAttentionCore,
    TopKSelector,
)
from maskattn_kernels.nn.fixed_count import FixedCountCore
from maskattn_kernels.nn.selecting import SelectiveAttention2d

__all__ = ["lowered"]

_FIXED_COUNT = (EntropySelector, LocalTopKSelector, RandomSelector, TopKSelector)


@torch.no_grad()
def lowered(network: nn.Module, image: Tensor) -> nn.Module:
    """A copy of a network whose masked attention is in standard operators; for one image size.

    * `SparseAttentionCore` becomes `FixedCountCore`, with the count that the selector keeps of an
      image of that size. Other cores stay.
    * Random masks become constants: those of the first image of a batch, for every image.
    * Selectors that learn, and that of the entropy, stay as they are: they choose anew for each
      image.

    Args:
        network: with `SelectiveAttention2d` modules; it is not changed.
        image: what the network is called with, of the size to lower for; its values do not matter.

    Returns:
        the copy, in eval mode: the same results for images of that size, in batches of any size.

    Raises:
        ValueError: a selector does not keep a fixed number of tokens.

    Example:
        >>> import torch
        >>> from maskattn_kernels.models import MaskAttnUNet
        >>> from maskattn_kernels.models.lowering import lowered
        >>> network = MaskAttnUNet(classes=5, width=8, depth=2, selector="topk").eval()
        >>> image = torch.randn(1, 3, 32, 32)
        >>> with torch.inference_mode():
        ...     torch.allclose(lowered(network, image)(image), network(image), atol=1e-4)
        True
    """
    made = copy.deepcopy(network).eval()
    modules = [m for m in made.modules() if isinstance(m, SelectiveAttention2d)]
    for module in modules:
        _check(module.selector)
    counts: dict[nn.Module, int] = {}
    drawn: dict[nn.Module, Tensor] = {}

    def note_count(core: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        for mask in (kwargs.get("key_mask"), kwargs.get("query_mask")):
            if mask is not None:
                counts[core] = int(mask[0].sum())

    def note_mask(selector: nn.Module, args: Any, selection: Selection) -> None:
        drawn[selector] = selection.mask[:1]

    hooks = []
    for module in modules:
        hooks.append(module.core.register_forward_pre_hook(note_count, with_kwargs=True))
        if isinstance(module.selector, RandomSelector):
            hooks.append(module.selector.register_forward_hook(note_mask))
    made(image)
    for hook in hooks:
        hook.remove()
    for module in modules:
        if isinstance(module.core, SparseAttentionCore):
            module.core = FixedCountCore(counts.get(module.core, 0))
        if module.selector in drawn:
            module.selector = _ConstantMask(drawn[module.selector])
    return made


class _ConstantMask(Selector):
    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, features: Tensor) -> Selection:
        return Selection(self.mask)


def _check(selector: nn.Module | None) -> None:
    if selector is not None and not isinstance(selector, _FIXED_COUNT):
        raise ValueError(
            "selector: expected one that keeps a fixed number of tokens of an image, such as "
            f'"topk", "local", "entropy" or "random", got {type(selector).__name__}'
        )
