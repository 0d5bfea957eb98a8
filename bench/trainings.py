# SPDX-License-Identifier: BSD-3-Clause
"""Many trainings and a table of their results: what the studies in the folders beside it share.

A study is a list of runs. `train` trains those that its table lacks, some at a time; it can be
stopped at any time: finished runs stay, the others resume from their last saved state. A finished
run is a line of the table, ``runs.jsonl``: its name, its commit, its seed, the minutes that
training and scoring took, the machine, and what the study says of it.
"""

import argparse
import fnmatch
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from maskattn_kernels.benchmark.pages import fill

ROOT = Path(__file__).resolve().parents[1]

Record = dict[str, Any]


class Run(Protocol):
    """One training.

    Attributes:
        name: of its line and its folder.
        seed: of weights, order and draws.
        options: arguments of ``maskattn train``, without the folder.
        needs: names of runs that must be finished before, as their checkpoints are used.
    """

    @property
    def name(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def options(self) -> list[str]: ...
    @property
    def needs(self) -> tuple[str, ...]: ...


class Table:
    """The finished runs: a file with a line of JSON for each."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def read(self) -> dict[str, Record]:
        """The finished runs by name, in the order of the file."""
        if not self.file.exists():
            return {}
        lines = self.file.read_text(encoding="utf-8").splitlines()
        return {record["run"]: record for record in map(json.loads, lines)}

    def append(self, record: Record) -> None:
        """Add a finished run, by one write to the end of the file: processes may add at once."""
        with open(self.file, "a", encoding="utf-8") as table:
            table.write(json.dumps(record) + "\n")


@dataclass(frozen=True)
class Study:
    """What a study is made of.

    Attributes:
        name: of its module, ``python -m NAME``, and of the folder of its checkpoints under out/.
        runs: in the order in which they are trained.
        table: of finished runs.
        told: from a run and the folder of its training to what else its line holds.
        summary: of a finished run in a few words.
        page: a page of the documentation with the study's tables.
        blocks: the tables by the name of their block of the page.
        prepare: called with a run before its training; None = nothing is to be prepared.
    """

    name: str
    runs: Sequence[Run]
    table: Table
    told: Callable[[Any, Path], Record]
    summary: Callable[[Record], str]
    page: Path
    blocks: Callable[[], dict[str, str]]
    prepare: Callable[[Any], None] | None = None

    @property
    def work(self) -> Path:
        """Folder of checkpoints and saved states."""
        return ROOT / "out" / self.name.rpartition(".")[2]

    def select(self, patterns: Sequence[str]) -> list[Run]:
        """The runs that match at least one pattern, in their order.

        Raises:
            ValueError: a pattern matches no run.
        """
        chosen = set()
        for pattern in patterns:
            found = {run.name for run in self.runs if fnmatch.fnmatchcase(run.name, pattern)}
            if not found:
                hint = f"`python -m {self.name} list` prints all names"
                raise ValueError(f"no run is called {pattern}; {hint}")
            chosen |= found
        return [run for run in self.runs if run.name in chosen]

    def train_one(self, run: Run) -> None:
        """Train and score a run in this process, and add its line to the table."""
        from maskattn_kernels.benchmark.machine import machine_facts
        from maskattn_kernels.common.commit import git_commit
        from maskattn_kernels.segmentation.training.command import run as run_training
        from maskattn_kernels.segmentation.training.options import parse

        folder = self.work / run.name
        start = time.monotonic()
        if self.prepare is not None:
            self.prepare(run)
        resumed = ["--ckpt_path=last"] if (folder / "last.ckpt").exists() else []
        run_training(parse([*run.options, f"--out={folder}", *resumed]))
        facts = machine_facts()
        common = {
            "run": run.name,
            "commit": git_commit(ROOT),
            "seed": run.seed,
            "minutes": 0.0,
            "machine": {name: facts[name] for name in ("cpu", "threads", "torch")},
        }
        told = self.told(run, folder)
        minutes = round((time.monotonic() - start) / 60, 1)
        self.table.append({**common, "minutes": minutes, **told})

    def train_all(self, chosen: Sequence[Run], jobs: int) -> int:
        """Train the runs that are not done yet, ``jobs`` at a time; 1 if one of them fails, else 0.

        Runs share the cores, an equal share of threads each: small networks gain little from more.
        """
        finished = set(self.table.read())
        waiting = [run for run in chosen if run.name not in finished]
        count, done, failed = len(waiting), 0, set()
        self.work.mkdir(parents=True, exist_ok=True)
        running: dict[Any, Run] = {}
        with ThreadPoolExecutor(jobs) as pool:
            while waiting or running:
                ready = [run for run in waiting if finished.issuperset(run.needs)]
                for run in ready[: jobs - len(running)]:
                    waiting.remove(run)
                    running[pool.submit(self._in_a_process, run, jobs)] = run
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    run, done = running.pop(future), done + 1
                    record = self.table.read().get(run.name)
                    log = self.work / f"{run.name}.log"
                    text = f"failed, see {log}" if record is None else self.summary(record)
                    (failed if record is None else finished).add(run.name)
                    print(f"[{done}/{count}] {run.name}  {text}", flush=True)
        for run in waiting:
            lacking = sorted(set(run.needs) - finished)
            print(f"not begun: {run.name}, which needs {', '.join(lacking)}", flush=True)
        return 1 if failed or waiting else 0

    def _in_a_process(self, run: Run, jobs: int) -> int:
        threads = max(1, len(os.sched_getaffinity(0)) // jobs)
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, "-m", self.name, "one", run.name]
        with open(self.work / f"{run.name}.log", "a", encoding="utf-8") as log:
            return subprocess.run(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log
            ).returncode


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds; a single value alone."""
    if len(values) < 2:
        return f"{values[0]:.1f}" if values else "-"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def spread_above(values: Mapping[int, float], base: Mapping[int, float]) -> str:
    """How far values are above others with the same seed: mean and standard deviation."""
    return spread([values[seed] - base[seed] for seed in values if seed in base])


def parser_of(study: Study, description: str) -> tuple[argparse.ArgumentParser, Any]:
    """The command line of a study, and its commands, to which a study may add its own."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    several = commands.add_parser("train", help="every run that is not done yet")
    several.add_argument("--only", nargs="+", default=["*"], help="names of runs, or patterns")
    several.add_argument("--jobs", type=int, default=2, help="runs at a time (default 2)")
    commands.add_parser("one", help="a single run").add_argument("name")
    tables = commands.add_parser("table", help="the results as Markdown")
    tables.add_argument("--write", action="store_true", help=f"into docs/{study.page.name}")
    commands.add_parser("list", help="the names of all runs")
    return parser, commands


def command_line(study: Study, description: str) -> int:
    """The whole command of a study that has no commands of its own; its exit status."""
    parser, _ = parser_of(study, description)
    given = parser.parse_args()
    try:
        return execute(study, given)
    except ValueError as error:
        parser.error(str(error))


def execute(study: Study, given: argparse.Namespace) -> int:
    """Run a command that all studies have.

    Raises:
        ValueError: there is no such run, or it is finished.
    """
    if given.command == "table":
        if given.write:
            page = study.page.read_text(encoding="utf-8")
            study.page.write_text(fill(page, study.blocks()), encoding="utf-8")
            print(f"written: {study.page}")
        else:
            print("\n\n".join(study.blocks().values()))
    elif given.command == "list":
        print(*(run.name for run in study.runs), sep="\n")
    elif given.command == "train":
        return study.train_all(study.select(given.only), given.jobs)
    else:
        run, *others = study.select([given.name])
        if others:
            raise ValueError(f"name: expected one run, got a pattern of {len(others) + 1}")
        if run.name in study.table.read():
            file = study.table.file.name
            raise ValueError(f"{run.name} is finished; to run it again, delete its line of {file}")
        study.train_one(run)
    return 0
