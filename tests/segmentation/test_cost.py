# SPDX-License-Identifier: BSD-3-Clause
"""What the parts of a network cost: they add up, and count what torch's counter counts."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from maskattn_kernels import cli
from maskattn_kernels.segmentation.model import cost_parts
from maskattn_kernels.segmentation.model.cost_parts import (
    PARTS,
    cost_report,
    cost_table,
    gflops_by_part,
)
from maskattn_kernels.segmentation.model.network import SegmentationNetwork

ENCODER, REFINEMENT, LAYERS, PRODUCTS, DECODER = PARTS
SIZE = (64, 96)

NETWORKS = {
    "unet": {"preset": "edge", "width": 8, "depth": 2},
    "unet around an encoder": {"preset": "lite-small"},
    "frm": {"arch": "frm", "preset": "tiny"},
    "frm, entropy": {"arch": "frm", "preset": "tiny", "selector": "entropy"},
    "frm, dense core": {"arch": "frm", "preset": "tiny", "core": "dense"},
    "frm, no refinement": {"arch": "frm", "preset": "tiny", "inject": "none", "selector": "none"},
}


def network(**options):
    torch.manual_seed(0)
    return SegmentationNetwork(5, task="semantic", **options).eval()


@pytest.fixture(params=NETWORKS.values(), ids=NETWORKS)
def made(request):
    return network(**request.param)


def test_parts_add_up_to_what_torch_counts(made):
    report = cost_report(made, SIZE, seconds=0.0)
    image = torch.zeros(1, 3, *SIZE, dtype=torch.uint8)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        made(image)
    assert sum(gflops_by_part(made, SIZE).values()) == pytest.approx(report.gflops, rel=1e-12)
    assert report.gflops == counter.get_total_flops() / 1e9 == 2 * report.gmacs
    parts = report.parts.values()
    assert sum(part.gflops for part in parts) == pytest.approx(report.gflops, rel=1e-12)
    assert sum(part.milliseconds for part in parts) == pytest.approx(report.milliseconds)
    assert sum(part.parameters for part in parts) == report.parameters
    assert report.parameters == sum(p.numel() for p in made.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in made.modules())


def test_each_module_belongs_to_its_part():
    made = network(arch="frm", preset="tiny")
    parts = cost_report(made, SIZE, seconds=0.0).parts
    body = made.body

    def count(modules):
        return sum(p.numel() for module in modules for p in module.parameters())

    attention = body.attentions().values()
    assert parts[ENCODER].parameters == count([body.encoder])
    assert parts[LAYERS].parameters == count(attention)
    assert parts[REFINEMENT].parameters == count(body.refinement_parts()) - count(attention)
    assert parts[PRODUCTS].parameters == 0


def test_products_are_those_of_the_selected_tokens():
    made = network(arch="frm", preset="tiny", keep=0.25, relation="plain")
    tokens, channels = (64 // 16) * (96 // 16), 128
    chosen = tokens // 4
    found = cost_report(made, SIZE, seconds=0.0).parts[PRODUCTS].gflops
    assert found == pytest.approx(4 * channels * chosen**2 / 1e9)
    made.set_selector("none")
    dense = cost_report(made, SIZE, seconds=0.0).parts[PRODUCTS].gflops
    assert dense == pytest.approx(16 * found)


def test_torchs_own_attention_is_counted_too():
    ours, theirs = (
        gflops_by_part(network(arch="frm", preset="tiny", selector="none", core=core), SIZE)
        for core in ("sparse", "sdpa")
    )
    assert ours == theirs and ours[PRODUCTS] > 0


def test_attention_in_the_encoder_counts_as_attention():
    parts = cost_report(network(**NETWORKS["unet"]), SIZE, seconds=0.0).parts
    assert REFINEMENT not in parts
    assert parts[PRODUCTS].gflops > 0 and parts[LAYERS].gflops > 0


def test_time_belongs_to_the_part_that_runs(monkeypatch):
    """A clock that ticks once at each look: what counts is the order of the parts."""
    made = network(arch="frm", preset="tiny", selector="none")
    core = next(iter(made.body.attentions().values())).core
    seen = []
    ticks = iter(range(10**6))
    inner = core.forward

    def slow(*args, **masks):
        for _ in range(1000):
            next(ticks)
        seen.append(1)
        return inner(*args, **masks)

    monkeypatch.setattr(core, "forward", slow)
    with torch.inference_mode():
        image = torch.zeros(1, 3, *SIZE, dtype=torch.uint8)
        spent = cost_parts._spent(made, image, lambda: next(ticks))
    assert spent[PRODUCTS] >= 1000 * len(seen) > 0
    assert spent[PRODUCTS] > 10 * sum(value for part, value in spent.items() if part != PRODUCTS)


def test_memory_of_a_larger_image_is_more():
    made = network(arch="frm", preset="tiny")
    small, large = (cost_report(made, size, seconds=0.0) for size in ((32, 32), (512, 512)))
    if large.peak_memory_mb is None:
        pytest.skip("this system does not tell the peak memory of a process")
    # The largest map of the stem alone: 10 channels at half the size.
    assert large.peak_memory_mb > small.peak_memory_mb
    assert 256 * 256 * 10 * 4 / 2**20 < large.peak_memory_mb < 500


def test_the_table_names_every_part():
    report = cost_report(network(arch="frm", preset="tiny"), SIZE, seconds=0.0)
    lines = cost_table(report).splitlines()
    assert lines[0].startswith("one image of 64 x 96: ") and "GMACs" in lines[0]
    assert [line[:20].strip() for line in lines[3:]] == list(PARTS)


def test_bfloat16_has_the_same_operations():
    made = network(arch="frm", preset="tiny")
    plain, half = (cost_report(made, SIZE, d, 0.0) for d in (torch.float32, torch.bfloat16))
    assert [p.gflops for p in plain.parts.values()] == [p.gflops for p in half.parts.values()]


def test_command_prints_json(capsys):
    arguments = ["--arch", "frm", "--preset", "tiny", "--classes", "3", "--size", "64", "96"]
    assert cli.main(["cost", *arguments, "--set", "grid=8", "--keep", "0.5", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["network"]["grid"], report["network"]["keep"]) == (8, 0.5)
    assert report["size"] == [64, 96] and set(report["parts"]) == set(PARTS)


def test_command_measures_a_checkpoint_at_its_own_size(capsys):
    assert cli.main(["cost", "--checkpoint", "nuclei"]) == 0
    assert capsys.readouterr().out.startswith("one image of 256 x 256: 2.73 GFLOPs")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "expected one of --checkpoint and --preset"),
        (["--preset", "edge"], "--size: expected together with --preset"),
        (["--preset", "huge", "--size", "9", "9"], 'preset: expected one of "paper"'),
        (["--preset", "edge", "--size", "9", "9", "--set", "a=1"], "an option of a network"),
        (["--preset", "edge", "--size", "9", "9", "--set", "arch=frm"], "an option of a network"),
        (["--checkpoint", "nuclei", "--classes", "3"], "--classes, --set: expected with --preset"),
        (["--preset", "edge", "--size", "9", "9", "--set", "grid=8"], "grid: expected None, as"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, says, capsys):
    try:
        code = cli.main(["cost", *arguments])
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2 and says in error and error.count("\n") == 1
