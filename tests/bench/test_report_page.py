# SPDX-License-Identifier: BSD-3-Clause
"""Pages with tables that commands write: docs/benchmarks.md is current, blocks are filled."""

import importlib.util
import json

import pytest
from repository import ROOT

from maskattn_kernels.benchmark.cases import Case
from maskattn_kernels.benchmark.pages import fill, table


def load(name):
    spec = importlib.util.spec_from_file_location(f"bench_{name}", ROOT / "bench" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script():
    return load("report")


recorded = pytest.mark.skipif(
    not list((ROOT / "bench" / "results").glob("*.json")),
    reason="no results in this tree: a source distribution",
)


@recorded
def test_the_page_is_what_the_command_writes(script):
    page = script.PAGE.read_text(encoding="utf-8")
    assert fill(page, script.page_blocks()) == page, "run `python bench/report.py --write`"


@recorded
def test_the_page_of_the_gpu_is_what_the_command_writes():
    script = load("gpu_report")
    page = script.PAGE.read_text(encoding="utf-8")
    assert fill(page, script.blocks()) == page, "run `python bench/gpu_report.py --write`"


def test_forward_kernels_are_timed_side_by_side():
    """On the CPU, as no GPU is needed for what is measured and what is left out."""
    script = load("gpu_forward")
    case = Case(64, 16, 2, "qk", 0.25, "bfloat16", "forward", "cpu")
    row = script.forward_row(case, {"reference": "reference", "cute": "cuda"})
    assert row["reference"]["differs"] == 0 and row["reference"]["gpu"] > 0
    assert "runs on tensors on an NVIDIA GPU" in row["cute"]
    host = script.host_row(case, ["reference"])
    assert {"reference", "masked SDPA", "dense SDPA"} == set(host)
    assert all(took > 0 for passes in host.values() for took in passes.values())


@recorded
def test_every_table_names_its_processor(script):
    path = script.latest()
    cpu = json.loads(path.read_text())["machine"]["cpu"]
    for name, text in script.blocks(path).items():
        assert cpu in text or name == "left out"


@recorded
def test_the_table_of_the_network_at_inference_names_its_processor_and_its_run(script):
    path = max(script.RESULTS.glob("*-inference.jsonl"))
    machine, *rows = map(json.loads, path.read_text().splitlines())
    text = script.inference_table(path)
    assert machine["cpu"] in text and path.name in text
    assert all(row["step"] in text for row in rows)


@recorded
def test_the_plots_of_the_page_are_there(script):
    text = script.PAGE.read_text(encoding="utf-8")
    for kind in ("keep", "tokens"):
        assert f"(benchmarks-{kind}.png)" in text
        assert (script.PAGE.parent / f"benchmarks-{kind}.png").stat().st_size > 10_000


def test_blocks_are_replaced_and_the_rest_stays():
    page = (
        "above\n<!-- begin: a b -->\nold\n<!-- end -->\nbetween\n<!-- begin: c -->\n<!-- end -->\n"
    )
    filled = fill(page, {"a b": "new", "c": "also"})
    lines = [line for line in filled.splitlines() if line]
    marked = ["<!-- begin: a b -->", "new", "<!-- end -->"]
    assert lines == ["above", *marked, "between", "<!-- begin: c -->", "also", "<!-- end -->"]
    assert fill(filled, {"a b": "new", "c": "also"}) == filled


@pytest.mark.parametrize("there", ["c", "a"])
def test_other_blocks_are_an_error(there):
    with pytest.raises(ValueError, match=rf"^page: expected blocks a, b, got {there}$"):
        fill(f"<!-- begin: {there} -->\n<!-- end -->", {"b": "", "a": ""})


def test_a_table_has_a_line_a_row():
    assert table(["a", "b"], [["1", "2"]]).splitlines() == ["| a | b |", "|---|---|", "| 1 | 2 |"]
