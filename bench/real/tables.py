# SPDX-License-Identifier: BSD-3-Clause
"""The results on real images as Markdown, by the name of their block of docs/real.md."""

import json
from collections.abc import Iterable

from bench.real.plan import BEFORE, ENCODERS, HERE, LABELLED, MASKS, NUCLEI, SEEDS, SIZES, STARTS
from bench.trainings import Record, Table, spread, spread_above
from maskattn_kernels.benchmark.pages import table
from maskattn_kernels.segmentation.picking.rules import RULES

TABLE = Table(HERE / "runs.jsonl")
PICKS, DRIFT = Table(HERE / "pick.jsonl"), HERE / "drift.json"  # of pick.py and drift.py
START = "start"  # of pick.py: the training with the first labels
RECIPE, USUAL = Table(HERE / "recipe.jsonl"), "usual"  # of recipe.py, and its first row
HYBRID, SPEED = HERE / "hybrid.json", HERE / "speed.json"  # of hybrid.py and speed.py
CLASSICAL = HERE / "classical.json"  # of classical.py
#: The networks of `BEST` for people.
BEST_NAMES = {
    "10g-frm": "FRMNet, finest map 1/2",
    "10g": "U-Net, finest map 1/2",
    "3g": "FRMNet, finest map 1/4",
    "1g": "FRMNet, finest map 1/4",
}


def blocks() -> dict[str, str]:
    """All tables."""
    finished = TABLE.read()
    return {
        "masks": masks_table(finished),
        "norms": norms_table(finished),
        "best": best_table(finished),
        "hybrid": hybrid_table(),
        "recipe": recipe_table(RECIPE.read()),
        "few labels": few_labels_table(finished),
        "nuclei": nuclei_table(finished),
        "pick": pick_table(PICKS.read()),
        "drift": drift_table(),
    }


def by_seed(finished: dict[str, Record], group: str) -> dict[int, float]:
    """mIoU at the images' own size of the runs that differ in their seed alone."""
    names = {seed: f"{group}-seed{seed}" for seed in SEEDS}
    return {
        seed: finished[name]["scores"]["original size"]["mIoU"]
        for seed, name in names.items()
        if name in finished
    }


def cells(finished: dict[str, Record], groups: Iterable[str]) -> list[str]:
    """Mean and spread of each group, with the number of its seeds where some are missing."""
    found = []
    for group in groups:
        values = list(by_seed(finished, group).values())
        few = f" ({len(values)})" if 0 < len(values) < len(SEEDS) else ""
        found.append(spread(values) + few)
    return found


def masks_table(finished: dict[str, Record]) -> str:
    """mIoU by masks, for each size and encoder."""
    columns = [(size, encoder) for size in SIZES for encoder in ENCODERS]
    header = ["masks", *(f"{size}, {encoder}" for size, encoder in columns)]
    rows = [
        [masks, *cells(finished, (f"camvid-{s}-{e}-{masks}" for s, e in columns))]
        for masks in MASKS
    ]
    return table(header, rows)


def norms_table(finished: dict[str, Record]) -> str:
    """Both places of the norm, and how far each network is above the one without attention."""
    usual = "camvid-192x256-pretrained"
    none = by_seed(finished, f"{usual}-none")
    rows = []
    for masks in BEFORE:
        row = [masks]
        for group in (f"{usual}-{masks}", f"{usual}-before-{masks}"):
            row += [*cells(finished, [group]), spread_above(by_seed(finished, group), none)]
        rows.append(row)
    header = ["masks", "norm after", "above none", "norm before", "above none"]
    return table(header, rows)


def best_table(finished: dict[str, Record]) -> str:
    """The best networks of each cost class; milliseconds by speed.py."""
    took = json.loads(SPEED.read_text(encoding="utf-8"))["ms"] if SPEED.exists() else {}
    rows = []
    for row, name in BEST_NAMES.items():
        record = finished.get(f"camvid-best-{row}-seed0")
        if record is None:
            continue
        cost = record["cost"]
        rows.append(
            [
                f"under {row.partition('g')[0]}",
                name,
                f"{cost['gflops']:.2f}",
                f"{cost['parameters'] / 1e6:.1f} M",
                " x ".join(map(str, cost["size"])),
                f"{took[row]:.0f}" if row in took else "-",
                f"{record['scores']['original size']['mIoU']:.1f}",
            ]
        )
    return table(["GFLOPs", "network", "counted", "parameters", "size", "ms", "mIoU"], rows)


