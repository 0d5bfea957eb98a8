# SPDX-License-Identifier: BSD-3-Clause
"""Everything that needs a GPU, in one command of under ten minutes:

    python tools/gpu_check.py --out FOLDER [--steps build,cases,...] [--minutes 9] [--commit HASH]

Most valuable first, so that a cut at any minute leaves what matters most: what is right, then how
fast it is, then what could be wrong in rarer ways, then how it could be faster. Each step is a
process with a limit of its own; the next one starts whatever became of it. FOLDER gets few files:
summary.json (GPU, versions, commit, every step's outcome) and log.txt after every step, the JSON of
a measurement after every row.

Before it, on a machine without a GPU, `python tools/gpu_kernels.py` compiles what the steps will
launch into build/triton; the step "kernels" compiles what is missing there. `--rehearse` walks
through every step without a GPU: tests are collected, kernels of a few calls compiled in front of a
stub of the driver, benchmarks planned.

Needs the repository, torch with CUDA, triton, pytest and pytest-xdist; for the step "build" also
nvcc, cmake and ninja.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / "build" / "triton"
FA4_CACHE = ROOT / "build" / "fa4_kernels"
PYTHON = [sys.executable]
PYTEST = [*PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
GPU_TESTS = ["-m", "gpu"]
MASKATTN = [*PYTHON, "-m", "maskattn_kernels.cli"]
SWEEP = "600"
# The two shapes of the U-Net with the most work, one call forward and backward by each backend.
PROFILED = """
import torch
from maskattn_kernels import masked_attention
for tokens, head_dim in ((16384, 64), (4096, 128)):
    for backend in ("cuda", "triton"):
        qkv = torch.randn(3, 8, 1, tokens, head_dim, device="cuda", dtype=torch.bfloat16)
        q, k, v = (t.requires_grad_() for t in qkv)
        mask = torch.rand(8, tokens, device="cuda") < 0.25
        out = masked_attention(q, k, v, key_mask=mask, query_mask=mask, backend=backend)
        out.backward(torch.ones_like(out))
torch.cuda.synchronize()
"""
FACTS = """
import ctypes, importlib.metadata, importlib.util, json, platform
import torch
found = {"python": platform.python_version(), "torch": torch.__version__}
found["cuda"] = torch.version.cuda
if any(importlib.metadata.distributions(name="flash-attn-4")):
    found["flash-attn-4"] = importlib.metadata.version("flash-attn-4")
if importlib.util.find_spec("triton"):
    import triton
    found["triton"] = triton.__version__
if torch.version.cuda and torch.cuda.is_available():
    facts = torch.cuda.get_device_properties(0)
    found |= {"gpu": facts.name, "arch": f"sm_{facts.major}{facts.minor}"}
    found |= {"processors": facts.multi_processor_count, "bytes": facts.total_memory}
    driver = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(driver))
    found["driver"] = driver.value
