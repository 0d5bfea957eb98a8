# SPDX-License-Identifier: BSD-3-Clause
"""For users of segmentation_models_pytorch (smp): mask attention in its models, and its names.

smp's U-Nets have a place for attention in each decoder block, ``attention2``, which is empty unless
it was asked for. There mask attention goes.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from maskattn_kernels.common.extras import import_attribute, missing_package
from maskattn_kernels.common.text import one_line, quoted
from maskattn_kernels.models import MaskAttnUNet
from maskattn_kernels.nn import SELECTORS, MaskAttention2d, make_selector
from maskattn_kernels.segmentation.model.named_encoders import TIMM, make_encoder

__all__ = ["add_mask_attention", "from_pretrained", "mask_attn_unet"]

_KEY = "_mask_attention"  # smp hands names with an underscore to no constructor
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_LOADER = "maskattn_kernels.segmentation.encoder_weights:load_encoder_weights"


def add_mask_attention(
    model: nn.Module,
    *,
    blocks: Iterable[str] | None = None,
    selector: str = "topk",
    keep: float = 0.25,
    num_heads: int = 1,
    sparsity: str = "q+k",
    seed: int = 0,
) -> list[str]:
    """Puts a `MaskAttention2d` at the end of decoder blocks of an smp model, in place.

    For ``smp.Unet`` and ``smp.UnetPlusPlus``, with any encoder and its weights. Other attention at
    that place stays, and runs before. The new layers start at random, so train the model after it.
    A selector of the Gumbel kind also needs ``anneal`` during training, see `ExploringSelector`.

    ``model.save_pretrained(folder)`` keeps what was added, and `from_pretrained` builds it again.
    To load a ``state_dict`` alone, make the model and call this with the same arguments first.

    Args:
        model: changed.
        blocks: names of the blocks, such as "decoder.blocks.0"; None = all. The last one works at
            the size of the image and takes most of the time.
        selector: as in `make_selector`; not "entropy", which needs a first guess at the classes.
        keep, seed: as in `make_selector`; each block has a seed of its own.
        num_heads, sparsity: as in `MaskAttention2d`.

    Returns:
        names of the blocks with mask attention.

    Raises:
        TypeError, ValueError: one line naming the argument; or the model has no such places, or has
            mask attention already.

    Example::

        import segmentation_models_pytorch as smp
        from maskattn_kernels.integrations.smp import add_mask_attention, from_pretrained

        model = smp.Unet("mobilenet_v2", encoder_weights="imagenet", classes=11)
        add_mask_attention(model, keep=0.25)
        ...                                # train
        model.save_pretrained("out/unet")
        model = from_pretrained("out/unet")
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    places = {
        name: block
        for name, block in model.named_modules()
        if isinstance(getattr(block, "attention2", None), nn.Module) and hasattr(block, "conv2")
    }
    if not places:
        raise ValueError(
            "model: expected decoder blocks with attention2, as smp.Unet and smp.UnetPlusPlus "
            f"have, got {type(model).__name__}"
        )
    if any(isinstance(module, MaskAttention2d) for module in model.modules()):
        raise ValueError("model: expected one without mask attention, got one that has it already")
    names = list(places) if blocks is None else list(blocks)
    unknown = [name for name in names if name not in places]
    if unknown or not names:
        got = repr(unknown[0]) if unknown else "none"
        raise ValueError(f"blocks: expected names among {quoted(places)}, got {got}")
    if selector == "entropy" or selector not in SELECTORS:
        known = quoted(name for name in SELECTORS if name != "entropy")
        raise ValueError(f"selector: expected one of {known}, got {selector!r}")
    made = {}
    for number, name in enumerate(names):
        convolutions = [m for m in places[name].conv2.modules() if isinstance(m, nn.Conv2d)]
        chosen_by = make_selector(selector, keep, seed=seed + number)
        channels = convolutions[-1].out_channels
        attention = MaskAttention2d(channels, num_heads, selector=chosen_by, sparsity=sparsity)
        made[name] = attention.to(convolutions[-1].weight).train(model.training)
    for name, attention in made.items():
        before = places[name].attention2
        is_empty = isinstance(getattr(before, "attention", None), nn.Identity)
        places[name].attention2 = attention if is_empty else nn.Sequential(before, attention)
    config = getattr(model, "config", None)
    if isinstance(config, dict):  # what smp writes beside the weights
        config[_KEY] = {
            "blocks": names,
            "selector": selector,
            "keep": keep,
            "num_heads": num_heads,
            "sparsity": sparsity,
            "seed": seed,
        }
    return names


