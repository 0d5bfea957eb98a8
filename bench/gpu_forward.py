# SPDX-License-Identifier: BSD-3-Clause
"""The forward kernels of all GPU backends against each other, and what a call costs the host.

    python bench/gpu_forward.py [--out JSON]

For each shape: microseconds of the GPU (the call as a CUDA graph) and of the whole call without
gradients, and how far each answer is from that of the first backend. "cute" is the backend `cuda`
with the kernels in CuTe-DSL. Then microseconds of the host for a training call, its forward and its
backward pass apart, the GPU being idle before each.
"""

import argparse
import datetime
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskattn_kernels import masked_attention
from maskattn_kernels.benchmark.cases import Case, make_inputs
from maskattn_kernels.benchmark.machine import machine_facts
from maskattn_kernels.benchmark.rows import save
from maskattn_kernels.benchmark.timing import captured, race
from maskattn_kernels.common.text import first_line

RESULTS = Path(__file__).resolve().parent / "results"
SECONDS, REPEATS = 0.3, 50
#: (N, D, mask, keep) of the forward calls, eight images each, in bfloat16.
SHAPES = (
    (16384, 64, "k", 0.25), (16384, 64, "qk", 0.25), (4096, 64, "k", 0.25), (4096, 64, "qk", 0.25),
    (4096, 128, "k", 0.25), (4096, 128, "qk", 0.25), (1024, 256, "k", 0.25), (16384, 128, "k", 0.5),
)  # fmt: skip
TRAINED = ((1024, 128), (4096, 64))
BACKENDS = {"triton": "triton", "cuda": "cuda", "cute": "cuda", "fa4": "fa4"}
CUTE = "MASKATTN_CUDA_CUTE"


def forward_calls(case: Case, backends: Mapping[str, str]) -> dict[str, Callable[[], Tensor]]:
    """A call of each backend without gradients, by its name here."""
    x = make_inputs(case)

    def call(name: str) -> Tensor:
        os.environ[CUTE] = str(int(name == "cute"))
        with torch.no_grad():
            return masked_attention(
                x.query.detach(), x.key.detach(), x.value.detach(), key_mask=x.mask,
                query_mask=x.mask if case.mode == "qk" else None, backend=backends[name],
            )  # fmt: skip

    return {name: (lambda name=name: call(name)) for name in backends}


def forward_row(case: Case, backends: Mapping[str, str] = BACKENDS) -> dict[str, Any]:
    """Microseconds of each backend that runs the case, or why it does not."""
    row: dict[str, Any] = {}
    calls, runs = forward_calls(case, backends), {}
    right = next(iter(calls.values()))().float()
    for name, call in calls.items():
        try:
            row[name] = {"differs": float((call().float() - right).abs().max())}
        except (NotImplementedError, RuntimeError) as error:
            row[name] = first_line(error)[:120]
            continue
        runs[name] = captured(call) if case.device == "cuda" else call
    on_gpu = race(runs, SECONDS, device=case.device)
    whole = race({name: calls[name] for name in runs}, SECONDS, device=case.device)
    for name in runs:
        row[name]["gpu"] = round(on_gpu.timing(name).median * 1e6, 1)
        row[name]["call"] = round(whole.timing(name).median * 1e6, 1)
    os.environ.pop(CUTE, None)
    return row


def host_row(case: Case, backends: Sequence[str] = ("triton", "cuda")) -> dict[str, Any]:
    """Microseconds until each pass of a training call is launched, beside those of SDPA."""
    x = make_inputs(case)
    qkv, mask = [t.detach().requires_grad_() for t in (x.query, x.key, x.value)], x.mask
    ways: dict[str, Callable[[], Tensor]] = {
        name: (lambda b=name: masked_attention(*qkv, key_mask=mask, query_mask=mask, backend=b))
        for name in backends
    }
    ways["masked SDPA"] = lambda: F.scaled_dot_product_attention(
        *qkv, attn_mask=mask[:, None, None]
    )
    ways["dense SDPA"] = lambda: F.scaled_dot_product_attention(*qkv)
    wait = torch.cuda.synchronize if case.device == "cuda" else (lambda: None)

    def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
        wait()
        start = time.perf_counter()
        result = call()
        return time.perf_counter() - start, result

    found = {}
    for name, way in ways.items():
        dout = torch.randn_like(way())
        samples: dict[str, list[float]] = {"forward": [], "backward": []}
        for _ in range(REPEATS):
            took, out = seconds(way)
            samples["forward"].append(took)
            took, _ = seconds(partial(torch.autograd.grad, out, qkv, dout))
            samples["backward"].append(took)
        found[name] = {p: round(statistics.median(s) * 1e6, 1) for p, s in samples.items()}
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="default bench/results/DATE-GPU-kernels.json")
    given = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("needs an NVIDIA GPU, and torch finds none")
    facts = machine_facts("cuda")
    now, gpu = datetime.datetime.now().astimezone(), facts["gpu"].replace(" ", "-")
    out = given.out or RESULTS / f"{now:%Y%m%d-%H%M%S}-{gpu}-kernels.json"
    found: dict[str, Any] = {"machine": facts, "forward_us": {}, "host_us": {}}
    usual = Case(1024, 64, 8, "qk", 0.25, "bfloat16", "forward", "cuda")
    for tokens, head_dim, mode, keep in SHAPES:
        case = replace(usual, tokens=tokens, head_dim=head_dim, mode=mode, keep=keep)
        found["forward_us"][case.name] = row = forward_row(case)
        print(case.name, json.dumps(row), flush=True)
        save(found, out)
    for tokens, head_dim in TRAINED:
        case = replace(usual, tokens=tokens, head_dim=head_dim)
        found["host_us"][case.name] = row = host_row(case)
        print(case.name, json.dumps(row), flush=True)
        save(found, out)
    print(f"written: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
