# SPDX-License-Identifier: BSD-3-Clause
"""Checkpoints come back as they were saved, and nothing in one is run as code."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from segmentation_runs import CLASSES, tiny_checkpoint

from maskattn_kernels.common.atomic import WriteError
from maskattn_kernels.segmentation.checkpoints import (
    Checkpoint,
    CheckpointError,
    load_matching,
)
from maskattn_kernels.segmentation.model.network import SegmentationNetwork


def test_a_checkpoint_comes_back_whole(tmp_path):
    saved = tiny_checkpoint(tmp_path / "mine", selector="random")
    loaded = Checkpoint.from_pretrained(tmp_path / "mine")
    assert (loaded.classes, loaded.size, loaded.metrics) == (CLASSES, 32, {"PQ": 12.5})
    assert loaded.network.config == saved.network.config
    image = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        first, second = saved.network.eval()(image), loaded.network(image)
    assert torch.equal(first.semantic, second.semantic)
    copy = json.loads((tmp_path / "mine" / "config.json").read_text())
    assert copy["classes"]["names"] == list(CLASSES.names)


def pickle_bomb(folder: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(folder / "exploded"),))

    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb()))


def cut_off(folder: Path) -> None:
    tiny_checkpoint(folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-1000])


def of_another_kind(folder: Path) -> None:
    save_file({"weight": torch.zeros(2)}, folder / "model.safetensors")


def with_other_weights(folder: Path) -> None:
    tiny_checkpoint(folder)
    with (folder / "model.safetensors").open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    tensors = load_file(folder / "model.safetensors")
    tensors["unet.head.bias"] = torch.zeros(99)
    save_file(tensors, folder / "model.safetensors", metadata=header["__metadata__"])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (pickle_bomb, "not a whole safetensors file"),
        (cut_off, "not a whole safetensors file"),
        (of_another_kind, "not saved by save_pretrained"),
        (with_other_weights, "weights do not fit the network"),
        (lambda folder: None, "no model.safetensors in this folder"),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_one_line(spoil, says, tmp_path):
    spoil(tmp_path)
    with pytest.raises(CheckpointError, match=says) as caught:
        Checkpoint.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "exploded").exists()


def test_what_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda *a: (_ for _ in ()).throw(OSError("no\nnetwork"))
    )
    with pytest.raises(
        CheckpointError, match=r"^nowhere/model: no such folder, and the hub does .*no network"
    ):
        Checkpoint.from_pretrained("nowhere/model")
    with pytest.raises(CheckpointError, match=r"no such folder$"):
        Checkpoint.from_pretrained(tmp_path / "a" / "b")
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(CheckpointError, match=r"expected a folder with model.safetensors"):
        Checkpoint.from_pretrained(tmp_path / "last.ckpt")


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match=r"^cannot write .*Not a directory$"):
        tiny_checkpoint(tmp_path / "file" / "mine")


def test_push_to_hub_uploads_the_folder(tmp_path, monkeypatch):
    seen = {}

    def upload(repo_id, folder_path, token):
        seen[repo_id] = sorted(path.name for path in Path(folder_path).iterdir())
        return f"https://hub/{repo_id}"

    monkeypatch.setattr("huggingface_hub.create_repo", lambda *a, **k: None)
    monkeypatch.setattr("huggingface_hub.upload_folder", upload)
    checkpoint = tiny_checkpoint(tmp_path)
    assert checkpoint.push_to_hub("me/mine") == "https://hub/me/mine"
    assert seen == {"me/mine": ["config.json", "model.safetensors"]}


def test_weights_go_into_a_network_for_other_classes():
    trained = SegmentationNetwork(5, things=[3, 4], width=4, depth=2)
    other = SegmentationNetwork(3, task="semantic", width=4, depth=2)
    before = other.unet.head.weight.clone()
    assert load_matching(other, trained) == [
        "unet.head.weight",
        "unet.head.bias",
        *(f"coarse_heads.{scale}.weight" for scale in range(len(other.coarse_heads))),
    ]
    assert torch.equal(other.unet.head.weight, before)
    ours, theirs = other.unet.downs.state_dict(), trained.unet.downs.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(CheckpointError, match=r"^init_from: unet.* the width and depth of the"):
        load_matching(SegmentationNetwork(3, task="semantic", width=8, depth=2), trained)


def test_masks_of_queries_may_be_new():
    sizes = {"width": 4, "depth": 1, "selector": "topk"}
    trained = SegmentationNetwork(3, task="semantic", sparsity="qk", **sizes)
    apart = SegmentationNetwork(3, task="semantic", sparsity="q+k", **sizes)
    new = load_matching(apart, trained)
    assert new and all(".query_head." in name for name in new)
    ours, theirs = (net.unet.down_attention[0].mask_head.conv.weight for net in (apart, trained))
    assert torch.equal(ours, theirs)
