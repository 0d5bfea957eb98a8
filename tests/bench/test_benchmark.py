# SPDX-License-Identifier: BSD-3-Clause
"""The benchmark: cases, timing, rows, memory, network. No speed is asserted here."""

import json
import sys

import pytest
import torch
from repository import ROOT

from maskattn_kernels.benchmark import cells, check, memory, network, peers, rows, suite
from maskattn_kernels.benchmark.cases import (
    FORWARD,
    TRAIN,
    Case,
    grid,
    make_inputs,
    make_mask,
)
from maskattn_kernels.benchmark.overhead import measure_overhead, measure_parts
from maskattn_kernels.benchmark.report import few_queries_table
from maskattn_kernels.benchmark.timing import FOCUS_ROUNDS, MIN_ROUNDS, Race, percentile, race
from maskattn_kernels.common import peak_memory
from maskattn_kernels.op_table import OPS

RESULTS = [p for name in ("results", "study") for p in (ROOT / "bench" / name).glob("*.json")]
TINY = Case(64, 16, mode="qk", keep=0.25)
VARIANTS = [v for p in peers.QUICK_PEERS for v in p.variants]


# Cases


def test_full_grid_is_every_combination_once():
    cases = grid("full")
    assert len(cases) == 264
    assert len({case.name for case in cases}) == 264
    assert {(c.tokens, c.head_dim) for c in cases if c.batch == 8} == {
        (4096, 64),
        (4096, 128),
        (1024, 128),
        (1024, 256),
        (256, 256),
    }
    assert (16384, 64) in {(c.tokens, c.head_dim) for c in cases if c.batch == 1}


def test_other_grids_are_parts_of_the_full_one():
    full = set(grid("full"))
    assert set(grid("quick")) < set(grid("small")) < full


def test_unknown_grid_is_refused():
    with pytest.raises(ValueError, match="grid: got 'huge', expected 'quick', 'small' or 'full'"):
        grid("huge")


def test_flops_and_bytes_by_hand():
    case = Case(100, 8, batch=2, mode="k", keep=0.25, dtype="bfloat16")
    assert (case.selected_keys, case.live_queries) == (25, 100)
    assert case.flops == 2 * 4 * 100 * 25 * 8
    assert case.bytes == 2 * ((100 + 2 * 25 + 100) * 8 * 2 + 100)
    both = Case(100, 8, mode="qk", keep=0.25, phase=TRAIN)
    assert both.flops == 14 * 25 * 25 * 8
    assert both.bytes == (25 + 50 + 100 + 75 + 50 + 300) * 8 * 4 + 100


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match=r"^mode: expected one of k, qk, got 'QK'"):
        Case(64, 16, mode="QK")


def test_masks_have_exact_counts_and_repeat():
    mask = make_mask(3, 101, 25)
    assert mask.dtype == torch.bool and mask.sum(1).tolist() == [25, 25, 25]
    assert torch.equal(mask, make_mask(3, 101, 25))
    assert not torch.equal(mask[0], mask[1])


# Few queries


def test_few_queries_by_hand():
    case = Case(100, 8, keep=0.25, dtype="bfloat16", queries=3, group=4)
    assert case.name == "Q3x4-N100-D8-B1-k-keep0.25-bf16-fwd"
    assert case.flops == 4 * 12 * 25 * 8
    assert case.bytes == (12 + 2 * 25 + 12) * 8 * 2 + 100
    inputs = make_inputs(case)
    assert inputs.query.shape == (1, 4, 3, 8) and inputs.key.shape == (1, 1, 100, 8)


def test_few_queries_are_checked_and_compared_with_a_read():
    case = Case(300, 16, keep=0.5, queries=2, group=4)
    row = cells.measure(case, 0.01, peers.FEW_PEERS)
    assert all(row["peers"][peer.name]["times_ours"] > 0 for peer in peers.FEW_PEERS)
    assert row["read_share"] > 0
    assert case.name in few_queries_table([row])


# Timing


def test_percentiles_interpolate():
    assert percentile([1.0, 2.0, 3.0], 0.2) == pytest.approx(1.4)
    assert percentile([5.0], 0.8) == 5.0


def test_ratio_is_taken_within_rounds():
    # The machine slows down threefold in the second round: the ratio stays 2.
    assert Race({"a": [2.0, 6.0, 2.0, 9.9], "b": [1.0, 3.0, 1.0]}).ratio("a", "b") == 2.0


def test_rounds_are_interleaved_and_places_change():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    result = race(calls, seconds=0.0)
    assert {name: len(s) for name, s in result.samples.items()} == dict.fromkeys("abc", MIN_ROUNDS)
    order = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert order == list("abcbcacab")


def test_those_in_focus_get_more_rounds():
    result = race({"a": lambda: None, "b": lambda: None}, seconds=0.0, focus=("a",))
    assert len(result.samples["a"]) == FOCUS_ROUNDS
    assert len(result.samples["b"]) == MIN_ROUNDS


