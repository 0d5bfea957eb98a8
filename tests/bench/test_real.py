# SPDX-License-Identifier: BSD-3-Clause
"""The trainings on real images: runs can start, the table is complete, the page current."""

import pytest

from bench.real import __main__ as real
from bench.real import plan, tables
from maskattn_kernels.benchmark.pages import fill
from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.training.options import parse

recorded = pytest.mark.skipif(
    not tables.CLASSICAL.exists(), reason="no results in this tree: a source distribution"
)


def test_every_run_is_a_config_of_train():
    runs = {run.name: run for run in plan.runs()}
    assert len(runs) == len(list(plan.runs()))
    for run in runs.values():
        assert set(run.needs) <= set(runs)
        if run.seed == 0 and not run.needs:  # others start from a checkpoint
            config = parse(run.options)
            assert config.data.root == plan.DATA / run.data
            assert config.seed == 0
    masked = parse(runs["camvid-128-scratch-learned-0.1-seed0"].options)
    assert masked.network.keep == 0.1 and masked.data.frame == "squeeze"
    taught = runs["camvid-few-self-10-seed1"]
    assert taught.needs == ("camvid-few-pretrained-10-seed1",)


def test_every_cell_of_the_tables_has_its_runs():
    names = {run.name.rpartition("-seed")[0] for run in plan.runs()}
    asked: set[str] = set()

    class Spy(dict):
        def __contains__(self, name: object) -> bool:
            asked.add(str(name).rpartition("-seed")[0])
            return False

    for make in (tables.masks_table, tables.few_labels_table, tables.nuclei_table):
        make(Spy())
    assert asked <= names | {"camvid-few-self-all"}  # all images are labelled: nothing to teach
    assert len(asked) > 30


def test_cells_say_how_many_seeds_they_are():
    def record(value):
        return {"scores": {"original size": {"mIoU": value}}}

    name = "camvid-few-pretrained-10-seed"
    found = {f"{name}0": record(50.0), f"{name}1": record(52.0)}
    assert "| 10 | - | 51.0 ± 1.4 (2) | - | - |" in tables.few_labels_table(found)
    found |= {f"camvid-few-self-10-seed{seed}": record(53.0) for seed in (1, 2)}
    assert "| 51.0 ± 1.4 (2) | 53.0 ± 0.0 (2) | 1.0 |" in tables.few_labels_table(found)


@recorded
def test_every_line_of_the_table_is_a_run():
    known = {run.name: run for run in plan.runs()}
    for name, record in tables.TABLE.read().items():
        assert record["seed"] == known[name].seed
        assert record["options"] == list(known[name].changes)


@recorded
def test_networks_that_are_kept_can_be_read():
    for file in plan.HERE.glob("checkpoints/*/*.safetensors"):
        assert Checkpoint.from_pretrained(file.parent).classes.names[0] == "sky"
        assert file.stat().st_size < 8 << 20


@recorded
def test_the_page_is_what_the_command_writes():
    page = real.STUDY.page.read_text(encoding="utf-8")
    assert fill(page, tables.blocks()) == page, "run `python -m bench.real table --write`"
