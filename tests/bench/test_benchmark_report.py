# SPDX-License-Identifier: BSD-3-Clause
"""What is made of measured rows: break-even, goals, text and pictures; with made-up rows."""

import pytest

from maskattn_kernels.benchmark import report, suite, summary
from maskattn_kernels.benchmark.cases import FORWARD, TRAIN, Case
from maskattn_kernels.benchmark.summary_gpu import gpu_goals


def test_break_even():
    assert summary.break_even([1.0, 0.5], [2.0, 4.0]) is None
    assert summary.break_even([0.5, 1.0], [0.2, 0.1]) == 0.0
    assert summary.break_even([0.5, 0.75, 1.0], [2.0, 1.0, 0.25]) == 0.75
    assert 0.5 < summary.break_even([0.5, 1.0], [1.1, 0.2]) < 0.6


def fake_row(ours_ratio=2.0, sdpa_ratio=20.0, share=0.9, **case):
    case = Case(**{"tokens": 16384, "head_dim": 64, **case})
    timing = {"median": 1e-3, "low": 9e-4, "high": 2e-3, "rounds": 5}
    return {
        "name": case.name,
        "case": vars(case),
        "peers": {
            "ours": {**timing, "times_ours": 1.0, "peak_bytes": 2**21},
            "gather": {**timing, "times_ours": ours_ratio, "peak_bytes": 2**22},
            "sdpa": {**timing, "times_ours": sdpa_ratio, "peak_bytes": 2**22},
            "dense": {**timing, "times_ours": 0.5 if case.keep > 0.8 else 2.0},
            "flex": {"skipped": "no compiler"},
        },
        "floor_seconds": 5e-4,
        "matmul_share": share,
        "matmul_gflops": 200.0,
        "ours_gflops": 200.0 * share,
    }


def fake_results(**kwargs):
    core = {"median": 0.3, "low": 0.2, "high": 0.4, "rounds": 5}
    cores = {
        "sparse": core | {"times_ours": 1.0, "peak_bytes": 2**26},
        "dense": core | {"times_ours": 8.0, "peak_bytes": 2**30},
        "sdpa": core | {"times_ours": 4.0, "peak_bytes": None},
        "identity": core | {"times_ours": 0.9, "peak_bytes": 2**26},
    }
    overhead = {"ours": {"median": 3e-5, "times_sdpa": 1.5}, "dense": {"median": 2e-5}}
    return {
        "grid": "full",
        "complete": True,
        "machine": {
            "cpu": "a CPU",
            "threads": 2,
            "torch": "2",
            "maskattn_kernels": "0",
            "commit": None,
            "date": "today",
            "backends": [{"name": "cpu", "available": True, "build": {"tier": "avx2"}}],
        },
        "cells": [
            fake_row(mode=m, keep=k, dtype=d, phase=p, tokens=n, head_dim=h, **kwargs)
            for m in ("k", "qk")
            for k in (0.5, 0.25)
            for d in ("float32", "bfloat16")
            for p in (FORWARD, TRAIN)
            for n, h in ((16384, 64), (4096, 128))
        ],
        "keeps": [fake_row(keep=k) for k in (1.0, 0.5)],
        "tokens": [fake_row(tokens=n, phase=TRAIN) for n in (256, 1024)],
        "network": [{"phase": p, "cores": cores} for p in (FORWARD, TRAIN)],
        "overhead": [{"peers": overhead}],
        "op_memory": [{"peak_bytes": 2**29}],
    }


def test_goals_are_met_and_missed():
    assert {goal.met for goal in summary.goals(fake_results())} == {True}
    poor = fake_results(ours_ratio=0.9, sdpa_ratio=3, share=0.1)
    missed = [goal for goal in summary.goals(poor) if not goal.met]
    assert len(missed) == 8 + 4 + 3  # gather, SDPA, rates
    worst = next(g for g in missed if "worst" in g.what)
    assert worst.measured.startswith("0.90x at N16384-D64-B1")


def test_goals_without_measurements_are_no_success():
    empty = {section: [] for section in suite.SECTIONS}
    assert {goal.met for goal in summary.goals(empty)} == {None}
    assert {goal.measured for goal in summary.goals(empty)} == {summary.UNMEASURED}


def test_report_tells_everything():
    results = fake_results()
    results["cells"].append({"name": "bad case", "wrong": "out is off"})
    text = report.text(results)
    assert "a CPU, 2 threads, avx2" in text
    assert "bad case: out is off" in text
    assert "FlexAttention, mask built before: no compiler (32 cases)" in text
    break_even = "masked attention is faster than dense SDPA up to keep 0.75"
    assert f"N=16384, D=64, k, float32, forward: {break_even}" in text
    assert "attention products removed" in text
    assert "interrupted" not in text
    assert "interrupted" in report.text({**results, "complete": False})


def test_durations_have_three_digits():
    assert [report.duration(s) for s in (12.34, 0.9994, 1.5e-3, 123.4e-6, 1e-7)] == [
        "12.3 s",
        "999 ms",
        "1.50 ms",
        "123 us",
        "0.10 us",
    ]


def test_plots_are_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    from maskattn_kernels.benchmark import plots

    written = plots.plot_all(fake_results(), tmp_path / "run")
    assert [p.name for p in written] == ["run-keep.png", "run-tokens.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in written)
    empty = fake_results() | {"keeps": [], "tokens": []}
    assert plots.plot_all(empty, tmp_path / "none") == []


def fake_gpu_row(seconds: float, others: dict[str, float], **case) -> dict:
    row = fake_row(dtype="bfloat16", **case)
    row["case"]["device"] = "cuda"
    row["floor_seconds"], row["matmul_gflops"], row["flops"] = 200e-6, 700e3, 140e9
    row["peers"] = {name: {"times_ours": ratio} for name, ratio in others.items()}
    row["peers"]["ours"] = {"graph": {"median": seconds}, "times_ours": 1.0}
    return row


def test_gpu_goals_by_hand():
    """140 GFLOP at 700 TFLOP/s are 200 us: in 400 us that is half of the matmul rate."""
    others = {"gather": 1.1, "sdpa": 4.0, "flex": 2.0}
    rows = [
        fake_gpu_row(400e-6, others, tokens=16384, phase=FORWARD),
        fake_gpu_row(1000e-6, others, tokens=16384, phase=TRAIN),
        fake_gpu_row(14e-6, others, tokens=1024, phase=FORWARD),
    ]
    rows[2]["floor_seconds"] = 3e-6
    goals = {g.what.split(":")[0]: g for g in gpu_goals({"cells": rows})}
    shares = "share of the matmul rate where the floor is over 100 us"
    assert goals[f"forward, {shares}"].measured.startswith("50%")
    assert not goals[f"forward+backward, {shares}"].met  # 20% of it
    assert goals["forward, N=1024, time on the GPU"].met
    assert goals["forward, N=256, time on the GPU"].met is None
    best = goals["forward, best peer that does not wait for the GPU / ours"]
    assert best.measured == "2.00x (2 cells)"  # gather waits, so FlexAttention it is
    assert not goals["FlexAttention, mask built before / ours, keep 0.25, N >= 4096"].met


def test_gpu_goals_without_measurements_are_no_success():
    assert {goal.met for goal in gpu_goals({"cells": []})} == {None}