# Rows


@pytest.fixture(scope="module")
def measured():
    """Measured rows of small cases, one of each pass."""
    return [cells.measure(Case(64, 16, mode="qk", phase=p), 0.01) for p in (FORWARD, TRAIN)]


def test_a_row_is_complete_and_fits_json(measured):
    row = json.loads(json.dumps(measured[1]))
    assert set(row["peers"]) == {peer.name for peer in peers.PEERS}
    for name in ("ours", "gather", "sdpa", "eager"):
        peer = row["peers"][name]
        assert 0 < peer["low"] <= peer["median"] <= peer["high"]
        assert peer["error"] <= check.TOLERANCE["float32"]
        assert peer["times_ours"] > 0
    assert row["peers"]["ours"]["times_ours"] == 1.0
    assert "skipped" in row["peers"]["flex"]
    assert row["flops"] == 14 * 16 * 16 * 16
    assert row["floor_seconds"] > 0 and row["matmul_gflops"] > 0 and row["matmul_share"] > 0


def test_our_wrong_result_is_not_timed(monkeypatch):
    wrong = peers.Peer("ours", "ours", (lambda q, k, v, m, mode: q,))
    monkeypatch.setattr(cells, "OURS", wrong)
    with pytest.raises(check.WrongResult):
        cells.measure(TINY, 0.01, peers=(wrong, peers.SDPA))


def test_a_peers_wrong_result_is_not_timed():
    wrong = peers.Peer("eager", "eager", (lambda q, k, v, m, mode: q,))
    row = cells.measure(TINY, 0.01, peers=(peers.OURS, wrong))
    assert set(row["peers"]["eager"]) == {"skipped"}
    assert row["peers"]["eager"]["skipped"].startswith("wrong result: out is off by")


@pytest.mark.skipif("cpu" not in OPS, reason="the compiled library is not built")
def test_parts_of_a_call():
    """An op takes no longer than the call that runs it, and so do both ops of training."""
    seconds = measure_parts(2.0)
    assert all(value > 0 for value in seconds.values())
    assert seconds["op"] < seconds["call"] and seconds["results"] < seconds["op"]
    assert seconds["train forward"] + seconds["train backward"] < seconds["train call"]


def test_overhead_row():
    row = measure_overhead(0.01)
    assert row["peers"]["dense"]["times_sdpa"] == 1.0
    assert row["peers"]["ours"]["times_sdpa"] > 0


# Memory


def allocate(mebibytes: int) -> int:
    return peak_memory.peak_growth(lambda: torch.ones(mebibytes * 2**18).sum())


def fail() -> int:
    raise ValueError("on purpose")


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def allocate_without_proc(path):
    peak_memory.PROC = path  # in a process of its own
    return allocate(1)


@linux
@pytest.mark.parametrize("lacks", ["clear_refs", "VmHWM", "everything"])
def test_system_that_does_not_tell_its_memory(tmp_path, lacks):
    """A read-only or another /proc, as containers have: no number, and no end of the benchmark."""
    if lacks == "clear_refs":
        (tmp_path / "clear_refs").mkdir()  # cannot be written, by root either
    if lacks != "everything":
        (tmp_path / "status").write_text("VmRSS:  100 kB\n")
    assert memory.in_fresh_process(allocate_without_proc, str(tmp_path)) is None


@linux
def test_peak_memory_is_what_was_allocated():
    assert 64 * 2**20 <= memory.in_fresh_process(allocate, 64) < 72 * 2**20


@linux
def test_a_failure_in_the_other_process_is_told():
    with pytest.raises(RuntimeError, match="ValueError: on purpose"):
        memory.in_fresh_process(fail)


@linux
def test_memory_of_a_peer():
    case = Case(1024, 16, mode="k", phase=TRAIN)
    eager = memory.in_fresh_process(cells.peer_memory, case, "eager", "eager")
    ours = memory.in_fresh_process(cells.peer_memory, case, "ours", "ours")
    assert eager >= 2 * 1024 * 1024 * 4  # at least two N x N tensors of float32
    assert ours < eager


# Runs


def test_a_run_saves_each_step_and_marks_wrong_ones(tmp_path):
    def wrong():
        raise check.WrongResult("out is off")

    steps = [
        suite.Step("cells", "one", lambda: {"name": "one"}),
        suite.Step("cells", "two", wrong),
    ]
    results = {section: [] for section in suite.SECTIONS} | {"complete": False}
    path = tmp_path / "new" / "run.json"
    seen = []
    for number, step, _ in suite.run(steps, results, path):
        saved = json.loads(path.read_text())
        seen.append((number, step.label, len(saved["cells"]), saved["complete"]))
    assert seen == [(1, "one", 1, False), (2, "two", 2, True)]
    assert saved["cells"][1] == {"name": "two", "wrong": "out is off"}
    assert [p.name for p in path.parent.iterdir()] == ["run.json"]


