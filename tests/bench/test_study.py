# SPDX-License-Identifier: BSD-3-Clause
"""The study of learned masks: runs can start, the table is complete, the page current."""

import dataclasses
import json
import subprocess

import pytest

from bench import trainings
from bench.study import __main__ as study
from bench.study import plan, records, tables
from bench.trainings import Table
from maskattn_kernels.benchmark.pages import fill
from maskattn_kernels.segmentation.training.options import parse, to_yaml

recorded = pytest.mark.skipif(
    not records.TABLE.file.exists(), reason="no results in this tree: a source distribution"
)


@pytest.fixture
def table(tmp_path, monkeypatch) -> Table:
    """A table of its own, without a run."""
    monkeypatch.setattr(records.TABLE, "file", tmp_path / "runs.jsonl")
    return records.TABLE


def test_every_run_is_a_config_of_train():
    configs = {run: parse(run.options) for run in plan.runs() if run.seed == 0}
    plain = {run.network: config for run, config in configs.items() if not run.change}
    assert set(plain) == set(plan.NETWORKS) - set(plan.HALVES)
    masked = [name for name in plain if name not in ("identity", "dense")]
    assert len(masked) == 12
    for name in masked:
        network = plain[name].network
        assert name == f"{network.selector}-{network.sparsity}-{network.keep}"
    assert plain["identity"].network.core == "identity"
    names = [run.name for run in plan.runs()]
    assert len(set(names)) == len(names)
    assert configs[plan.Run("identity", 0, "30-labelled")].data.limit == 30
    assert configs[plan.Run("identity", 0, "legend")].data.options == {"legend": True}
    assert configs[plan.Run("identity", 0, "adamw")].optimizer.name == "adamw"


def test_patterns_select_runs():
    names = [run.name for run in study.STUDY.select(["*-legend-seed1", "dense-seed0"])]
    assert names[0] == "dense-seed0" and "gumbel-topk-q+k-0.1-legend-seed1" in names
    assert len(names) == 1 + len(plan.WITH_LEGEND) + len(plan.HALVES)
    with pytest.raises(ValueError, match=r"^no run is called dance-seed0; `python -m bench.study"):
        study.STUDY.select(["dense-seed0", "dance-seed0"])


@recorded
def test_every_line_of_the_table_is_a_run():
    lines = records.TABLE.file.read_text().splitlines()
    assert len(lines) == len(records.TABLE.read()) >= 64
    known = {run.name: run for run in plan.runs()}
    for name, record in records.TABLE.read().items():
        assert record["seed"] == known[name].seed
        config = records.config_of(record)
        assert config["out"] == f"out/study/{name}" and config["steps"] == 600
        # The options that name a run are those that it was trained with.
        chosen = parse(known[name].options)
        assert config["network"]["selector"] == chosen.network.selector
        assert config["network"]["core"] == chosen.network.core
        if config["network"]["selector"] != "none":
            assert config["network"]["sparsity"] == chosen.network.sparsity
            assert config["network"]["keep"] == chosen.network.keep
        assert config["data"]["limit"] == chosen.data.limit
        assert records.differences(config) == record["config"]


@recorded
def test_a_config_comes_back_from_its_differences(table):
    config = {"out": "out/study/new-seed7", "seed": 7, **records.shared()}
    config["data"]["options"] = {"legend": True, "colours": 3}
    config["data"]["limit"] = 30
    config["optimizer"]["new_option"] = None
    found = records.differences(config)
    assert found == {
        "data.options.legend": True,
        "data.options.colours": 3,
        "data.limit": 30,
        "optimizer.new_option": None,
    }
    table.append({"run": "new-seed7", "seed": 7, "config": found})
    assert records.config_of(table.read()["new-seed7"]) == config
    del config["optimizer"]["lr"]
    with pytest.raises(ValueError, match=r"^the config has no optimizer\.lr"):
        records.differences(config)


