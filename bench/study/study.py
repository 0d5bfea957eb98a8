# SPDX-License-Identifier: BSD-3-Clause
"""Do learned masks segment better than random ones? The study on digit scenes.

    python bench/study/study.py train [--only PATTERN ..] [--jobs 2]    what is not done, in order
    python bench/study/study.py table                                   what was found, as Markdown

`train` may be stopped at any time: finished runs stay, the others go on where they were saved. A
run is a network, what it changes of base.yaml beside it (scenes with a legend, few labelled images,
the optimizer) and a seed. Runs share the cores, an equal share of threads each, since small
networks gain little from more. What is kept of a run lies under results/: config.yaml, train.csv
and scores.json. How fast the networks are is for speed.py to say.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results"
WORK = ROOT / "out" / "study"  # checkpoints and saved states
SEEDS = (0, 1, 2)
KEEPS = (0.5, 0.25, 0.1)
LABELLED = (10, 30, 100)  # "all" is the run without a limit

#: "learned" masks are the best of every small window, "topk" masks the best of the whole image;
#: so are "explored" ones, which are drawn with noise while the mask heads are young.
SELECTORS = {
    "random": "random",
    "learned": "local",
    "topk": "topk",
    "explored": "gumbel-topk",
}
MASKED = (
    ("random", "k", 0.25),
    ("random", "qk", 0.25),
    ("random", "qk", 0.1),
    *(("learned", sparsity, keep) for sparsity in ("k", "qk") for keep in KEEPS),
    ("topk", "qk", 0.25),
    ("explored", "q+k", 0.25),
    ("explored", "q+k", 0.1),
    ("explored", "qk", 0.1),
    ("topk", "q+k", 0.1),
)
#: Trained before mask heads learned faster than the rest.
SLOW = "--optimizer.mask_rate=1"
FAST = "--optimizer.mask_rate=10"


def options_of(masks: str, sparsity: str, keep: float) -> tuple[str, ...]:
    chosen = (f"--network.selector={SELECTORS[masks]}", f"--network.sparsity={sparsity}")
    slow = masks == "learned" or (masks, sparsity) == ("topk", "qk")
    return (*chosen, f"--network.keep={keep}", *((SLOW,) if slow else ()))


#: Options of ``maskattn train`` by the name of the network.
NETWORKS: dict[str, tuple[str, ...]] = {
    "none": ("--network.selector=none", "--network.core=identity"),
    "dense": ("--network.selector=none",),
    **{"-".join(map(str, network)): options_of(*network) for network in MASKED},
}
# Without augmentation, which slows the learning of legends, and 600 steps see a scene twice.
LEGEND = ("--data.options={legend: true}", "--data.augment=false")
#: The same for what differs from base.yaml beside the network.
CHANGES: dict[str, tuple[str, ...]] = {
    "": (),
    "legend": LEGEND,
    "legend-fast": (*LEGEND, FAST),
    **{f"{count}-labelled": (f"--data.limit={count}",) for count in LABELLED},
    "adamw": ("--optimizer.name=adamw",),
}
WITH_LEGEND = (
    "none",
    "dense",
    *(f"{m}-{keep}" for keep in (0.25, 0.1) for m in ("random-qk", "learned-qk", "explored-q+k")),
)
#: What "explored-q+k-0.1" is without one or the other of its two ideas; with a legend only.
HALVES = ("explored-qk-0.1", "topk-q+k-0.1")
WITHOUT_LEGEND = tuple(network for network in NETWORKS if network not in HALVES)
LEARNED = "learned-qk-0.25"
SDPA = "dense-sdpa"  # in speed.json: torch's attention in the network "dense"
FEW_LABELS = ("none", LEARNED)


@dataclass(frozen=True)
class Run:
    """One training; its name is that of its folder."""

    network: str
    seed: int
    change: str = ""

    @property
    def name(self) -> str:
        change = f"-{self.change}" if self.change else ""
        return f"{self.network}{change}-seed{self.seed}"

    @property
    def options(self) -> list[str]:
        given = ["--config", str(HERE / "base.yaml"), *NETWORKS[self.network]]
        return [*given, *CHANGES[self.change], f"--seed={self.seed}", f"--out={WORK / self.name}"]


def runs() -> Iterator[Run]:
    """All runs, a seed after the other: what is stopped early has everything once."""
    for seed in SEEDS:
        yield from (Run(network, seed) for network in WITHOUT_LEGEND)
        yield from (Run(network, seed, "legend") for network in (*WITH_LEGEND, *HALVES))
        yield Run(LEARNED, seed, "legend-fast")
    for seed in SEEDS:
        yield from (Run(net, seed, f"{n}-labelled") for net in FEW_LABELS for n in LABELLED)
        yield Run("none", seed, "adamw")


def scores_of(run: Run) -> dict[str, Any] | None:
    path = RESULTS / run.name / "scores.json"
    return json.loads(path.read_text()) if path.exists() else None


def train_one(name: str) -> None:
    """Train and score a run in this process, and keep what it found."""
    from maskattn_kernels.benchmark.machine import git_commit
    from maskattn_kernels.benchmark.suite import save
    from maskattn_kernels.segmentation.data.digit_scenes import DigitScenes
    from maskattn_kernels.segmentation.model.checkpoints import Checkpoint
    from maskattn_kernels.segmentation.scoring.command import evaluate
    from maskattn_kernels.segmentation.training.command import train
    from maskattn_kernels.segmentation.training.options import parse

    run = next(run for run in runs() if run.name == name)
    folder = WORK / run.name
    start = time.monotonic()
    going_on = ["--ckpt_path=last"] if (folder / "last.ckpt").exists() else []
    train(parse([*run.options, *going_on]))
    checkpoint = Checkpoint.from_pretrained(folder / "final")
    found = {}
    for textures in ("plain", "shifted"):
        scenes = DigitScenes("val", textures=textures, legend="legend" in run.change)
        scores = evaluate(checkpoint, scenes)
        found[textures] = {size: of_size["mean"] for size, of_size in scores.items()}
    kept = RESULTS / run.name
    kept.mkdir(parents=True, exist_ok=True)
    config = (folder / "config.yaml").read_text(encoding="utf-8").replace(f"{ROOT}/", "")
    (kept / "config.yaml").write_text(config, encoding="utf-8")
    shutil.copy(folder / "train.csv", kept)
    minutes = round((time.monotonic() - start) / 60, 1)
    report = {"run": run.name, "commit": git_commit(ROOT), "minutes": minutes, **found}
    save(report, kept / "scores.json")


def train_all(only: list[str], jobs: int) -> int:
    """Train what is not done yet, some at a time; the exit status says whether all went well."""
    wanted = [run for pattern in only for run in runs() if fnmatch.fnmatch(run.name, pattern)]
    todo = [run for run in dict.fromkeys(wanted) if scores_of(run) is None]
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    WORK.mkdir(parents=True, exist_ok=True)

    def train(run: Run) -> int:
        command = [sys.executable, __file__, "one", run.name]
        with open(WORK / f"{run.name}.log", "w", encoding="utf-8") as log:
            return subprocess.run(command, env=environment, stdout=log, stderr=log).returncode

    failed = 0
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(train, run): run for run in todo}
        for done, future in enumerate(as_completed(waiting), start=1):
            run = waiting[future]
            scores = scores_of(run)
            failed += scores is None
            told = f"failed, see {WORK / run.name}.log" if scores is None else _in_short(scores)
            print(f"[{done}/{len(todo)}] {run.name}  {told}", flush=True)
    return 1 if failed else 0


def _in_short(scores: dict[str, Any]) -> str:
    mean = scores["plain"]["network size"]
    return "  ".join(f"{name} {mean[name]:.1f}" for name in ("mIoU", "PQ", "AP"))


def spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    if len(values) < 2:
        return f"{values[0]:.1f} (one seed)" if values else "-"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def scores_table(title: str, rows: dict[str, list[Run]], textures: str = "plain") -> str:
    """A row of means and spreads for each list of runs that differ in their seed alone."""
    lines = [f"| {title} | mIoU | PQ | AP | seeds |", "|---|---|---|---|---|"]
    for name, same in rows.items():
        found = [scores[textures]["network size"] for scores in map(scores_of, same) if scores]
        cells = [spread([mean[score] for mean in found]) for score in ("mIoU", "PQ", "AP")]
        lines.append(" | ".join([f"| {name}", *cells, f"{len(found)} |"]))
    return "\n".join(lines)


def tables() -> str:
    """All tables, from what lies under results/."""
    plain = {net: [Run(net, seed) for seed in SEEDS] for net in WITHOUT_LEGEND}
    legend = {net: [Run(net, seed, "legend") for seed in SEEDS] for net in (*WITH_LEGEND, *HALVES)}
    fast = f"{LEARNED}, mask heads 10 times as fast"
    legend[fast] = [Run(LEARNED, seed, "legend-fast") for seed in SEEDS]
    few = {
        f"{net}, {n or 'all'}": [Run(net, seed, f"{n}-labelled" if n else "") for seed in SEEDS]
        for net in FEW_LABELS
        for n in (*LABELLED, None)
    }
    optimizers = {
        "Muon": plain["none"],
        "AdamW": [Run("none", seed, "adamw") for seed in SEEDS],
    }
    return "\n\n".join(
        [
            scores_table("scenes with a legend", legend),
            scores_table("scenes with a legend, shifted textures", legend, "shifted"),
            scores_table("scenes without", plain),
            scores_table("scenes without, shifted textures", plain, "shifted"),
            scores_table("network, labelled images", few),
            scores_table("optimizer, no attention products", optimizers),
            speed_table(),
        ]
    )


def speed_table() -> str:
    """What speed.py measured; "faster" than dense attention by torch's SDPA / by our own op."""
    path = RESULTS / "speed.json"
    if not path.exists():
        return "no speed.json yet"
    found = json.loads(path.read_text())
    if "prediction_shares" not in found:
        return "speed.json is not finished"

    def faster(row: dict[str, Any]) -> str:
        return " / ".join(f"{row['faster than'][dense]:.1f}x" for dense in (SDPA, "dense"))

    lines = [
        "| network | step, fp32 | faster | step, bf16 | faster | memory | image | faster |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for variant, step in found["step"].items():
        bf16, image = found["step, bf16"][variant], found["image"][variant]
        cells = (
            f"{step['median']:.2f} s",
            faster(step),
            f"{bf16['median']:.2f} s",
            faster(bf16),
            f"{found['bytes'][variant] / 2**20:.0f} MiB",
            f"{image['median'] * 1e3:.0f} ms",
            faster(image),
        )
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    shares = found["prediction_shares"]
    lines += [
        "",
        f"A core loads {found['loaded_per_second']:.0f} scenes a second. `predict`, files to "
        f"files, runs at {statistics.median(shares):.0%} of its network's rate "
        f"({shares[0]:.0%} to {shares[-1]:.0%}).",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    several = commands.add_parser("train", help="every run that is not done yet")
    several.add_argument("--only", nargs="+", default=["*"], help="names of runs, or patterns")
    several.add_argument("--jobs", type=int, default=2, help="runs at a time (default 2)")
    commands.add_parser("one", help="a single run").add_argument("name")
    commands.add_parser("table", help="what was found, as Markdown")
    given = parser.parse_args()
    if given.command == "train":
        return train_all(given.only, given.jobs)
    if given.command == "one":
        train_one(given.name)
    else:
        print(tables())
    return 0


if __name__ == "__main__":
    sys.exit(main())
