# SPDX-License-Identifier: BSD-3-Clause
"""The files of a checkpoint: found, written, and read in bounded time and memory.

``model.safetensors`` holds the weights, and in its header a JSON text that describes the network,
and a digest of all of it. Nothing in it is trusted: the shapes that the text describes are compared
with those in the file before a network is built.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from maskattn_kernels.common.atomic import replace_file
from maskattn_kernels.common.text import one_line
from maskattn_kernels.segmentation.model.network import SegmentationNetwork
from maskattn_kernels.segmentation.model_card import CARD, is_unedited, write_card

__all__ = [
    "FORMAT",
    "WEIGHTS",
    "CheckpointError",
    "digest",
    "hub_file",
    "in_half",
    "read_description",
    "read_network",
    "shipped_names",
    "upload",
    "weights_file",
    "write_checkpoint",
]

WEIGHTS, CONFIG, FORMAT = "model.safetensors", "config.json", 2
SHIPPED = Path(__file__).parent / "shipped"  # checkpoints that are part of the package
HUB = "hf:"
HUB_SECONDS = 10  # until an answer
_FORMER = ("max_objects",)  # arguments of earlier versions that a network needs no more
_HEADER = ("maskattn", "sha256", "format")  # the last one is what other programs add


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, of another kind, or does not fit."""


