# SPDX-License-Identifier: BSD-3-Clause
"""The study of learned masks: its runs can start, and tables can be made of any number of them."""

import importlib.util
import json
import sys

import pytest
from repository import ROOT

from maskattn_kernels.segmentation.training.options import parse

PATH = ROOT / "bench" / "study" / "study.py"


@pytest.fixture
def study(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("study", PATH)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "study", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


def test_every_run_is_a_config_of_train(study):
    configs = {run: parse(run.options) for run in study.runs() if run.seed == 0}
    plain = {run.network: config for run, config in configs.items() if not run.change}
    assert set(plain) == set(study.NETWORKS) - set(study.HALVES)
    for name, config in plain.items():
        if name.startswith(("random", "learned", "explored", "topk")):
            _, sparsity, keep = name.split("-")
            assert (config.network.sparsity, config.network.keep) == (sparsity, float(keep))
    assert plain["none"].network.core == "identity"
    names = [run.name for run in study.runs()]
    assert len(set(names)) == len(names)
    assert configs[study.Run("none", 0, "30-labelled")].data.limit == 30
    assert configs[study.Run("none", 0, "legend")].data.options == {"legend": True}
    assert configs[study.Run("none", 0, "adamw")].optimizer.name == "adamw"


def test_tables_of_what_is_done(study, tmp_path):
    for seed, score in ((0, 20.0), (1, 22.0)):
        mean = {"network size": {"mIoU": score, "PQ": score / 2, "AP": 0.0}}
        folder = tmp_path / f"dense-seed{seed}"
        folder.mkdir()
        (folder / "scores.json").write_text(json.dumps({"plain": mean, "shifted": mean}))
    text = study.tables()
    assert "| dense | 21.0 ± 1.4 | 10.5 ± 0.7 | 0.0 ± 0.0 | 2 |" in text
    assert "| none | - | - | - | 0 |" in text and "no speed.json yet" in text
