# SPDX-License-Identifier: BSD-3-Clause
"""A damaged `last.ckpt` is refused in one line with its name, or holds what was saved."""

import random
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from segmentation_runs import tiny_arguments

from maskattn_kernels.segmentation.checkpoints import CheckpointError
from maskattn_kernels.segmentation.training import command as training
from maskattn_kernels.segmentation.training.options import ConfigError, parse
from maskattn_kernels.segmentation.training.resume import saved_state
from maskattn_kernels.segmentation.training.run_state import read_state


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("saved") / "run"
    training.main(tiny_arguments(out, steps=2))
    return out


def same(first, second) -> bool:
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return type(first) is type(second) and first == second


def damaged(data: bytearray, rng: random.Random) -> bytearray:
    """One kind of damage that disks and transfers do."""
    kind, place = rng.randrange(5), rng.randrange(len(data))
    length = rng.choice((1, 16, 512, 4096))
    if kind == 0:
        data[place] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[place : place + length] = bytes(len(data[place : place + length]))
    elif kind == 2:
        other = rng.randrange(len(data))
        first, second = data[place : place + length], data[other : other + length]
        if len(first) == len(second):
            data[place : place + length], data[other : other + length] = second, first
    elif kind == 3:
        del data[place:]
    else:
        del data[place : place + length]
    return data


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_are_refused_or_whole(seed, saved, tmp_path):
    rng, path = random.Random(seed), tmp_path / "last.ckpt"
    whole, expected = (saved / "last.ckpt").read_bytes(), read_state(saved / "last.ckpt")
    refused = 0
    for _ in range(40):
        path.write_bytes(damaged(bytearray(whole), rng))
        said = ""
        try:
            assert same(read_state(path), expected), "accepted, and holds something else"
        except CheckpointError as error:
            said, refused = str(error), refused + 1
        assert not said or (said.startswith(f"{path}: ") and "\n" not in said and len(said) < 300)
    assert refused >= 20


HOSTILE = [None, True, -1, 0, 1.5, 2**62, float("nan"), "", "x" * 3000, [], {}, [1], {"a": 1}]
HOSTILE += [torch.zeros(3), torch.full((2, 2), float("nan"))]


def places(part, path=()):
    if path:
        yield path
    if isinstance(part, dict) and len(path) < 7:
        for name, value in part.items():
            yield from places(value, (*path, name))


@pytest.mark.parametrize("seed", range(4))
def test_edited_states_are_refused_in_one_line_or_of_use(seed, saved, tmp_path):
    """By the same checks that a run makes before anything is restored."""
    rng = random.Random(seed)
    out = shutil.copytree(saved, tmp_path / "run")
    config = parse(["--config", str(saved / "config.yaml"), "--ckpt_path", "last", f"--out={out}"])
    state = read_state(saved / "last.ckpt")
    everywhere = [path for path in places(state) if path[0] != "state_dict"]
    for _ in range(40):
        state = read_state(saved / "last.ckpt")
        *where, last = rng.choice(everywhere)
        part = state
        for name in where:
            part = part[name]
        part[last] = rng.choice(HOSTILE)
        torch.save(state, out / "last.ckpt")
        said = ""
        try:
            saved_state(config, out)
        except (CheckpointError, ConfigError) as error:
            said = str(error)
        assert "\n" not in said and len(said) < 400, (where, last, part[last])


def test_a_file_within_a_file_does_not_matter(saved, tmp_path):
    """More files in the archive than torch has written."""
    path = shutil.copy(saved / "last.ckpt", tmp_path / "last.ckpt")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("notes.txt", "mine")
    said = ""
    try:
        assert same(read_state(path), read_state(saved / "last.ckpt"))
    except CheckpointError as error:
        said = str(error)
    assert "\n" not in said