def in_half(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of convolutions and linear layers in float16; all else as it is, which is little.

    Args:
        tensors: of a network, by name.

    Raises:
        CheckpointError: a weight is too large for float16.
    """
    half = {}
    for name, tensor in tensors.items():
        is_weight = tensor.is_floating_point() and tensor.dim() > 1
        half[name] = tensor.half() if is_weight else tensor
        if is_weight and not half[name].isfinite().all():
            raise CheckpointError(f"{name}: has values that float16 cannot hold; save in float32")
    return half


def write_checkpoint(
    folder: Path, tensors: Mapping[str, Tensor], description: dict[str, Any], half: bool
) -> None:
    """Write a folder; what was there before stays good until the new weights are whole.

    Args:
        folder: made if it is not there.
        tensors: of the network, by name.
        description: of the network, for JSON.
        half: as in `Checkpoint.save_pretrained`.

    Raises:
        WriteError: it could not be written.
        CheckpointError: with ``half``, a weight is too large for float16.
    """
    whole = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    if half:
        whole = in_half(whole)
    text = json.dumps(description, indent=2, allow_nan=False)
    header = {"maskattn": text, "sha256": digest(whole, text)}
    replace_file(folder / WEIGHTS, lambda path: save_file(whole, path, metadata=header))
    replace_file(folder / CONFIG, lambda path: path.write_text(text + "\n", encoding="utf-8"))
    numbers = sum(t.numel() for t in whole.values())
    write_card(folder, description, numbers, "float16" if half else "float32")


def read_description(file: Path) -> dict[str, Any]:
    """The JSON in the header of a ``file``, of which only the format has been checked.

    Raises:
        CheckpointError: it cannot be read, or is of another kind or a newer format.
    """
    header = _opened(file)[0]
    odd = [key for key in header if key not in _HEADER]
    try:
        if odd:
            raise ValueError(f"unknown entry {odd[0][:40]!r} in the header")
        described = json.loads(header.get("maskattn", ""))
        number = described["format"]
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"format {number!r}")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _foreign(file, error) from None
    if number > FORMAT:
        raise CheckpointError(
            f"{file}: has format {number}, this version reads up to {FORMAT}; update "
            f"maskattn_kernels"
        )
    return described


def read_network(file: Path, config: Any) -> SegmentationNetwork:
    """The network of a ``file``, on the CPU and in eval mode.

    Args:
        file: that `read_description` has accepted.
        config: arguments of `SegmentationNetwork`, as the file describes them.

    Raises:
        CheckpointError: the arguments are not allowed, the weights do not fit them, are damaged, or
            hold NaN or infinity.
    """
    header, shapes = _opened(file)
    try:
        config = {name: value for name, value in config.items() if name not in _FORMER}
        depth = config.get("depth") or 1
        if not isinstance(depth, int) or depth > len(shapes):  # each level has tensors
            raise ValueError(f"depth: {depth!r} for {len(shapes)} tensors")
        with torch.device("meta"):  # shapes without memory
            expected = SegmentationNetwork(**config).state_dict()
    except ModuleNotFoundError as error:  # of the encoder
        raise CheckpointError(f"{file}: {one_line(error)}") from None
    except Exception as error:  # torch raises whatever comes up for absurd sizes
        raise _foreign(file, error) from None
    for name in [*expected, *shapes]:
        here = list(expected[name].shape) if name in expected else "nothing"
        there = shapes.get(name, "nothing")
        if here != there:
            raise CheckpointError(
                f"{file}: weights do not fit the network ({name[:100]}: expected {here}, got "
                f"{there})"
            )
    network = SegmentationNetwork(**config)
    tensors = _tensors(file)
    if header.get("sha256") not in (None, digest(tensors, header["maskattn"])):
        raise CheckpointError(
            f"{file}: damaged: its content is not what was saved; copy it again, or take another"
        )
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise CheckpointError(
                f"{file}: {name} holds NaN or infinity, so the network can tell nothing; take an "
                "earlier checkpoint, or train again with a lower learning rate"
            )
    network.load_state_dict(tensors)
    return network.eval()


def shipped_names() -> tuple[str, ...]:
    """Names of the trained networks that come with the package.

    Example:
        >>> from maskattn_kernels.segmentation.checkpoint_files import shipped_names
        >>> "nuclei" in shipped_names()
        True
    """
    return tuple(sorted(p.parent.name for p in SHIPPED.glob(f"*/{WEIGHTS}")))


def weights_file(source: str | Path) -> Path:
    """The weights in a folder, or of a checkpoint on the Hugging Face hub.

    Args:
        source: a folder; or "hf:owner/name", or "owner/name" where nothing here is called "owner";
            or a name of `shipped_names` where no folder here is called so.

    Raises:
        CheckpointError: it is not there.
    """
    path = Path(source)
    if str(source) in shipped_names() and not path.is_dir():
        path = SHIPPED / path
    if path.is_dir():
        if not (path / WEIGHTS).is_file():
            raise CheckpointError(f"{path}: no {WEIGHTS} in this folder")
        return path / WEIGHTS
    if path.is_file():
        raise CheckpointError(
            f"{path}: expected a folder with {WEIGHTS}, as `maskattn train` leaves in OUT/best"
        )
    name = str(source).removeprefix(HUB)
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None
    if on_hub and (str(source).startswith(HUB) or not path.parent.exists()):
        try:
            return hub_file(name, WEIGHTS)
        except LookupError as error:
            raise CheckpointError(
                f"{name}: no such folder, and the hub does not give it ({error})"
            ) from None
    folders = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    close = get_close_matches(path.name, folders, n=1)
    hint = f"; did you mean {path.parent / close[0]}?" if close else ""
    if not hint and (names := get_close_matches(str(source), shipped_names(), n=1)):
        hint = f"; did you mean {names[0]}, which comes with the package?"
    hub = f"; {HUB}{name} would be that of the Hugging Face hub" if on_hub else ""
    raise CheckpointError(f"{source}: no such folder{hint}{hub}")


def hub_file(name: str, file: str) -> Path:
    """A file of a repository on the Hugging Face hub, downloaded or from an earlier download.

    Args:
        name: "owner/name".
        file: its path in the repository.

    Raises:
        LookupError: the hub does not give it; the reason in one line, within seconds.
    """
    import huggingface_hub  # a folder needs no hub
    from huggingface_hub.errors import HfHubHTTPError

    try:
        # Asked first, since it answers once and at once: a download tries again for half a minute.
        found = huggingface_hub.HfApi().model_info(name, timeout=HUB_SECONDS)
        return Path(huggingface_hub.hf_hub_download(name, file, revision=found.sha))
    except Exception as error:  # many kinds: no network, no such repository, no rights
        reason = one_line(error)[:200]
        if not isinstance(error, HfHubHTTPError):  # no answer: an earlier download will do
            kept = huggingface_hub.try_to_load_from_cache(name, file)
            if isinstance(kept, str):
                return Path(kept)
    raise LookupError(reason)


def upload(folder: str, repo: str, private: bool, token: str | None) -> str:
    """Upload a folder to the Hugging Face hub; returns its address there.

    A card there that somebody has written or edited stays.

    Args:
        folder: to upload.
        repo, private, token: as in `Checkpoint.push_to_hub`.

    Raises:
        RuntimeError: the hub refused, in one line.
    """
    import huggingface_hub  # by those who share checkpoints only
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        huggingface_hub.create_repo(repo, private=private, token=token, exist_ok=True)
        kept = [CARD] if _has_card_of_its_own(repo, token) else None
        done = huggingface_hub.upload_folder(
            repo_id=repo, folder_path=folder, token=token, ignore_patterns=kept
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise RuntimeError(f"push_to_hub({repo!r}): {one_line(error)}") from None
    return str(done)


def _has_card_of_its_own(repo: str, token: str | None) -> bool:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        card = huggingface_hub.hf_hub_download(repo, CARD, token=token)
    except LocalEntryNotFoundError:  # the hub did not answer
        raise
    except EntryNotFoundError:
        return False
    return not is_unedited(Path(card))


def _opened(file: Path) -> tuple[dict[str, str], dict[str, list[int]]]:
    """The header's texts, and the shapes of the tensors."""
    try:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
            return opened.metadata() or {}, {n: opened.get_slice(n).get_shape() for n in names}
    except Exception as error:  # what the library raises depends on the damage
        raise _not_whole(file, error) from None


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in list(opened.keys())}
    except Exception as error:  # as above
        raise _not_whole(file, error) from None


def _not_whole(file: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{file}: not a whole safetensors file ({one_line(error)[:200]})")


def _foreign(file: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{file}: not saved by save_pretrained ({one_line(error)[:200]})")


def digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """SHA-256 of a network: one changed bit makes another network of it.

    Args:
        tensors: by name, on the CPU.
        text: that describes them.
    """
    sha256 = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha256.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()
