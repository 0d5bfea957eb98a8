# SPDX-License-Identifier: BSD-3-Clause
"""Measuring tiles: which are tried, what is printed, and, in the interpreter, the measurement."""

import json
from pathlib import Path

import pytest
import torch
from harness import INTERPRETED
from stub_driver import using

from maskattn_kernels.backends.tuning import (
    KERNELS,
    Config,
    choose_config,
    find_entry,
    forced,
    refuse,
)
from maskattn_kernels.benchmark import tune
from maskattn_kernels.benchmark.cases import TRAIN, Case


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("head_dim", tune.HEAD_DIMS)
def test_candidates_fit_the_chip(kernel: str, bits: int, head_dim: int) -> None:
    tiles = tune.candidates(kernel, "sm_90", bits, head_dim, 232_448)
    assert tiles and len(set(tiles)) == len(tiles)
    assert not any(refuse(kernel, tile, bits, head_dim, "sm_90", 232_448) for tile in tiles)
    assert len(tune.candidates(kernel, "sm_90", bits, head_dim, None)) >= len(tiles)


def test_a_line_of_the_table() -> None:
    seconds = {Config(64, 64, 4, 2): 3e-5, Config(128, 64, 8, 3): 2e-5}
    ranking = tune.Ranking("fwd", 16, 64, "large", seconds, {})
    assert ranking.line() == '(64, "large"): ((128, 64, 8, 3), (64, 64, 4, 2),),  # us: 20.0, 30.0'
    assert "no tile ran" in tune.Ranking("dq", 16, 64, "small", {}, {}).line()


def test_a_forced_tile_is_taken_until_the_end() -> None:
    usual = choose_config("fwd", "sm_90", 16, 64, 10**6, 132)
    with pytest.raises(KeyError), forced("fwd", Config(32, 32, 4, 2)):
        assert choose_config("fwd", "sm_90", 16, 64, 10**6, 132) == (32, 32, 4, 2)
        assert choose_config("dq", "sm_90", 16, 64, 10**6, 132) != (32, 32, 4, 2)
        raise KeyError
    assert choose_config("fwd", "sm_90", 16, 64, 10**6, 132) == usual


def rows(tiles: list[Config]) -> list[dict]:
    return [{"entry": ["dkdv", "bfloat16", 64, "small"], "tiles": tiles, "dropped": {}}]


def test_a_shortlist_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tiles.json"
    path.write_text(json.dumps(rows([Config(64, 64, 4, 2)])))
    listed = tune.read_shortlist(path)
    assert listed == {("dkdv", "bfloat16", 64, "small"): [Config(64, 64, 4, 2)]}
    assert set(listed) <= set(tune.entries(["bfloat16"]))
    path.write_text("{}")
    assert tune.read_shortlist(path) == {}
    path.write_text('[{"tiles": 3}]')
    with pytest.raises(ValueError, match=r"--tiles: .*expected a list of tools/gpu_kernels.py"):
        tune.read_shortlist(path)


def test_tiles_are_measured_beside_those_of_the_table() -> None:
    entry, other = ("fwd", "bfloat16", 64, "large"), Config(16, 16, 4, 1)
    now = find_entry("fwd", "sm_90", 16, 64, "large").configs
    assert tune.beside_the_table(entry, "sm_90", [other, now[0]]) == [*now, other]


@pytest.mark.skipif(INTERPRETED, reason="Triton's interpreter compiles nothing")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: no need for a stub")
def test_tiles_are_compiled_and_sifted_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    good, spills, broken = Config(32, 64, 4, 2), Config(64, 64, 4, 2), Config(24, 64, 4, 2)
    monkeypatch.setattr(tune, "candidates", lambda *_: [spills, good, broken])
    with using("sm_90"):
        tiles, dropped = tune.shortlist(("dkdv", "bfloat16", 64, "small"), "sm_90")
        none, others = tune.shortlist(("dkdv", "bfloat16", 64, "small"), "sm_90", most=0)
    assert tiles == [good]
    assert none == [] and others[str(tuple(good))] == "others are more likely"
    assert "spills" in dropped[str(tuple(spills))]
    assert dropped[str(tuple(broken))]


@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1, as `make test` sets it")
def test_triton_tiles_are_checked_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(40, 16, 1, "k", 0.5, "float32", TRAIN)
    good, bad = Config(16, 32, 1, 1), Config(24, 32, 1, 1)  # 24 is no power of two
    seconds, failed = tune.measure_tiles(case, "dkdv", [good, bad])
    assert list(seconds) == [good] and seconds[good] > 0
    assert list(failed) == [bad] and failed[bad]