print(json.dumps(found))
"""


class Step(NamedTuple):
    """A process, and what stands for it in a rehearsal."""

    name: str
    seconds: int  # at most
    command: list[str]
    rehearsal: list[str]
    environment: Mapping[str, str] = MappingProxyType({})
    needs_nvcc: bool = False


def stages(out: Path, arch: str) -> list[list[Step]]:
    """The steps in their order; those of a stage run at the same time."""
    sanitizer = ["compute-sanitizer", "--error-exitcode", "9", "--tool"]
    sections = ("SpeedOfLight", "Occupancy", "WarpStateStats", "MemoryWorkloadAnalysis")
    profiler = ["ncu", "--kernel-name", "regex:(fwd|dq|dkdv)", "--clock-control", "none"]
    profiler += [word for section in sections for word in ("--section", section)]
    bench = [*MASKATTN, "bench", "--dtype", "bfloat16", "--no-plots", "--out", str(out)]
    kernels = [*PYTHON, "tools/gpu_kernels.py", "--arch", arch]
    forward = [*PYTHON, "bench/gpu_forward.py"]

    def tests(
        name: str, seconds: int, *words: str, environment: dict[str, str] | None = None,
        before: Sequence[str] = (), processes: int = 12,
    ) -> Step:  # fmt: skip
        command = [*PYTEST, *GPU_TESTS, *words]
        rehearsal = [*command, "-p", "pretend_gpu", "--collect-only"]
        if processes > 1:
            command += ["-n", str(processes)]
        return Step(name, seconds, [*before, *command], rehearsal, environment or {})

    def measured(name: str, seconds: int, *words: str, more: Sequence[str] = ()) -> Step:
        return Step(name, seconds, [*bench, *words, *more], [*bench, *words, "--plan"])

    few = ["tests/ops/test_masked_attention.py", "-k", "n65"]
    rest = [f"tests/{folder}" for folder in ("ops", "nn", "kernels")]
    done = ("ops/test_masked_attention", "ops/test_sweep")
    done += tuple(f"kernels/test_{name}" for name in ("gpu", "fa4", "cute_results"))
    rest += [f"--ignore=tests/{name}.py" for name in done]
    build = [*PYTHON, *"-m pip install -q --no-build-isolation --no-deps -e .".split()]
    one_call = ["--cache", str(CACHE.parent / "rehearsal"), "--processes", "1", "--calls", "1"]
    return [
        [
            Step("build", 300, build, [*build, "--dry-run"], {"MASKATTN_BUILD": "cuda"}, True),
            Step(
                "kernels", 120, [*kernels, "--only", "bench"],
                [*kernels, *one_call, "--only", "bench"],
            ),
        ],
        [
            tests("cases", 200, "tests/ops/test_masked_attention.py", processes=6),
            tests("gpu", 200, "tests/kernels/test_gpu.py", processes=4),
            tests("rest", 200, *rest, processes=6),
            tests(
                "sweep", 200, "tests/ops/test_sweep.py", processes=8,
                environment={"MASKATTN_SWEEP": SWEEP},
            ),
            tests("fa4", 200, "tests/kernels/test_fa4.py", processes=4),
            tests("cute", 120, "tests/kernels/test_cute_results.py", processes=2),
        ],
        [measured("small", 250, "--device", "cuda", "--grid", "small")],
        [Step("forward", 60, [*forward, "--out", str(out / "kernels.json")], [*forward, "--help"])],
        [tests("memcheck", 90, *few, before=[*sanitizer, "memcheck"], processes=1)],
        [tests("racecheck", 90, *few, before=[*sanitizer, "racecheck"], processes=1)],
        [Step("candidates", 200, [*kernels, "--only", "tiles"], [*kernels, "--help"])],
        [measured("tune", 200, "--tune", more=["--tiles", str(CACHE / "tiles.json")])],
        [Step("ncu", 120, [*profiler, *PYTHON, "-c", PROFILED], [*PYTHON, "-c", ""])],
        [measured("full", 580, "--device", "cuda", "--grid", "full")],
    ]  # fmt: skip


DEFAULT = (
    "build,kernels,cases,gpu,rest,sweep,fa4,cute,small,forward,memcheck,racecheck,candidates,tune"
)


def versions() -> dict[str, object]:
    """The GPU and the software around it; ``nvcc`` and ``driver`` as numbers like 13.0."""
    run = subprocess.run([*PYTHON, "-c", FACTS], capture_output=True, text=True, cwd=ROOT)
    if run.returncode:
        return {"error": (run.stderr.strip().splitlines() or ["no torch"])[-1]}
    found = json.loads(run.stdout.splitlines()[-1])
    if number := found.pop("driver", None):
        found["driver"] = f"{number // 1000}.{number % 1000 // 10}"
    nvcc = shutil.which(os.environ.get("CUDACXX", "nvcc"))
    said = (
        subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout if nvcc else ""
    )
    if number := re.search(r"release (\d+\.\d+)", said):
        found["nvcc"] = number[1]
    return found


def misfit(found: dict[str, object]) -> str:
    """Why nothing can run with these versions; empty when it can."""
    if "error" in found:
        return f"torch: expected one that can be imported, got {found['error']}"
    if tuple(map(int, str(found["torch"]).split(".")[:2])) < (2, 11):
        return f"torch: expected 2.11 or later, got {found['torch']}"
    if not found.get("cuda"):
        return f"torch: expected one that is built with CUDA, got {found['torch']}"
    if "gpu" not in found:
        return f"GPU: expected one that torch {found['torch']} sees, got none; nvidia-smi says more"
    if _major(found["driver"]) < _major(found["cuda"]):
        return f"driver: expected CUDA {found['cuda']} as torch, got {found['driver']}"
    return ""


def nvcc_misfit(found: dict[str, object]) -> str:
    """Why the CUDA library is not built with this nvcc; empty when it can be."""
    if "nvcc" not in found:
        return "nvcc: expected one of torch's CUDA, got none"
    if _major(found["nvcc"]) != _major(found["cuda"]):
        return f"nvcc: expected CUDA {found['cuda']} as torch, got {found['nvcc']}"
    return ""


def _major(version: object) -> int:
    return int(str(version).split(".")[0])


def run(step: Step, command: list[str], limit: float, log: Path) -> dict[str, object]:
    """One step: its exit status (124 where it ran too long), seconds, and the end of its log."""
    if shutil.which(command[0]) is None:
        return {"step": step.name, "status": None, "why": f"{command[0]} is not installed"}
    start = time.monotonic()
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests" / "support")))
    more = {"PYTHONUNBUFFERED": "1", "PYTHONPATH": paths, "TRITON_CACHE_DIR": str(CACHE)}
    more["FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED"] = "1"
    more["FLASH_ATTENTION_CUTE_DSL_CACHE_DIR"] = str(FA4_CACHE)
    with log.open("wb") as stream:
        try:
            status = subprocess.run(
                command,
                cwd=ROOT,
                env={**os.environ, **more, **step.environment},
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=limit,
            ).returncode
        except subprocess.TimeoutExpired:
            status = 124
    text = log.read_text(errors="replace")
    seconds = round(time.monotonic() - start, 1)
    result: dict[str, object] = {"step": step.name, "status": status, "seconds": seconds}
    if counts := re.findall(r"(\d+) (passed|failed|errors?|skipped)", text[-300:]):
        result["tests"] = {word: int(number) for number, word in counts}
    elif seen := progress(text):
        result["tests"] = seen
    if collected := re.search(r"^(\d+)(?:/\d+)? tests? collected", text, re.MULTILINE):
        result["collected"] = int(collected[1])
    return result | {"end": text.splitlines()[-3:]}


def progress(text: str) -> dict[str, int]:
    """How many tests pytest had marked before it was cut, by outcome."""
    lines = re.findall(r"^([.sFE]+)(?:\s+\[ *\d+%\])?$", text, re.MULTILINE)
    words = {"F": "failed", "E": "errors", ".": "passed", "s": "skipped"}
    counts = {word: "".join(lines).count(mark) for mark, word in words.items()}
    return {word: count for word, count in counts.items() if count}


class Report:
    """FOLDER: what is there after every step."""

    def __init__(self, folder: Path, facts: dict[str, object]) -> None:
        self.folder, self.facts = folder, facts
        self.results: list[dict[str, object]] = []
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "log.txt").write_text("")

    def log(self, step: str) -> Path:
        """Where a step writes while it runs."""
        return self.folder / f"{step}.log"

    def add(self, result: dict[str, object]) -> None:
        self.results.append(result)
        print(json.dumps(result, indent=1), flush=True)
        log = self.log(str(result["step"]))
        if log.exists():
            with (self.folder / "log.txt").open("a") as whole:
                whole.write(f"\n=== {result['step']}\n{log.read_text(errors='replace')}")
            log.unlink()
        summary = {**self.facts, "steps": self.results}
        (self.folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")


def commit() -> str:
    """The commit of this checkout, or an empty string where it is none."""
    said = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    return said.stdout.strip()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for the results")
    add("--steps", default=DEFAULT, help=f"default {DEFAULT}; also ncu, full")
    add("--minutes", type=float, default=9.0, help="for all steps together (default 9)")
    add("--commit", help="what is checked, where the files come without git")
    add("--rehearse", action="store_true", help="walk through the steps without a GPU")
    given = parser.parse_args(argv)
    found = versions()
    facts = {"commit": given.commit or commit(), "rehearsal": given.rehearse, **found}
    report = Report(given.out, facts)
    wrong = "" if given.rehearse else misfit(found)
    if wrong:
        print(f"gpu_check: {wrong}", file=sys.stderr)
        return 2
    end = time.monotonic() + 60 * given.minutes
    plan = stages(given.out.resolve(), str(found.get("arch", "sm_90")))
    wanted, known = given.steps.split(","), [step.name for stage in plan for step in stage]
    if unknown := [name for name in wanted if name not in known]:
        parser.error(f"--steps: expected some of {','.join(known)}, got {','.join(unknown)}")

    def attempt(step: Step) -> dict[str, object]:
        if step.needs_nvcc and not given.rehearse and (why := nvcc_misfit(found)):
            return {"step": step.name, "status": None, "why": why}
        left = end - time.monotonic()
        if left < 10:
            return {"step": step.name, "status": None, "why": "no time left"}
        command = step.rehearsal if given.rehearse else step.command
        return run(step, command, min(step.seconds, left), report.log(step.name))

    for stage in plan:
        with ThreadPoolExecutor(len(stage)) as pool:
            for result in pool.map(attempt, [step for step in stage if step.name in wanted]):
                report.add(result)
    return 0 if all(result["status"] == 0 for result in report.results) else 1


if __name__ == "__main__":
    sys.exit(main())