def few_labels_table(finished: dict[str, Record]) -> str:
    """mIoU by the number of labelled images and what the training starts from."""
    rows = []
    for count in (*map(str, LABELLED), "all"):
        groups = [f"camvid-few-{start}-{count}" for start in STARTS]
        pretrained, taught = (by_seed(finished, group) for group in groups[1:])
        rows.append([count, *cells(finished, groups), spread_above(taught, pretrained)])
    return table(["labelled images", *STARTS, "self above pretrained"], rows)


def nuclei_table(finished: dict[str, Record]) -> str:
    """mIoU of both classes and the scores of nuclei, ours and the classical way."""
    names = ("mIoU", "PQ", "AP", "AP50")
    rows = []
    for row in NUCLEI:
        runs = [n for seed in SEEDS if (n := f"nuclei-{row}-seed{seed}") in finished]
        found = [finished[n]["classes"]["nucleus"] for n in runs]
        means = spread(list(by_seed(finished, f"nuclei-{row}").values()))
        own = (spread([scored[name] for scored in found]) for name in names[1:])
        rows.append([row, means, *own])
    classical = json.loads(CLASSICAL.read_text(encoding="utf-8"))
    rows.append([classical["method"], *(f"{classical[name]:.1f}" for name in names)])
    return table(["method", "mIoU", *(f"{name} of nuclei" for name in names[1:])], rows)


def _by_seed(finished: dict[str, Record], row: str, score: str) -> dict[int, float]:
    """A score of the finished runs of a row, by seed."""
    names = {seed: f"{row}-seed{seed}" for seed in SEEDS}
    return {s: finished[name][score] for s, name in names.items() if name in finished}


def pick_table(finished: dict[str, Record]) -> str:
    """mIoU with more labels by each rule, and how far it is above random ones; by pick.py."""
    random, lines = _by_seed(finished, "random", "mIoU"), []
    for rule in (START, *reversed(RULES)):
        found = _by_seed(finished, rule, "mIoU")
        gain = "-" if rule in (START, "random") else spread_above(found, random)
        name = "20 labelled images" if rule == START else f"20 more: {rule}"
        lines.append([name, spread(list(found.values())), gain, str(len(found))])
    return table(["labels", "val mIoU", "above random", "seeds"], lines)


def recipe_table(finished: dict[str, Record]) -> str:
    """mIoU with each part of the recipe changed, on frames like the training's and on others."""
    lines = []
    for part in dict.fromkeys(name.rpartition("-seed")[0] for name in finished):
        cells = []
        for where in ("val", "dusk"):
            found, usual = (_by_seed(finished, row, where) for row in (part, USUAL))
            above = "-" if part == USUAL else spread_above(found, usual)
            cells += [spread(list(found.values())), above]
        lines.append([part, *cells, str(len(found))])
    head = ["recipe", "val", "above usual", "another drive, at dusk", "above usual", "seeds"]
    return table(head, lines)


def hybrid_table() -> str:
    """Scores and costs from whole frames at half their size to all tiles; by hybrid.py."""
    rows = json.loads(HYBRID.read_text(encoding="utf-8"))
    *hybrid, _ = rows  # the last way has no first look
    first, both = hybrid[0]["scores"]["mIoU"], hybrid[-1]
    lines = []
    for row in rows:
        gain = (row["scores"]["mIoU"] - first) / (both["scores"]["mIoU"] - first)
        lines.append(
            [
                row["name"],
                f"{row['scores']['mIoU']:.1f}",
                f"{gain:.0%}",
                f"{row['gflops']:.2f}",
                f"{row['gflops'] / both['gflops']:.0%}",
                f"{row['milliseconds']:.0f}",
            ]
        )
    head = ["way", "mIoU", "of the gain", "GFLOPs", "of the cost", "ms"]
    return table(head, lines)


def drift_table() -> str:
    """What a network of CamVid makes of other and of changed images; by drift.py."""
    header = ["images", "mIoU", "unusual", "warning", "warnings, by groups of 10 images", "why"]
    rows = json.loads(DRIFT.read_text(encoding="utf-8")) if DRIFT.exists() else {}
    lines = []
    for name, row in rows.items():
        miou = "-" if row["mIoU"] is None else f"{row['mIoU']:.1f}"
        share = f"{row['unusual'] / row['images']:.0%} of {row['images']}"
        warning = "yes" if row["drifted"] else "no"
        groups = f"{row['groups that drifted']} of {row['groups']}"
        lines.append([name, miou, share, warning, groups, ", ".join(list(row["why"])[:3])])
    return table(header, lines)
