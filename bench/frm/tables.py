# SPDX-License-Identifier: BSD-3-Clause
"""The results of FRMNet on CamVid as Markdown, by the name of their block of docs/frm.md."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from bench.frm.plan import HERE
from bench.real.plan import SEEDS
from bench.real.tables import by_seed, cells
from bench.trainings import Record, Table, spread, spread_above
from maskattn_kernels.benchmark.pages import table

TABLE = Table(HERE / "runs.jsonl")
#: Of one frame of 480 x 360; see `work`.
WORK = ("GFLOPs", "of it attention")
#: Rows of each table: the words for a row of plan.py.
PARTS = {
    "no refinement": "none",
    "refinement without attention (no token selected)": "control",
    "attention, all tokens": "dense",
    "the same, given back to the coarsest stage only": "top",
    "the same, pixel contrastive loss 0.1": "contrastive",
}
MASKS = {
    "none": "control",
    "all": "dense",
    "random 0.25": "random-0.25",
    "random 0.25, the others get the mean": "mean-0.25",
    "learned 0.25": "learned-0.25",
    "learned 0.25, falling from 1 in training": "falling",
    "learned 0.1": "learned-0.1",
    "entropy 0.25": "entropy-0.25",
}
GRIDS = {
    "1/32, all": "grid32",
    "1/16, entropy 0.25": "entropy-0.25",
    "1/16, learned 0.25": "learned-0.25",
    "1/8, none": "grid8-control",
    "1/8, entropy 1/16": "grid8-entropy",
    "1/8, learned 1/16": "grid8-learned",
    "1/16, all": "dense",
}
DICE = {
    "no refinement": "dice-none",
    "none": "dice-control",
    "all": "dice-dense",
    "learned 0.25": "dice-learned-0.25",
}
BEST = {"none": "best-control", "all": "best", "learned 0.25": "best-learned-0.25"}
RELATIONS = {
    "none": "control",
    "plain": "plain",
    "whitened pairwise": "pairwise",
    "unary": "unary",
    "whitened pairwise and unary": "dense",
}

DIGITS = Table(HERE / "digits.jsonl")  # of digits.py
SPEED = HERE / "speed.json"  # of speed.py
MASKED = "entropy 0.25"
#: Options of the network by the ways to compute it; those with the same tokens have one result.
WAYS: dict[str, dict[str, Any]] = {
    MASKED: {"selector": "entropy", "keep": 0.25},
    "entropy 0.25, SDPA with a mask": {"selector": "entropy", "keep": 0.25, "core": "sdpa"},
    "all": {"selector": "none"},
    "all, SDPA": {"selector": "none", "core": "sdpa"},
}


def blocks() -> dict[str, str]:
    """All tables."""
    finished = TABLE.read()
    return {
        "parts": rows_table(finished, "network", PARTS),
        "masks": rows_table(finished, "tokens that take part", MASKS),
        "afterwards": afterwards_table(finished, "dense"),
        "grids": rows_table(finished, "grid and tokens", GRIDS),
        "relations": rows_table(finished, "terms of attention", RELATIONS),
        "dice": rows_table(finished, "tokens that take part", DICE, "dice-control"),
        "best": rows_table(finished, "tokens that take part", BEST, "best-control"),
        "best afterwards": afterwards_table(finished, "best"),
        "digits": digits_table(DIGITS.read()),
        "speed": speed_table(),
    }


def of_row(finished: dict[str, Record], row: str) -> dict[int, Record]:
    """The finished runs of a row by their seed."""
    names = {seed: f"camvid-frm-{row}-seed{seed}" for seed in SEEDS}
    return {seed: finished[name] for seed, name in names.items() if name in finished}


def rows_table(
    finished: dict[str, Record], what: str, rows: Mapping[str, str], without: str = "control"
) -> str:
    """mIoU and work of some rows, and how far they are above the row without attention that has
    the same seed."""
    control = by_seed(finished, f"camvid-frm-{without}")
    lines = []
    for words, row in rows.items():
        found, group = of_row(finished, row), f"camvid-frm-{row}"
        (mean,) = cells(finished, [group])
        gain = "-" if row == without else spread_above(by_seed(finished, group), control)
        lines.append([words, mean, gain, *work([r["work"] for r in found.values()])])
    return table([what, "mIoU", "above no attention", *WORK], lines)


def afterwards_table(finished: dict[str, Record], row: str) -> str:
    """mIoU of the networks of a row, trained with all tokens, and masked when they are scored."""
    lines: dict[str, list[Record]] = {}
    for record in of_row(finished, row).values():
        lines.setdefault("all", []).append({"mIoU": miou(record), **record["work"]})
        for scored in record["afterwards"]:
            words = f"{scored['selector']} {scored['keep']}" if scored["keep"] else "none"
            lines.setdefault(words, []).append(scored)
    return table(
        ["tokens that take part", "mIoU", *WORK],
        (
            [words, spread([r["mIoU"] for r in found]), *work(found)]
            for words, found in lines.items()
        ),
    )


def miou(record: Record) -> float:
    """Of the validation images at their own size."""
    return float(record["scores"]["original size"]["mIoU"])


def work(counted: Sequence[Record]) -> list[str]:
    """The cells of `WORK`; the work of a row is the same for all seeds."""
    if not counted:
        return ["-", "-"]
    return [f"{counted[0]['gflops']:.2f}", f"{counted[0]['attention_gflops']:.3f}"]


def digits_table(finished: dict[str, Record]) -> str:
    """mIoU and the mean IoU of digits, and how far that is above the control; by digits.py."""
    rows: dict[str, dict[int, Record]] = {}
    for name, record in finished.items():
        rows.setdefault(name.rpartition("-seed")[0], {})[record["seed"]] = record
    digits = {row: {seed: r["digits"] for seed, r in found.items()} for row, found in rows.items()}
    control, lines = digits.get("control", {}), []
    for row, found in rows.items():
        gain = "-" if row == "control" else spread_above(digits[row], control)
        means = (spread([r[name] for r in found.values()]) for name in ("mIoU", "digits"))
        lines.append([row, *means, gain, str(len(found))])
    return table(["network", "mIoU", "digits", "above no attention", "seeds"], lines)


def speed_table() -> str:
    """Milliseconds of a frame by size and precision; by speed.py."""
    rows = json.loads(SPEED.read_text(encoding="utf-8"))["rows"] if SPEED.exists() else []
    settings = dict.fromkeys((*row["size"], row["precision"]) for row in rows)
    lines = []
    for way in WAYS:
        cells = []
        for height, width, precision in settings:
            (row,) = (
                r
                for r in rows
                if (*r["size"], r["precision"], r["way"]) == (height, width, precision, way)
            )
            cells.append(f"{row['ms']:.0f} ({row['times_masked']:.2f}x)")
        lines.append([way, *cells])
    header = (f"{width} x {height}, {precision}" for height, width, precision in settings)
    return table(["tokens that take part", *header], lines)
