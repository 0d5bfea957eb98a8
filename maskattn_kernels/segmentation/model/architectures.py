# SPDX-License-Identifier: BSD-3-Clause
"""The networks that a `SegmentationNetwork` is built on, by name."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from maskattn_kernels.common.text import quoted
from maskattn_kernels.models import (
    FRM_PRESETS,
    PRESETS,
    AttentionNetwork,
    FRMNet,
    MaskAttnUNet,
)

__all__ = ["ARCHITECTURES", "Architecture", "architecture"]


class Architecture(NamedTuple):
    """One of them.

    Attributes:
        network: its class, with ``from_preset``.
        presets: sizes by name.
        preset: the one that is meant where none is named.
        sizes: options that it has beside those of the selectors.
    """

    network: Any
    presets: Mapping[str, Mapping[str, Any]]
    preset: str
    sizes: tuple[str, ...]

    def make(self, preset: str, sizes: Mapping[str, Any], **arguments: Any) -> AttentionNetwork:
        """The network of a preset.

        Args:
            preset: a name in ``presets``.
            sizes: options that win over it, None = as in the preset.
            arguments: the others of its constructor.

        Raises:
            ValueError: it has no such option.
        """
        given = {name: size for name, size in sizes.items() if size is not None}
        for name, size in given.items():
            if name not in self.sizes:
                has = quoted(self.sizes)
                raise ValueError(
                    f"{name}: expected None, as {self.network.__name__} has {has}, got {size!r}"
                )
        made: AttentionNetwork = self.network.from_preset(preset, **given, **arguments)
        return made


ARCHITECTURES = {
    "unet": Architecture(
        MaskAttnUNet,
        PRESETS,
        "edge",
        ("width", "depth", "bottleneck", "finest", "attend_from", "attention_norm", "num_heads"),
    ),
    "frm": Architecture(
        FRMNet,
        FRM_PRESETS,
        "small",
        ("dim", "num_heads", "grid", "depth", "width", "finest", "inject", "relation"),
    ),
}
"""By the names that configs and checkpoints give."""


def architecture(name: Any, preset: Any) -> tuple[Architecture, str]:
    """An architecture, and the name of the preset that is meant.

    Args:
        name: in `ARCHITECTURES`.
        preset: in its presets; None = the usual one.

    Raises:
        ValueError: there is none of that name.

    Example:
        >>> from maskattn_kernels.segmentation.model.architectures import architecture
        >>> architecture("frm", None)[1]
        'small'
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"arch: expected one of {quoted(ARCHITECTURES)}, got {name!r}")
    chosen = ARCHITECTURES[name]
    preset = chosen.preset if preset is None else preset
    if preset not in chosen.presets:
        raise ValueError(f"preset: expected one of {quoted(chosen.presets)}, got {preset!r}")
    return chosen, preset
