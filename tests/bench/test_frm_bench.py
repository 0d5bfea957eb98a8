# SPDX-License-Identifier: BSD-3-Clause
"""The trainings of FRMNet: runs start, rows have runs, the page is current."""

import json

import pytest
import torch

from bench.frm import __main__ as frm
from bench.frm import digits, plan, speed, tables
from maskattn_kernels.benchmark.pages import fill
from maskattn_kernels.segmentation.model.network import SegmentationNetwork
from maskattn_kernels.segmentation.training.options import parse


def record(miou: float, gflops: float = 4.0) -> dict:
    work = {"gflops": gflops, "attention_gflops": 0.5}
    scored = {"selector": "entropy", "keep": 0.25, "mIoU": miou - 1, **work}
    none = {"selector": "random", "keep": 0.0, "mIoU": miou - 2, **work}
    return {
        "scores": {"original size": {"mIoU": miou}},
        "work": work,
        "afterwards": [scored, none],
    }


def test_every_run_is_a_config_of_train():
    runs = {run.name: run for run in plan.runs()}
    assert len(runs) == len(list(plan.runs())) == 3 * len(plan.ROWS) + len(plan.BEST_ROWS)
    for name in (*plan.ROWS, *plan.BEST_ROWS):
        config = parse(runs[f"camvid-frm-{name}-seed0"].options)
        assert (config.network.arch, config.network.preset) == ("frm", "lite")
    control = parse(runs["camvid-frm-control-seed2"].options)
    assert (control.network.selector, control.network.keep, control.seed) == ("random", 0.0, 2)


def test_every_row_of_the_tables_is_in_the_plan():
    for rows in (tables.PARTS, tables.MASKS, tables.GRIDS, tables.RELATIONS, tables.DICE):
        assert set(rows.values()) <= set(plan.ROWS)
    assert set(tables.BEST.values()) == set(plan.BEST_ROWS)


def test_masked_afterwards_is_what_attends_to_all_tokens():
    found = {run.name for run in plan.runs() if run.seed == 0 and plan.attends_to_all(run)}
    rows = {name.removeprefix("camvid-frm-").removesuffix("-seed0") for name in found}
    assert {"dense", "top", "plain", "contrastive", "best"} <= rows
    assert not rows & {"control", "none", "learned-0.25", "entropy-0.25", "falling"}


def test_work_counts_attention_apart():
    network = SegmentationNetwork(3, task="semantic", arch="frm", preset="tiny", selector="random")
    whole = frm.work(network.eval())
    network.set_keep(0.0)
    without = frm.work(network)
    assert without["attention_gflops"] == 0 < whole["attention_gflops"]
    difference = whole["gflops"] - without["gflops"]
    assert difference == pytest.approx(whole["attention_gflops"])


def test_rows_are_compared_seed_by_seed():
    names = ("control-seed0", "control-seed1", "dense-seed0", "dense-seed1", "dense-seed2")
    values = zip(names, (60.0, 62.0, 61.0, 64.0, 99.0), strict=True)
    finished = {f"camvid-frm-{name}": record(value) for name, value in values}
    lines = tables.rows_table(finished, "network", {"no": "control", "all": "dense", "x": "top"})
    assert "| no | 61.0 ± 1.4 (2) | - | 4.00 | 0.500 |" in lines
    assert "| 1.5 ± 0.7 | 4.00 | 0.500 |" in lines
    assert "| x | - | - | - | - |" in lines


def test_masked_afterwards_has_a_row_for_each_selector():
    finished = {f"camvid-frm-dense-seed{seed}": record(60.0 + seed) for seed in (0, 1)}
    lines = tables.afterwards_table(finished, "dense").splitlines()[2:]
    assert [line.split("|")[1].strip() for line in lines] == ["all", "entropy 0.25", "none"]
    assert "59.5 ± 0.7" in lines[1]


def test_runs_on_digit_scenes():
    runs = list(digits.runs())
    assert len({run.name for run in runs}) == len(runs) == 3 * len(digits.ROWS)
    for run in runs[: len(digits.ROWS)]:
        config = parse(run.options)
        assert (config.network.arch, config.network.grid, config.seed) == ("frm", 8, 0)
        assert config.data.options == {"legend": True}
    finished = {
        f"{row}-seed0": {"seed": 0, "mIoU": score + 10, "digits": score}
        for row, score in (("control", 20.0), ("dense", 23.0))
    }
    lines = tables.digits_table(finished)
    assert "| control | 30.0 | 20.0 | - | 1 |" in lines
    assert "| dense | 33.0 | 23.0 | 3.0 | 1 |" in lines


@pytest.mark.parametrize("dtype", speed.DTYPES)
def test_all_ways_are_timed_and_agree(dtype, monkeypatch, tmp_path):
    rows = speed.measure((64, 96), dtype, seconds=0.0, preset="tiny")
    assert [row["way"] for row in rows] == list(tables.WAYS)
    assert all(row["ms"] > 0 for row in rows) and rows[0]["times_masked"] == 1.0
    monkeypatch.setattr(tables, "SPEED", tmp_path / "speed.json")
    tables.SPEED.write_text(json.dumps({"rows": rows}))
    precision = str(dtype).removeprefix("torch.")
    assert tables.speed_table().startswith(f"| tokens that take part | 96 x 64, {precision} |")


def test_ways_that_do_not_agree_are_not_timed():
    logits = {way: torch.arange(4.0) for way in tables.WAYS}
    speed.check(logits, torch.float32)
    logits["all, SDPA"] = torch.arange(4.0) + 0.01
    with pytest.raises(ValueError, match=r"all, SDPA: logits are .* off"):
        speed.check(logits, torch.float32)


def test_every_line_of_the_table_is_a_run():
    known = {run.name: run for run in plan.runs()}
    for name, line in tables.TABLE.read().items():
        assert line["options"] == list(known[name].changes)


def test_the_page_is_what_the_command_writes():
    page = frm.STUDY.page.read_text(encoding="utf-8")
    if tables.TABLE.file.exists():  # not in a source distribution
        assert fill(page, tables.blocks()) == page, "run `python -m bench.frm table --write`"
