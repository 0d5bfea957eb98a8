# SPDX-License-Identifier: BSD-3-Clause
"""Damages files of small data sets and reads them: ``python fuzz_readers.py COUNT SEED [KIND ..]``.

Each reading must end in samples that fit together, or in a DataError of one line. Anything else is
printed, and the exit code is 1; a crash, or a case without end, ends this process.
"""

import copy
import json
import random
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import data_trees as trees
import numpy as np
import torch
from PIL import Image
from segmentation_runs import tiny_checkpoint

from maskattn_kernels.segmentation.checkpoints import Checkpoint, CheckpointError
from maskattn_kernels.segmentation.data import DataError, open_dataset
from maskattn_kernels.segmentation.data.sample import VOID
from maskattn_kernels.segmentation.prediction.frames import frames

SECONDS, MEMORY = 30, 2 * 2**30  # of a case; of the process, above what imports take
HOSTILE: list[Any] = [
    *(None, True, -1, 0, 1.5, 2**31, 2**63, 10**30, 1e308, -1e308, float("nan"), float("inf")),
    *("", "x", "1", "../x", "\0", "x" * 5000, [], {}, [[]], [None], [[[1]]], {"id": 1}, [1e9] * 6),
]


def picture(ending: str, count: int = 1) -> Callable[[Path], Path]:
    """Makes a file of noise, small enough that damage hits what matters."""

    def make(folder: Path) -> Path:
        noise = np.random.default_rng(0).integers(0, 256, (count, 6, 8, 3), dtype=np.uint8)
        first, *more = map(Image.fromarray, noise)
        path = folder / f"a.{ending}"
        first.save(path, save_all=bool(more), append_images=more) if more else first.save(path)
        return path

    return make


def sixteen_bits(ending: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / f"a.{ending}"
        noise = np.random.default_rng(0).integers(0, 65536, (6, 8), dtype=np.uint16)
        Image.fromarray(noise).save(path)
        return path

    return make


PICTURES = {
    "png": picture("png"),
    "jpeg": picture("jpg"),
    "tiff": picture("tif"),
    "webp": picture("webp"),
    "gif-film": picture("gif", 3),
    "png-film": picture("png", 3),
    "tiff-film": picture("tif", 3),
    "png-16": sixteen_bits("png"),
    "tiff-16": sixteen_bits("tif"),
}
# The data set, how it is made, and the file that is damaged.
SETS = {
    "json": ("coco-json", trees.coco_json, "annotations.json"),
    "json-panoptic": ("coco", trees.coco, "annotations/panoptic_val2017.json"),
    "json-ade20k": ("ade20k", trees.ade20k, "ade20k_panoptic_val.json"),
    "yaml": ("folder", trees.folder, "classes.yaml"),
    "mask": ("folder", trees.folder, "masks/2.png"),
    "panoptic-mask": ("coco", trees.coco, "annotations/panoptic_val2017/000000000139.png"),
}
KINDS = (*PICTURES, *SETS, "checkpoint")


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, removed, repeated or zeroed, or the end cut off."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = rng.randrange(len(data) or 1)
        length = rng.choice((1, 1, 2, 4, 30))
        change = rng.randrange(6)
        if change == 0:
            data[place : place + 1] = bytes([rng.randrange(256)])
        elif change == 1:
            data[place : place + length] = bytes(length)
        elif change == 2:
            del data[place : place + length]
        elif change == 3:
            data[place:place] = data[place : place + length]
        elif change == 4:
            data[place : place + 1] = bytes(
                [data[place] ^ (1 << rng.randrange(8))] if data else b""
            )
        else:
            del data[max(place, len(data) // 4) :]
    return bytes(data)


def rewritten(content: bytes, rng: random.Random) -> bytes:
    """A JSON of which a few values are replaced, removed or repeated."""
    rows = json.loads(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        holder, key = rows, rng.choice(list(rows))
        while isinstance(holder[key], list | dict) and holder[key] and rng.random() < 0.8:
            holder = holder[key]
            key = rng.choice(list(holder if isinstance(holder, dict) else range(len(holder))))
        if rng.random() < 0.2:
            del holder[key]
        elif rng.random() < 0.2 and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        else:
            holder[key] = copy.deepcopy(rng.choice(HOSTILE))
        rows = rows or {"images": []}
    return json.dumps(rows).encode()


def read_set(name: str, root: Path) -> None:
    for split in ("train", "val"):
        samples = open_dataset(name, root, split)
        for index in range(len(samples)):
            sample = samples[index]
            assert sample.image.dtype == np.uint8 and sample.image.shape[2:] == (3,)
            assert sample.semantic.shape == sample.instance.shape == sample.image.shape[:2]
            assert set(np.unique(sample.semantic)) <= {*range(len(samples.classes)), VOID}
        assert all("\n" not in note for note in getattr(samples, "notes", ()))


def redescribed(content: bytes, rng: random.Random) -> bytes:
    """A checkpoint with another description of its network, and without the digest."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    text = rewritten(header["__metadata__"]["maskattn"].encode(), rng).decode()
    header["__metadata__"] = {"maskattn": text}
    new = json.dumps(header).encode()
    return len(new).to_bytes(8, "little") + new + content[8 + length :]


def read_checkpoint(folder: Path, whole: Checkpoint) -> None:
    """Damage is seen, unless the file says nothing of how it should be."""
    found = Checkpoint.from_pretrained(folder)
    if b"sha256" in (folder / "model.safetensors").read_bytes():
        assert found.description() == whole.description()
        theirs = whole.network.state_dict()
        assert all(torch.equal(t, theirs[n]) for n, t in found.network.state_dict().items())


def read_pictures(path: Path) -> None:
    for read in frames(path):
        pixels = read().image
        assert pixels.dtype == np.uint8 and pixels.shape[2:] == (3,)


def what_is_wrong(read: Callable[[], None]) -> str | None:
    signal.alarm(SECONDS)
    try:
        read()
    except (DataError, CheckpointError) as error:
        text = str(error)
        return (
            f"{len(text)} characters: {text[:300]!r}" if "\n" in text or len(text) > 1000 else None
        )
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    finally:
        signal.alarm(0)
    return None


def read_damaged(kind: str, count: int, seed: int, root: Path) -> int:
    """How many of the cases of a kind go wrong."""
    if kind in PICTURES:
        file = PICTURES[kind](root)
        read = partial(read_pictures, file)
    elif kind == "checkpoint":
        read = partial(read_checkpoint, root, tiny_checkpoint(root))
        file = root / "model.safetensors"
    else:
        name, make, damaged_file = SETS[kind]
        make(root)
        file = root / damaged_file
        read = partial(read_set, name, root)
    whole, wrong = file.read_bytes(), 0
    for case in range(seed, seed + count):
        change = damaged
        if case % 3:
            change = redescribed if kind == "checkpoint" else change
            change = rewritten if kind.startswith("json") else change
        file.write_bytes(change(whole, random.Random(case)))
        print(f"{kind} {case}", file=sys.stderr, flush=True)  # the last one is where it crashed
        fault = what_is_wrong(read)
        if fault:
            wrong += 1
            print(f"{kind} {case}: {fault}", flush=True)
    return wrong


def main(count: int, seed: int, kinds: Sequence[str]) -> int:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    wrong = 0
    for kind in kinds or KINDS:
        with tempfile.TemporaryDirectory() as root:
            wrong += read_damaged(kind, count, seed, Path(root))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
