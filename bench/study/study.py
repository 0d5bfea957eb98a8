# SPDX-License-Identifier: BSD-3-Clause
"""Do learned masks segment better than random ones? The study on digit scenes.

    python bench/study/study.py train [--only PATTERN ..] [--jobs 2]   the runs not done yet
    python bench/study/study.py table [--write]    the results as Markdown; into docs/study.md
    python bench/study/study.py config NAME        the complete config of a finished run
    python bench/study/study.py list               the names of all runs

`train` can be stopped at any time: finished runs stay, the others resume from their last saved
state. plan.py says what the runs are. Runs share the cores, an equal share of threads each, since
small networks gain little from more. A finished run is a line of runs.jsonl, see records.py. How
fast the networks are is measured by speed.py.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import records
import yaml
from plan import ROOT, WORK, Run, runs, select
from tables import PAGE, blocks

from maskattn_kernels.benchmark.pages import fill


def train_one(run: Run) -> None:
    """Train and score a run in this process, and add its results to the table."""
    from maskattn_kernels.benchmark.machine import git_commit, machine_facts
    from maskattn_kernels.segmentation.checkpoints import Checkpoint
    from maskattn_kernels.segmentation.data.digit_scenes import DigitScenes
    from maskattn_kernels.segmentation.scoring.command import evaluate
    from maskattn_kernels.segmentation.training.command import run as run_training
    from maskattn_kernels.segmentation.training.options import parse

    folder = WORK / run.name
    start = time.monotonic()
    resumed = ["--ckpt_path=last"] if (folder / "last.ckpt").exists() else []
    run_training(parse([*run.options, *resumed]))
    checkpoint = Checkpoint.from_pretrained(folder / "final")
    found = {}
    for textures in ("plain", "shifted"):
        scenes = DigitScenes("val", textures=textures, legend="legend" in run.change)
        scores = evaluate(checkpoint, scenes)
        found[textures] = {size: of_size["mean"] for size, of_size in scores.items()}
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    facts = machine_facts()
    records.append(
        {
            "run": run.name,
            "commit": git_commit(ROOT),
            "seed": run.seed,
            "minutes": round((time.monotonic() - start) / 60, 1),
            "machine": {name: facts[name] for name in ("cpu", "threads", "torch")},
            "config": records.differences(config),
            **found,
        }
    )


def train_all(chosen: Sequence[Run], jobs: int) -> int:
    """Train the runs that are not done yet, ``jobs`` at a time; 1 if one of them fails, else 0."""
    finished = records.read()
    todo = [run for run in chosen if run.name not in finished]
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
            record = records.read().get(run.name)
            failed += record is None
            text = f"failed, see {WORK / run.name}.log" if record is None else _in_short(record)
            print(f"[{done}/{len(todo)}] {run.name}  {text}", flush=True)
    return 1 if failed else 0


def _in_short(record: records.Record) -> str:
    mean = record["plain"]["network size"]
    return "  ".join(f"{name} {mean[name]:.1f}" for name in ("mIoU", "PQ", "AP"))


def table(write: bool) -> None:
    """Print all tables, or put them into docs/study.md."""
    if write:
        PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), blocks()), encoding="utf-8")
        print(f"written: {PAGE}")
    else:
        print("\n\n".join(blocks().values()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    several = commands.add_parser("train", help="every run that is not done yet")
    several.add_argument("--only", nargs="+", default=["*"], help="names of runs, or patterns")
    several.add_argument("--jobs", type=int, default=2, help="runs at a time (default 2)")
    commands.add_parser("one", help="a single run").add_argument("name")
    tables = commands.add_parser("table", help="the results as Markdown")
    tables.add_argument("--write", action="store_true", help="into docs/study.md")
    config = commands.add_parser("config", help="the complete config of a finished run, as YAML")
    config.add_argument("name")
    commands.add_parser("list", help="the names of all runs")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    given = parser.parse_args(argv)
    if given.command == "table":
        table(given.write)
        return 0
    if given.command == "list":
        print(*(run.name for run in runs()), sep="\n")
        return 0
    try:
        chosen = select(given.only if given.command == "train" else [given.name])
    except ValueError as error:
        parser.error(str(error))
    if given.command == "train":
        return train_all(chosen, given.jobs)
    run, *others = chosen
    if others:
        parser.error(f"name: expected one run, got a pattern of {len(chosen)}")
    record = records.read().get(run.name)
    if given.command == "one":
        if record is not None:
            parser.error(f"{run.name} is finished; to run it again, delete its line of runs.jsonl")
        train_one(run)
    elif record is None:
        parser.error(f"{run.name} is not finished")
    else:
        print(yaml.safe_dump(records.config_of(record), sort_keys=False), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
