# SPDX-License-Identifier: BSD-3-Clause
"""Checkpoints come back as they were saved, and nothing in one is run as code."""

import json
import os
import pickle
import resource
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from segmentation_runs import CLASSES, tiny_checkpoint

from maskattn_kernels.common.atomic import WriteError
from maskattn_kernels.segmentation.checkpoints import Checkpoint, CheckpointError
from maskattn_kernels.segmentation.data.sample import Classes
from maskattn_kernels.segmentation.model.network import SegmentationNetwork
from maskattn_kernels.segmentation.training.starting_weights import load_matching


def test_a_checkpoint_comes_back_whole(tmp_path):
    saved = tiny_checkpoint(tmp_path / "mine", selector="random")
    loaded = Checkpoint.from_pretrained(tmp_path / "mine")
    assert (loaded.classes, loaded.size, loaded.metrics) == (CLASSES, (32, 32), {"PQ": 12.5})
    assert loaded.network.config == saved.network.config
    image = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        first, second = saved.network.eval()(image), loaded.network(image)
    assert torch.equal(first.semantic, second.semantic)
    copy = json.loads((tmp_path / "mine" / "config.json").read_text())
    assert copy["classes"]["names"] == list(CLASSES.names)


def test_half_precision_halves_the_file_and_changes_little(tmp_path):
    saved = tiny_checkpoint(tmp_path / "whole", selector="none")
    saved.save_pretrained(tmp_path / "half", half=True)
    sizes = [(tmp_path / n / "model.safetensors").stat().st_size for n in ("whole", "half")]
    assert sizes[1] < 0.75 * sizes[0]  # the header, and norms in float32, are the rest
    loaded = Checkpoint.from_pretrained(tmp_path / "half")
    assert {t.dtype for t in loaded.network.parameters()} == {torch.float32}
    for name, tensor in loaded.network.state_dict().items():
        own = saved.network.state_dict()[name]
        assert torch.equal(tensor, own.half().float() if own.dim() > 1 else own)


def test_a_weight_beyond_half_precision_is_named(tmp_path):
    saved = tiny_checkpoint(tmp_path / "mine")
    with torch.no_grad():
        saved.network.unet.head.weight[0] = 1e6
    with pytest.raises(CheckpointError, match=r"^unet\.head\.weight: has values that float16"):
        saved.save_pretrained(tmp_path / "mine", half=True)
    assert Checkpoint.from_pretrained(tmp_path / "mine").network.unet.head.weight.max() < 1e6


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
    asked = []

    def no_network(self, name, timeout):
        asked.append(name)
        raise OSError("no\nnetwork")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", no_network)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"^nowhere/model: no such folder, and the hub does .*no network"
    ):
        Checkpoint.from_pretrained("nowhere/model")
    with pytest.raises(CheckpointError, match=r"no such folder$"):
        Checkpoint.from_pretrained(tmp_path / "a" / "b")
    (tmp_path / "out" / "best").mkdir(parents=True)
    for mistyped in ("out/bset", tmp_path / "out" / "bset"):
        with pytest.raises(CheckpointError, match=r"no such folder; did you mean .*out/best\?"):
            Checkpoint.from_pretrained(mistyped)
    assert asked == ["nowhere/model"]
    with pytest.raises(CheckpointError, match="the hub does not give it"):
        Checkpoint.from_pretrained("hf:out/bset")
    assert asked == ["nowhere/model", "out/bset"]
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(CheckpointError, match=r"expected a folder with model.safetensors"):
        Checkpoint.from_pretrained(tmp_path / "last.ckpt")


def test_what_was_downloaded_before_needs_no_network(tmp_path, monkeypatch):
    tiny_checkpoint(tmp_path)
    file = str(tmp_path / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *a, **k: 1 / 0)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a: file)
    assert Checkpoint.from_pretrained("nowhere/model").classes == CLASSES