@recorded
def test_the_config_that_train_saves_can_be_recorded():
    """Otherwise a run would be lost after its training."""
    run = plan.Run("gumbel-topk-q+k-0.25", 1, "30-labelled")
    config = records.yaml.safe_load(to_yaml(parse([*run.options, f"--out=out/study/{run.name}"])))
    found = records.differences(config)
    assert found["network.selector"] == "gumbel-topk" and found["data.limit"] == 30
    record = {"run": run.name, "seed": 1, "config": found}
    assert records.config_of(record) == config


MEAN = {"network size": {"mIoU": 20.0, "PQ": 10.0, "AP": 0.0}}


@pytest.fixture
def trained(table, monkeypatch, tmp_path) -> list[str]:
    """Names of the runs that are trained, in that order; "dense-seed2" fails."""
    names: list[str] = []

    def run(command, **_):
        names.append(command[-1])
        if command[-1] != "dense-seed2":
            table.append({"run": command[-1], "seed": 0, "config": {}, "plain": MEAN})
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(trainings, "ROOT", tmp_path)
    monkeypatch.setattr(trainings.subprocess, "run", run)
    return names


def test_a_finished_run_is_not_trained_again(table, trained, capsys):
    table.append({"run": "dense-seed0", "seed": 0, "config": {}, "plain": MEAN})
    assert study.main(["train", "--only", "dense-seed[01]", "--jobs", "1"]) == 0
    assert trained == ["dense-seed1"]
    assert capsys.readouterr().out == "[1/1] dense-seed1  mIoU 20.0  PQ 10.0  AP 0.0\n"
    with pytest.raises(SystemExit):
        study.main(["one", "dense-seed0"])
    assert "dense-seed0 is finished; to run it again" in capsys.readouterr().err


def test_a_run_waits_for_those_that_it_needs(trained, capsys):
    @dataclasses.dataclass(frozen=True)
    class Later(plan.Run):
        needs: tuple[str, ...] = ("dense-seed1",)

    runs = [Later("random-qk-0.1", 0), Later("random-qk-0.25", 0, needs=("dense-seed2",))]
    runs += [plan.Run("dense", seed) for seed in (1, 2)]
    changed = dataclasses.replace(study.STUDY, runs=runs)
    assert changed.train_all(runs, jobs=2) == 1
    assert sorted(trained) == ["dense-seed1", "dense-seed2", "random-qk-0.1-seed0"]
    assert trained.index("dense-seed1") < trained.index("random-qk-0.1-seed0")
    said = capsys.readouterr().out
    assert "not begun: random-qk-0.25-seed0, which needs dense-seed2\n" in said
    assert "dense-seed2  failed, see" in said


def test_a_table_of_what_is_finished(table):
    for seed, score in ((0, 20.0), (1, 22.0)):
        mean = {"network size": {"mIoU": score, "PQ": score / 2, "AP": 0.0}}
        table.append({"run": f"dense-seed{seed}", "plain": mean, "shifted": mean})
    rows = {name: [plan.Run(name, seed) for seed in (0, 1, 2)] for name in ("dense", "identity")}
    text = tables.scores_table("masks", rows, table.read())
    last = text.splitlines()[-1]
    scores = "21.0 ± 1.4 | 10.5 ± 0.7 | 0.0 ± 0.0"
    assert last == f"| dense | {scores} | {scores} | 2 |"


@recorded
def test_the_page_is_what_the_command_writes():
    page = tables.PAGE.read_text(encoding="utf-8")
    assert fill(page, tables.blocks()) == page, "run `python -m bench.study table --write`"


@recorded
def test_config_prints_the_config_of_a_run(capsys):
    assert study.main(["config", "dense-legend-seed2"]) == 0
    text = capsys.readouterr().out
    config = records.yaml.safe_load(text)
    assert config["seed"] == 2 and config["data"]["options"] == {"legend": True}
    assert json.loads(json.dumps(config))["optimizer"]["lr"] == 0.003
