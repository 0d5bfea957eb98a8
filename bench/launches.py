# SPDX-License-Identifier: BSD-3-Clause
"""What a call of the Triton backend costs the host, without a GPU.

python bench/launches.py              a JSON into bench/results/

Triton's launcher runs in front of a stub of the driver, on CPU tensors: from the op to the launch,
with the allocation of results, without what the driver and the dispatcher add. Seconds of the
thread, the least of many repeats; a machine with other load gives the same within a few percent.
"""

import argparse
import ctypes
import datetime
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from stub_driver import launches, using  # noqa: E402

from maskattn_kernels.benchmark.machine import machine_facts  # noqa: E402
from maskattn_kernels.benchmark.rows import save  # noqa: E402

RESULTS = ROOT / "bench" / "results"
REPEATS, CALLS = 15, 200


def keep_memory() -> None:
    """Lets the allocator of the CPU keep what is given back to it, as that of a GPU does."""
    libc, trim_threshold, most_mappings = ctypes.CDLL(None), -1, -4
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(most_mappings, 0)


def least(call: Callable[[], object]) -> float:
    """Seconds of the thread for one call."""
    best = float("inf")
    for _ in range(REPEATS):
        start = time.thread_time()
        for _ in range(CALLS):
            call()
        best = min(best, (time.thread_time() - start) / CALLS)
    return best


def measure(arch: str) -> dict[str, dict[str, float]]:
    """Seconds and launches of each kind of call: 8 images, keys and queries masked, bfloat16."""
    from maskattn_kernels.backends import triton_launch as ops

    found = {}
    with using(arch) as library, torch.no_grad():

        def note(name: str, call: Callable[[], object]) -> None:
            call()
            library.stub_forget()
            call()
            count = len(launches(library))
            found[name] = {"seconds": least(call), "launches": count}

        for tokens, batch in ((256, 8), (1024, 8), (16384, 1)):
            q, k, v = torch.randn(3, batch, 1, tokens, 64).bfloat16().unbind()
            mask = torch.rand(batch, 1, tokens) < 0.25
            index = ops.select_tokens(mask)
            out, lse = ops.fwd(q, k, v, *index, *index, None, 0.125)
            dout = torch.randn_like(out)
            label = f"N{tokens}-B{batch}"
            note(f"select_tokens {label}", lambda m=mask: ops.select_tokens(m))
            qkv, both = (q, k, v), (*index, *index, None, 0.125)
            note(f"fwd {label}", lambda a=(*qkv, *both): ops.fwd(*a))
            note(f"bwd {label}", lambda a=(dout, None, *qkv, out, lse, *both): ops.bwd(*a))
            note(f"infer {label}", lambda a=(*qkv, mask, mask, None, 0.125): ops.infer(*a))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", default="sm_90", help="of the stub; default sm_90")
    parser.add_argument("--out", type=Path, help="default bench/results/DATE-launches.json")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    keep_memory()
    now = datetime.datetime.now().astimezone()
    out = given.out or RESULTS / f"{now:%Y%m%d-%H%M%S}-launches.json"
    calls = measure(given.arch)
    found = {"machine": machine_facts(), "arch": given.arch, "calls": calls}
    save(found, out)
    for name, row in calls.items():
        print(f"{name:26} {row['launches']} launches {row['seconds'] * 1e6:6.1f} us")
    print(f"written: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