def with_header(folder: Path, change, keep_digest: bool = False) -> None:
    """A checkpoint whose description is changed, as another program could write it."""
    tiny_checkpoint(folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    with safe_open(file, framework="pt") as opened:
        header = opened.metadata()
    if not keep_digest:
        del header["sha256"]
    described = json.loads(header["maskattn"])
    changed = change(described)
    header["maskattn"] = changed if isinstance(changed, str) else json.dumps(described)
    save_file(tensors, file, metadata=header)


def set_to(*keys_and_value):
    *keys, last, value = keys_and_value

    def change(described):
        for key in keys:
            described = described[key]
        described[last] = value

    return change


def test_a_checkpoint_of_the_first_format_squeezes_images_as_it_did():
    """Saved by version 0.2, which counted these pixels of each class at 32 x 32."""
    checkpoint = Checkpoint.from_pretrained(Path(__file__).parents[1] / "support/old_checkpoint")
    assert (checkpoint.size, checkpoint.frame) == ((32, 32), "squeeze")
    assert checkpoint.metrics == {"PQ": 12.5}
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    found = checkpoint.segment(image)
    counts = np.bincount(found.semantic.ravel(), minlength=3)
    np.testing.assert_allclose(counts, [79, 262, 683], atol=3)
    assert abs(len(found.objects) - 19) <= 1
    wide = checkpoint.segment(np.repeat(image, 2, axis=1))
    assert wide.frame_semantic.shape == (32, 32) and wide.semantic.shape == (32, 64)


@pytest.mark.parametrize("kind", ["fit", "own", "squeeze"])
def test_sizes_and_frames_come_back(kind, tmp_path):
    network = SegmentationNetwork(3, CLASSES.things, width=4, depth=1)
    Checkpoint(network, CLASSES, (24, 40), kind).save_pretrained(tmp_path)
    loaded = Checkpoint.from_pretrained(tmp_path)
    assert (loaded.size, loaded.frame) == ((24, 40), kind)
    assert Checkpoint(network, CLASSES, 24).size == (24, 24)


def test_arguments_that_networks_no_longer_have_are_passed_over(tmp_path):
    with_header(tmp_path, set_to("network", "max_objects", 64))
    assert "max_objects" not in Checkpoint.from_pretrained(tmp_path).network.config


NETWORK, CLASSES_KEY = "network", "classes"
FEWER = {name: values[:2] for name, values in asdict(CLASSES).items()}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (set_to("size", -1), "size: expected a whole number from 1"),
        (set_to("size", float("inf")), "size: expected a whole number from 1"),
        (set_to("size", 10**9), "size: expected a whole number from 1"),
        (set_to(CLASSES_KEY, "colors", [[999, 0, 0]] * 3), "colors: expected"),
        (set_to(CLASSES_KEY, "names", ["sky", "road"]), "is_thing: expected 2 entries"),
        (set_to(CLASSES_KEY, "ids", [1, 1, 2]), "ids: 1 occurs twice"),
        (set_to(CLASSES_KEY, FEWER), "classes: expected 3"),
        (set_to(NETWORK, "depth", 10**6), "depth: 1000000 for "),
        (set_to(NETWORK, "depth", 40), "model.safetensors: "),
        (set_to(NETWORK, "width", 2**40), "model.safetensors: "),
        (set_to(NETWORK, "width", 64), "weights do not fit the network .*expected"),
        (set_to(NETWORK, "embedding", 10**9), "weights do not fit the network"),
        (set_to(NETWORK, "embedding", 10**30), "model.safetensors: "),
        (set_to(NETWORK, "num_heads", 2**50), "model.safetensors: "),
        (set_to(NETWORK, "bottleneck", 2**60), "model.safetensors: "),
        (set_to(NETWORK, "things", list(range(10**6))), "things: "),
        (set_to(NETWORK, None), "not saved by save_pretrained"),
        (set_to("format", 3), "has format 3, this version reads up to 2; update maskattn_kernels"),
        (set_to("format", "1"), "not saved by save_pretrained .*format '1'"),
        (lambda described: "[" * 10**6, "not saved by save_pretrained"),
        (lambda described: "9" * 10**6, "not saved by save_pretrained"),
    ],
)
def test_hostile_descriptions_are_refused_soon(change, says, tmp_path):
    with_header(tmp_path, change)
    started, before = time.process_time(), peak()
    with pytest.raises(CheckpointError, match=says) as caught:
        Checkpoint.from_pretrained(tmp_path)
    assert time.process_time() - started < 5 and peak() - before < 200
    text = str(caught.value)
    assert str(tmp_path / "model.safetensors") in text and "\n" not in text and len(text) < 600


def peak() -> float:
    """Most memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_another_description_than_was_saved_is_refused(tmp_path):
    with_header(tmp_path, set_to("size", 64), keep_digest=True)
    with pytest.raises(CheckpointError, match="damaged: its content is not what was saved"):
        Checkpoint.from_pretrained(tmp_path)
    with_header(tmp_path, lambda described: None)  # as older versions saved it: no digest
    assert Checkpoint.from_pretrained(tmp_path).size == (32, 32)


def test_every_changed_bit_of_the_weights_is_seen(tmp_path):
    tiny_checkpoint(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    for place in range(len(whole) - 40, 3000, -len(whole) // 40):
        changed = bytearray(whole)
        changed[place] ^= 1
        file.write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"model\.safetensors: "):
            Checkpoint.from_pretrained(tmp_path)


def test_arguments_of_a_checkpoint_are_checked():
    network = SegmentationNetwork(3, things=[2], width=4, depth=1)
    with pytest.raises(TypeError, match="network: expected a SegmentationNetwork, got str"):
        Checkpoint("best", CLASSES, size=32)
    with pytest.raises(TypeError, match="classes: expected Classes, got tuple"):
        Checkpoint(network, CLASSES.names, size=32)
    with pytest.raises(ValueError, match=r"classes: expected 3, .* got 2"):
        fewer = Classes(("a", "b"), (False, True), ((0, 0, 0), (9, 9, 9)), (0, 1))
        Checkpoint(network, fewer, size=32)
    for size in (0, -32, 1.5, True, None):
        with pytest.raises(ValueError, match="size: expected a whole number from 1"):
            Checkpoint(network, CLASSES, size=size)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match=r"^cannot write .*Not a directory$"):
        tiny_checkpoint(tmp_path / "file" / "mine")


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
