# SPDX-License-Identifier: BSD-3-Clause
"""The runs of the study: networks, what else changes from base.yaml, seeds.

Networks with masks are named selector-sparsity-keep, as ``maskattn train`` has these options:
"gumbel-topk-q+k-0.25" is ``--network.selector=gumbel-topk --network.sparsity=q+k
--network.keep=0.25``. "dense" attends to all tokens; "identity" has no attention products.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
SEEDS = (0, 1, 2)
KEEPS = (0.5, 0.25, 0.1)
LABELLED = (10, 30, 100)  # "all" is the run without a limit

MASKED = (
    ("random", "k", 0.25),
    ("random", "qk", 0.25),
    ("random", "qk", 0.1),
    *(("local", sparsity, keep) for sparsity in ("k", "qk") for keep in KEEPS),
    ("topk", "qk", 0.25),
    ("gumbel-topk", "q+k", 0.25),
    ("gumbel-topk", "q+k", 0.1),
    ("gumbel-topk", "qk", 0.1),
    ("topk", "q+k", 0.1),
)
#: The learning rate of mask heads as a multiple of the rest's. Some runs date from before the
#: product had this option, when it was 1; they keep it.
SLOW = "--optimizer.mask_rate=1"
FAST = "--optimizer.mask_rate=10"


def options_of(selector: str, sparsity: str, keep: float) -> tuple[str, ...]:
    """Options of ``maskattn train`` of a network with masks."""
    chosen = (f"--network.selector={selector}", f"--network.sparsity={sparsity}")
    slow = selector == "local" or (selector, sparsity) == ("topk", "qk")
    return (*chosen, f"--network.keep={keep}", *((SLOW,) if slow else ()))


#: Options of ``maskattn train`` by the name of the network.
NETWORKS: dict[str, tuple[str, ...]] = {
    "identity": ("--network.selector=none", "--network.core=identity"),
    "dense": ("--network.selector=none",),
    **{"-".join(map(str, network)): options_of(*network) for network in MASKED},
}
# Without augmentation, which slows the learning of legends, and 600 steps see a scene twice.
LEGEND = ("--data.options={legend: true}", "--data.augment=false")
#: Options of ``maskattn train`` by the name of what changes beside the network.
CHANGES: dict[str, tuple[str, ...]] = {
    "": (),
    "legend": LEGEND,
    "legend-fast": (*LEGEND, FAST),
    **{f"{count}-labelled": (f"--data.limit={count}",) for count in LABELLED},
    "adamw": ("--optimizer.name=adamw",),
}
WITH_LEGEND = (
    "identity",
    "dense",
    *(f"{m}-{keep}" for keep in (0.25, 0.1) for m in ("random-qk", "local-qk", "gumbel-topk-q+k")),
)
#: What "gumbel-topk-q+k-0.1" is without one or the other of its two ideas; with a legend only.
HALVES = ("gumbel-topk-qk-0.1", "topk-q+k-0.1")
WITHOUT_LEGEND = tuple(network for network in NETWORKS if network not in HALVES)
LOCAL = "local-qk-0.25"
FEW_LABELS = ("identity", LOCAL)


@dataclass(frozen=True)
class Run:
    """One training."""

    network: str
    seed: int
    change: str = ""

    @property
    def name(self) -> str:
        change = f"-{self.change}" if self.change else ""
        return f"{self.network}{change}-seed{self.seed}"

    @property
    def options(self) -> list[str]:
        """Arguments of ``maskattn train``."""
        given = ["--config", str(HERE / "base.yaml"), *NETWORKS[self.network]]
        return [*given, *CHANGES[self.change], f"--seed={self.seed}"]

    @property
    def needs(self) -> tuple[str, ...]:
        """No run starts from another."""
        return ()


def runs() -> Iterator[Run]:
    """All runs, seed by seed: a study that is stopped early has every network once."""
    for seed in SEEDS:
        yield from (Run(network, seed) for network in WITHOUT_LEGEND)
        yield from (Run(network, seed, "legend") for network in (*WITH_LEGEND, *HALVES))
        yield Run(LOCAL, seed, "legend-fast")
    for seed in SEEDS:
        yield from (Run(net, seed, f"{n}-labelled") for net in FEW_LABELS for n in LABELLED)
        yield Run("identity", seed, "adamw")