def from_pretrained(source: str | Path) -> nn.Module:
    """The model of a folder that an smp model with mask attention wrote by ``save_pretrained``.

    Args:
        source: the folder, or "owner/name" on the Hugging Face hub. Nothing read there is run as
            code.

    Returns:
        the model of smp, on the CPU and in eval mode.

    Raises:
        ModuleNotFoundError: smp is not installed; the line says how to install it.
        ValueError: the folder holds no such model; one line says what is wrong.
        OSError: the hub does not give it.
    """
    try:
        import segmentation_models_pytorch as smp
        from huggingface_hub import hf_hub_download
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(missing_package(error, "smp"), name=error.name) from None
    folder = Path(source)
    is_here = folder.is_dir()
    config_file, weights = (
        folder / file if is_here else Path(hf_hub_download(str(source), file))
        for file in (_CONFIG, _WEIGHTS)
    )
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        added = config[_KEY]
        kind = smp.MODEL_ARCHITECTURES_MAPPING[config["_model_class"].lower()]
        arguments = {name: value for name, value in config.items() if not name.startswith("_")}
        model = kind(**arguments | {"encoder_weights": None})
        add_mask_attention(model, **added)
        model.load_state_dict(load_file(weights))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"{source}: expected what save_pretrained of an smp model with mask attention wrote "
            f"({type(error).__name__}: {one_line(error)[:200]})"
        ) from None
    return model.eval()


def mask_attn_unet(
    encoder_name: str = "efficientnet_lite0",
    encoder_weights: str | None = "imagenet",
    in_channels: int = 3,
    classes: int = 1,
    **arguments: Any,
) -> MaskAttnUNet:
    """A `MaskAttnUNet` by the names and defaults of smp's constructors.

    Images are to be normalised as the encoder's weights want it; `SegmentationNetwork`, which
    `maskattn train` uses, does that itself.

    Args:
        encoder_name: "unet" = the network's own encoder; a name in `ENCODERS`; or "tu-NAME" (or
            "timm/NAME") for a backbone of timm.
        encoder_weights: "imagenet" = the trained weights of the encoder, by the extra
            ``pretrained`` or from timm's hub; a .safetensors or .pth file; "owner/name" on the
            Hugging Face hub; None = random.
        in_channels: of the image; 3 with any encoder but "unet".
        classes: of the logits.
        arguments: others of `MaskAttnUNet`, such as ``width``, ``selector`` and ``keep``.

    Raises:
        TypeError, ValueError: one line naming the argument.
        ModuleNotFoundError: a package is not installed; the line says how to install it.

    Example:
        >>> import torch
        >>> from maskattn_kernels.integrations.smp import mask_attn_unet
        >>> network = mask_attn_unet("efficientnet_lite0", None, classes=5, width=8).eval()
        >>> network(torch.randn(1, 3, 64, 64)).shape
        torch.Size([1, 5, 64, 64])
    """
    name = encoder_name
    if isinstance(name, str) and name.startswith("tu-"):
        name = TIMM + name.removeprefix("tu-")
    try:
        encoder = make_encoder(name)
    except ValueError as error:
        raise ValueError(f"encoder_name: {str(error).removeprefix('encoder: ')}") from None
    if encoder is None:
        if encoder_weights is not None:
            raise ValueError(
                f'encoder_weights: expected None with encoder_name="unet", got {encoder_weights!r}'
            )
    elif in_channels != 3:
        raise ValueError(
            f"in_channels: expected 3 with encoder_name={encoder_name!r}, got {in_channels!r}; "
            '"unet" takes any'
        )
    elif encoder_weights is not None:
        asked = "default" if encoder_weights == "imagenet" else encoder_weights
        load_encoder_weights = import_attribute(_LOADER, "predict")
        try:
            load_encoder_weights(encoder, name, asked)
        except ValueError as error:
            reason = str(error).removeprefix("network.encoder_weights: ")
            raise ValueError(f"encoder_weights: {reason}") from None
    return MaskAttnUNet(in_channels, classes, encoder=encoder, **arguments)
