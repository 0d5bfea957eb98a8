# SPDX-License-Identifier: BSD-3-Clause
"""The model card of a checkpoint: README.md as the Hugging Face hub shows it.

A card ends with a digest of its own text. By it a card that somebody has edited is told from one
that can be written anew.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskattn_kernels.common.atomic import replace_file

__all__ = ["CARD", "card_text", "is_unedited", "write_card"]

CARD = "README.md"
_END = "<!-- written by maskattn_kernels {}: once edited, this file is not replaced -->\n"
_TASKS = {
    "semantic": "the class of each pixel",
    "instance": "each object: its pixels, class and score",
    "panoptic": "the class of each pixel, and each object",
}
_FRAMES = {
    "fit": "an image is scaled to lie within this size, its aspect kept",
    "own": "an image is taken at its own size",
    "squeeze": "an image is scaled to exactly this size",
}


def write_card(folder: Path, description: Mapping[str, Any], numbers: int, dtype: str) -> None:
    """Writes the card of a checkpoint, unless there is one that somebody has written or edited.

    Args:
        folder: of the checkpoint.
        description, numbers, dtype: as in `card_text`.

    Raises:
        WriteError: it could not be written.
    """
    file = folder / CARD
    if not file.exists() or is_unedited(file):
        text = card_text(description, numbers, dtype)
        replace_file(file, lambda path: path.write_text(text, encoding="utf-8"))


def is_unedited(file: Path) -> bool:
    """Whether a file is a card as `write_card` left it."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    body, mark, _ = text.rpartition(_END.partition("{")[0])
    return bool(mark) and text == _ended(body)


def card_text(description: Mapping[str, Any], numbers: int, dtype: str) -> str:
    """The card in Markdown, with the metadata of the hub in front.

    Args:
        description: of the checkpoint, see `Checkpoint.description`.
        numbers: how many the weights are.
        dtype: that most of them are stored in.
    """
    network, classes = description["network"], description["classes"]
    names, is_thing = classes["names"], classes["is_thing"]
    height, width = description["size"]
    encoder = network.get("encoder", "unet")
    rows = {
        "gives": _TASKS[network["task"]],
        "classes": f"{len(names)}, of which {sum(is_thing)} are counted as objects",
        "size": f"{height} x {width} pixels (height x width): {_FRAMES[description['frame']]}",
        "network": f"{network.get('arch', 'unet')}, encoder {encoder}",
        "weights": f"{numbers:,} numbers, {dtype}, without code",
        "attention": f"selector {network['selector']}, keep {network['keep']}",
        "data": "not recorded; write here what it was trained on",
        "licence": "not stated; the code is BSD-3-Clause, and the data may have terms of its own",
    }
    scores = {name: value for name, value in description["metrics"].items() if value is not None}
    parts = [
        _METADATA,
        f"# Segmentation of {_cell(', '.join(names[:3]))}{', ...' if len(names) > 3 else ''}\n",
        _table(("", ""), rows.items()),
        _USE,
        "## Classes\n",
        _table(
            ("number", "name", "kind", "id in the data"),
            (
                (str(number), name, "thing" if thing else "stuff", str(own_id))
                for number, (name, thing, own_id) in enumerate(
                    zip(names, is_thing, classes["ids"], strict=True)
                )
            ),
        ),
        "## Scores\n",
        "On the validation images of the training, 0 to 100, when the checkpoint was saved.\n"
        if scores
        else "Not known.\n",
    ]
    if scores:
        parts.append(_table(("score", "value"), ((k, f"{v:.1f}") for k, v in scores.items())))
    return _ended("\n".join(parts) + "\n")


_METADATA = """---
library_name: maskattn_kernels
pipeline_tag: image-segmentation
license: unknown
tags: [image-segmentation, masked-attention, pytorch]
---
"""
_USE = """## Use

```python
from maskattn_kernels.segmentation import Checkpoint

checkpoint = Checkpoint.from_pretrained("PATH")  # this folder, or "hf:owner/name"
found = checkpoint.segment("image.png")
found.overlay().save("overlay.png")
```

Or `maskattn predict image.png --checkpoint PATH`. `config.json` says all that is known of the
network.
"""


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Text that ends neither its cell nor its line."""
    return re.sub(r"\s+", " ", text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _ended(body: str) -> str:
    return body + _END.format(hashlib.sha256(body.encode()).hexdigest()[:16])