def test_a_file_has_a_row_a_line(tmp_path):
    results = {
        "grid": "small",
        "machine": {"cpu": "a CPU", "backends": [{"name": "cpu", "build": {"tier": "amx"}}]},
        "cells": [{"name": "a", "peers": {"ours": {"median": 1e-3}}}, {"name": "b"}],
        "keeps": [],
        "shares": [0.5, 0.75],
    }
    path = tmp_path / "new" / "run.json"
    rows.save(results, path)
    assert json.loads(path.read_text()) == results
    lines = path.read_text().splitlines()
    for row in (*results["cells"], *results["machine"]["backends"]):
        assert sum(json.dumps(row) in line for line in lines) == 1
    assert len(lines) == 2 + 5 + 4 + 2  # braces, sections, elements, ends of two sections


@pytest.mark.skipif(not RESULTS, reason="no results in this tree: a source distribution")
def test_committed_files_are_as_the_writer_writes_them():
    for path in RESULTS:
        assert rows.dumps(json.loads(path.read_text())) == path.read_text(), path


def row(name, high):
    return {"name": name, "peers": {"ours": {"median": 1.0, "low": 1.0, "high": high}}}


def test_a_resumed_run_takes_what_is_missing_and_what_was_disturbed():
    taken = []

    def step(name, high):
        return suite.Step("cells", name, lambda: taken.append(name) or row(name, high))

    steps = [step("calm", 1.0), step("better", 1.1), step("worse", 3.0), step("missing", 9.0)]
    old = [row("calm", 1.2), row("better", 1.5), row("worse", 2.0)]
    results = {section: [] for section in suite.SECTIONS} | {"complete": False, "cells": [*old]}
    numbers = [number for number, _, _ in suite.run(steps, results, None)]
    assert taken == ["better", "worse", "missing"] and numbers == [2, 3, 4]
    assert results["complete"]
    assert results["cells"] == [old[0], row("better", 1.1), old[2], row("missing", 9.0)]


def test_only_the_same_run_can_be_resumed(tmp_path):
    steps = [suite.Step("cells", "one", dict), suite.Step("cells", "two", dict)]
    path = tmp_path / "run.json"
    rows.save(suite.new_results("small") | {"cells": [{"name": "one"}]}, path)
    results = suite.read_results(path, "small", steps)
    assert results["cells"] == [{"name": "one"}] and len(results["resumed"]) == 1
    with pytest.raises(ValueError, match=r"run\.json: expected the grid full, got small"):
        suite.read_results(path, "full", steps)
    with pytest.raises(ValueError, match="expected the cases of this --dtype, got others"):
        suite.read_results(path, "small", steps[1:])
    old = {"cells": [{"name": "N64-D16-B1-QK-keep0.25-fp32-fwd"}]}
    rows.save(suite.new_results("small") | old, path)
    with pytest.raises(ValueError, match="spells mask modes K and QK, which are now k and qk"):
        suite.read_results(path, "small", steps)
    machine = suite.new_results("small")["machine"] | {"threads": 99}
    rows.save(suite.new_results("small") | {"machine": machine}, path)
    with pytest.raises(ValueError, match=r"expected threads \d+ as here, got 99"):
        suite.read_results(path, "small", steps)
    path.write_text("[]")
    with pytest.raises(ValueError, match="not a results file of `maskattn bench`"):
        suite.read_results(path, "small", steps)
    with pytest.raises(ValueError, match="No such file"):
        suite.read_results(tmp_path / "none.json", "small", steps)


def test_plans_name_known_sections_and_grow():
    lengths = []
    for name in ("quick", "small", "full"):
        steps = suite.plan(name, ("float32", "bfloat16"))
        assert {step.section for step in steps} <= set(suite.SECTIONS)
        lengths.append(len(steps))
    assert lengths == sorted(lengths) and len(set(lengths)) == 3


# Network


def test_cores_share_weights_and_agree(monkeypatch):
    monkeypatch.setattr(network, "PRESET", "edge")
    monkeypatch.setattr(network, "CLASSES", 4)
    monkeypatch.setattr(network.make_image, "__defaults__", (32,))
    dense, sparse = network.make_network("dense"), network.make_network("sparse")
    for a, b in zip(dense.parameters(), sparse.parameters(), strict=True):
        assert torch.equal(a, b)
    errors = network.network_errors()
    assert set(errors) == {"sparse", "dense"} and max(errors.values()) < 1e-4
    monkeypatch.setattr(network, "ACCURACY", 0.0)
    with pytest.raises(check.WrongResult, match="sparse network is off"):
        network.network_errors()


@pytest.mark.parametrize("core", network.CORES)
@pytest.mark.parametrize("trains", [False, True])
def test_network_calls_run(core, trains, monkeypatch):
    monkeypatch.setattr(network, "PRESET", "edge")
    result = network.network_call(core, trains, side=32)()
    assert (len(result) > 10) if trains else result.shape == (1, network.CLASSES, 32, 32)
