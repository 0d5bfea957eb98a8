# SPDX-License-Identifier: BSD-3-Clause
"""Accuracy against time: runs can start, files are checked and timed, the page is current."""

import json
from pathlib import Path

import pytest
import torch

from bench.deploy import make_checkpoint
from bench.real.front import __main__ as command
from bench.real.front import plan, speed, tables
from bench.real.front.peers import ARCH, register
from bench.real.plan import DATA, Run
from maskattn_kernels.benchmark.pages import fill
from maskattn_kernels.models import PRESETS
from maskattn_kernels.segmentation.exporting import checking
from maskattn_kernels.segmentation.model.architectures import ARCHITECTURES
from maskattn_kernels.segmentation.training.options import parse

COST = {"gflops": 1.25, "parameters": 3_140_000}


@pytest.fixture(autouse=True)
def peers(monkeypatch) -> None:
    """The networks of other libraries, for these tests alone."""
    monkeypatch.setitem(ARCHITECTURES, ARCH, None)  # what is there now comes back afterwards
    register()


def record(miou: float) -> dict:
    return {"scores": {"original size": {"mIoU": miou}}}


def test_every_run_is_a_config_of_train():
    runs = {run.name: run for run in plan.runs()}
    assert len(runs) == len(list(plan.runs())) == 3 * len(plan.NETWORKS)
    recipes = []
    for name in plan.NETWORKS:
        config = parse(runs[f"camvid-front-{name}-seed0"].options).as_dict()
        assert config["data"]["root"] == DATA / "camvid"
        recipes.append({k: v for k, v in config.items() if k not in ("network", "config")})
    assert all(recipe == recipes[0] for recipe in recipes)


def test_frm_is_trained_with_the_same_recipe():
    from bench.frm.plan import runs

    (frm,) = (run for run in runs() if run.name == f"{plan.FRM['frm-lite']}-seed0")
    assert set(plan.RECIPE) <= set(frm.changes)


def test_a_row_for_each_network_the_fastest_first():
    found = {f"camvid-front-smp-unet-seed{seed}": record(60.0 + seed) for seed in (0, 1)}
    found["camvid-frm-learned-0.25-seed0"] = record(66.0)
    ms = {("smp-unet", "onnxruntime"): 30.0, ("smp-unet", "openvino"): 25.0}
    ms |= {("frm-lite", "onnxruntime"): 11.0, ("frm-lite", "openvino"): 12.0}
    ms |= {(plan.MOBILE, "onnxruntime"): 9.0, (plan.MOBILE, "openvino"): 12.0}
    costs = dict.fromkeys(("smp-unet", "frm-lite", plan.MOBILE), COST)
    assert tables.front_table(found, ms, costs).splitlines()[2:] == [
        f"| mobile ({plan.MOBILE}) | - | 9.0 | 12.0 | 1.25 | 3.1 M |",
        "| frm-lite | 66.0 (1) | 11.0 | 12.0 | 1.25 | 3.1 M |",
        "| smp-unet | 60.5 ± 0.7 (2) | 30.0 | 25.0 | 1.25 | 3.1 M |",
    ]
    assert [p[0] for p in tables.points(found, ms)] == ["frm-lite", "smp-unet"]


def test_the_preset_is_the_variant_that_it_is_said_to_be():
    (run,) = (r for r in plan.runs() if r.name == f"camvid-front-{plan.MOBILE}-seed0")
    variant, preset = (
        parse(options).network.as_dict() for options in (run.options, ["--network.preset=mobile"])
    )
    assert {name: variant[name] for name in PRESETS["mobile"]} == PRESETS["mobile"]
    masks = ("selector", "keep", "sparsity", "unselected")
    assert [variant[k] for k in masks] == [preset[k] for k in masks]


def test_the_front_is_what_no_faster_network_equals():
    at = [(1, 50.0), (2, 60.0), (3, 60.0), (4, 55.0), (5, 61.0)]
    shown = [tables.Point(f"at {ms}", ms, miou) for ms, miou in at]
    assert [p.ms for p in tables.front(shown)] == [1, 2, 5]


def test_a_plot_is_written(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="the extra bench is not installed")
    found = [tables.Point("edge-lite0", 8.0, 64.0), tables.Point("smp-unet", 25.0, 65.0)]
    monkeypatch.setattr(tables, "points", lambda *_: found)
    monkeypatch.setattr(tables, "speed", lambda: {"rows": []})
    tables.plot(tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


def test_every_network_has_a_run_to_time():
    assert list(speed.runs_to_time()) == list(tables.GROUPS)


def test_images_that_are_not_there_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed, "IMAGES", tmp_path / "none")
    with pytest.raises(SystemExit):
        command.main(["speed"])
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "error: verify: expected a folder of images, got " in last


def test_files_are_checked_and_timed_in_both_runtimes(tmp_path: Path, monkeypatch, capsys):
    for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package, reason="the extras onnx and openvino are not installed")
    tiny = ("--network.width=4", "--network.depth=1")
    chosen = {name: Run("camvid", name, 0, tiny) for name in ("trained", "random")}
    saved = make_checkpoint((32, 48), 5, width=4, depth=1)
    saved.save_pretrained(tmp_path / "front" / "camvid-trained-seed0" / "best")
    monkeypatch.setattr(speed, "runs_to_time", lambda: chosen)
    monkeypatch.setattr(speed, "OUT", tmp_path)
    monkeypatch.setattr(speed, "SIZE", (32, 48))
    monkeypatch.setattr(speed, "IMAGES", None)  # pictures that come with the package
    monkeypatch.setattr(checking, "_SECONDS", 0.0)
    threads = torch.get_num_threads()
    try:
        speed.measure_all(2, tmp_path / "speed.json")
    finally:
        torch.set_num_threads(threads)
    told = capsys.readouterr().out
    assert "camvid-random-seed0: not trained yet" in told and "camvid-trained" not in told
    rows = json.loads((tmp_path / "speed.json").read_text())["rows"]
    runtimes = ("onnxruntime", "openvino")
    assert [row["name"] for row in rows] == [f"{n}, {r}" for n in chosen for r in runtimes]
    assert all(row["threads"] == 1 and row["cpu_ms"] > 0 for row in rows)
    monkeypatch.setattr(tables, "SPEED", tmp_path / "speed.json")
    assert set(tables.times_of(tables.speed())) == {(n, r) for n in chosen for r in runtimes}
    assert set(tables.speed()["costs"]) == set(chosen)


def test_every_line_of_the_table_is_a_run():
    known = {run.name: run for run in plan.runs()}
    for name, line in tables.TABLE.read().items():
        assert line["options"] == list(known[name].changes)


def test_the_page_is_what_the_command_writes():
    page = command.STUDY.page.read_text(encoding="utf-8")
    if tables.TABLE.file.exists():  # not in a source distribution
        assert fill(page, tables.blocks()) == page, "run `python -m bench.real.front table --write`"
