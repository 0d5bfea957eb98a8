# SPDX-License-Identifier: BSD-3-Clause
"""Everything that needs a GPU, in one command of under ten minutes:

    python tools/gpu_check.py --out FOLDER [--steps tests,sweep,...] [--minutes 9]

Each step is a process with a limit of its own; the next one starts whatever became of it. Logs,
measurements and summary.json lie in FOLDER as soon as they exist. Needs the repository, torch with
CUDA, triton, pytest and pytest-xdist; for the step "build" also nvcc, cmake and ninja.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

DEFAULT = "build,info,tests,gpu,sweep,memcheck,racecheck,small"
ROOT = Path(__file__).resolve().parents[1]
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
MASKATTN = [sys.executable, "-m", "maskattn_kernels.cli"]
SMALL_CASES = ["-k", "cuda and n65", "tests/ops/test_masked_attention.py"]
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


def steps(out: Path) -> dict[str, tuple[int, list[str], dict[str, str]]]:
    """Name -> (seconds at most, command, environment)."""
    sanitizer = ["compute-sanitizer", "--error-exitcode", "9", "--tool"]
    sections = ("SpeedOfLight", "Occupancy", "WarpStateStats", "MemoryWorkloadAnalysis")
    profiler = ["ncu", "--log-file", str(out / "ncu.txt"), "--kernel-name", "regex:(fwd|dq|dkdv)"]
    profiler += [word for section in sections for word in ("--section", section)]
    bench = [*MASKATTN, "bench", "--device", "cuda", "--out", str(out)]
    return {
        "build": (
            300,
            [sys.executable, *"-m pip install -q --no-build-isolation --no-deps -e .".split()],
            {"MASKATTN_BUILD": "cuda"},
        ),
        "info": (60, [*MASKATTN, "info"], {}),
        "tests": (200, [*PYTEST, "-n", "8", "-k", "cuda", "tests"], {}),
        "gpu": (120, [*PYTEST, "tests/kernels/test_gpu.py"], {}),
        "sweep": (
            150,
            [*PYTEST, "-n", "12", "-k", "cuda", "tests/ops/test_sweep.py"],
            {"MASKATTN_SWEEP": "3000"},
        ),
        "memcheck": (120, [*sanitizer, "memcheck", *PYTEST, *SMALL_CASES], {}),
        "racecheck": (120, [*sanitizer, "racecheck", *PYTEST, *SMALL_CASES], {}),
        "ncu": (120, [*profiler, sys.executable, "-c", PROFILED], {}),
        "small": (300, [*bench, "--grid", "small", "--dtype", "bfloat16"], {}),
        "full": (580, [*bench, "--grid", "full", "--dtype", "bfloat16"], {}),
        "tune": (580, [*MASKATTN, "bench", "--tune", "--dtype", "bfloat16"], {}),
    }


def run(name: str, limit: float, command: list[str], extra: dict[str, str], out: Path) -> dict:
    """One step: its exit status (124 where it ran too long), seconds, and the end of its log."""
    if shutil.which(command[0]) is None:
        return {"step": name, "status": None, "why": f"{command[0]} is not installed"}
    log, start = out / f"{name}.log", time.monotonic()
    with log.open("wb") as stream:
        try:
            status = subprocess.run(
                command,
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT), **extra},
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=limit,
            ).returncode
        except subprocess.TimeoutExpired:
            status = 124
    lines = log.read_text(errors="replace").splitlines()
    seconds = round(time.monotonic() - start, 1)
    return {"step": name, "status": status, "seconds": seconds, "end": lines[-3:]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for logs and measurements")
    parser.add_argument("--steps", default=DEFAULT)
    parser.add_argument("--minutes", type=float, default=9.0, help="for all steps together")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    known = steps(arguments.out)
    names = arguments.steps.split(",")
    if unknown := [name for name in names if name not in known]:
        parser.error(f"--steps: expected some of {','.join(known)}, got {','.join(unknown)}")
    end, results = time.monotonic() + 60 * arguments.minutes, []
    for name in names:
        limit, command, environment = known[name]
        left = end - time.monotonic()
        if left < 10:
            results.append({"step": name, "status": None, "why": "no time left"})
        else:
            results.append(run(name, min(limit, left), command, environment, arguments.out))
        print(json.dumps(results[-1], indent=1), flush=True)
        (arguments.out / "summary.json").write_text(json.dumps(results, indent=1) + "\n")
    return 0 if all(result["status"] == 0 for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
