# SPDX-License-Identifier: BSD-3-Clause
"""The results of the study as Markdown: scores by runs.jsonl, speed by speed.json."""

import json
import statistics
from collections.abc import Iterable
from typing import Any

from bench.study import records
from bench.study.plan import (
    FEW_LABELS,
    HALVES,
    HERE,
    LABELLED,
    LOCAL,
    SEEDS,
    WITH_LEGEND,
    WITHOUT_LEGEND,
    Run,
)
from bench.trainings import ROOT, Record, spread
from maskattn_kernels.benchmark.pages import table
from maskattn_kernels.benchmark.report import duration, machine_line, mebibytes

PAGE = ROOT / "docs" / "study.md"
SPEED = HERE / "speed.json"
SDPA = "dense-sdpa"  # in speed.json: torch's attention in the network "dense"
SCORES = ("mIoU", "PQ", "AP")


def blocks() -> dict[str, str]:
    """All tables by the name of their block of docs/study.md."""
    finished = records.TABLE.read()
    legend = {net: _seeds(net, "legend") for net in (*WITH_LEGEND, *HALVES)}
    legend[f"{LOCAL}, mask_rate 10"] = _seeds(LOCAL, "legend-fast")
    optimizers = {"Muon": [Run("identity", 0)], "AdamW": [Run("identity", 0, "adamw")]}
    speed = json.loads(SPEED.read_text(encoding="utf-8"))
    return {
        "legend": scores_table("masks", legend, finished),
        "plain": scores_table("masks", {net: _seeds(net) for net in WITHOUT_LEGEND}, finished),
        "few labels": few_labels_table(finished),
        "optimizers": scores_table("optimizer", optimizers, finished),
        "speed": speed_table(speed),
        "speed machine": machine_lines(speed),
        "loading": loading_sentence(speed),
    }


def _seeds(network: str, change: str = "") -> list[Run]:
    return [Run(network, seed, change) for seed in SEEDS]


def _scores(same: Iterable[Run], finished: dict[str, Record], textures: str = "plain") -> list[str]:
    """The scores of runs that differ in their seed alone."""
    found = [finished[run.name][textures]["network size"] for run in same if run.name in finished]
    return [spread([mean[score] for mean in found]) for score in SCORES]


def scores_table(title: str, rows: dict[str, list[Run]], finished: dict[str, Record]) -> str:
    """A row for each list of runs that differ in their seed alone, if one is finished."""
    header = [title, *SCORES, *(f"{score}, shifted" for score in SCORES), "seeds"]
    lines = []
    for name, same in rows.items():
        if seeds := sum(run.name in finished for run in same):
            scores = [*_scores(same, finished), *_scores(same, finished, "shifted")]
            lines.append([name, *scores, str(seeds)])
    return table(header, lines)


def few_labels_table(finished: dict[str, Record]) -> str:
    """Scores of two networks by the number of labelled images."""
    header = ["labelled images", *(f"{net}: {score}" for net in FEW_LABELS for score in SCORES)]
    lines = []
    for count in (*LABELLED, None):
        change = f"{count}-labelled" if count else ""
        scores = [_scores(_seeds(net, change), finished) for net in FEW_LABELS]
        lines.append([str(count or "all 2048"), *(cell for cells in scores for cell in cells)])
    return table(header, lines)


def speed_table(speed: dict[str, Any]) -> str:
    """What speed.py measured; "faster" than dense attention by torch's SDPA / by our own op."""

    def faster(row: dict[str, Any]) -> str:
        return " / ".join(f"{row['faster than'][dense]:.1f}x" for dense in (SDPA, "dense"))

    header = ["network", "step, fp32", "faster", "step, bf16", "faster"]
    lines = []
    for variant, step in speed["step"].items():
        bf16, image = speed["step, bf16"][variant], speed["image"][variant]
        step_cells = [cell for r in (step, bf16) for cell in (duration(r["median"]), faster(r))]
        memory = mebibytes(speed["bytes"][variant])
        lines.append([variant, *step_cells, memory, duration(image["median"]), faster(image)])
    return table([*header, "memory", "image", "faster"], lines)


def machine_lines(speed: dict[str, Any]) -> str:
    """Where each part of speed.json was measured."""
    return "\n".join(
        f"* {part}: {machine_line(facts)}" for part, facts in speed["machines"].items()
    )


def loading_sentence(speed: dict[str, Any]) -> str:
    """The rates of what lies around the network."""
    shares = speed["prediction_shares"]
    return (
        f"A core loads {speed['loaded_per_second']:.0f} scenes a second. `predict`, files to "
        f"files, runs at {statistics.median(shares):.0%} of its network's rate "
        f"({shares[0]:.0%} to {shares[-1]:.0%})."
    )
