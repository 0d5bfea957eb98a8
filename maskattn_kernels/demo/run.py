# SPDX-License-Identifier: BSD-3-Clause
"""The demo from start to end: photographs, networks, comparison, measurements, training, page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from maskattn_kernels.benchmark.machine import machine_facts
from maskattn_kernels.benchmark.memory import in_fresh_process
from maskattn_kernels.benchmark.network import ACCURACY, KEEP, network_memory
from maskattn_kernels.demo import compare, nuclei, page, photographs, pictures, training

Row = dict[str, Any]
#: Called with (number of the step, number of steps, what was done).
Progress = Callable[[int, int, str], None]

#: Keep ratios of the chart of whole forwards; `KEEP` is one of them.
CHART_KEEPS = (0.1, 0.25, 0.5, 0.75, 1.0)
#: Seconds for the race of whole forwards, and for each layer.
FORWARD_SECONDS, LAYER_SECONDS = 12.0, 1.0
#: Which core of `network_memory` each network has.
CORES = {"dense": "dense", "swapped": "sparse", "bare": "identity"}


def sizes_of(network: Any, side: int) -> dict[str, tuple[int, int]]:
    """Height and width of each attention layer for a square image whose side the depth divides."""
    depth = len(network.scales) // 2
    down = [side >> level for level in range(1, depth + 1)]
    up = [side >> level for level in range(depth - 1, -1, -1)]
    return {name: (s, s) for name, s in zip(network.scales, down + up, strict=True)}


def picture_card(
    photo: photographs.Photograph, masks: dict[str, Tensor], row: Row, found: Any
) -> str:
    """The pictures of one photograph."""
    by_size = {mask.shape[-1]: mask for mask in masks.values()}
    strip = [
        (pictures.picture(photo.pixels), "photograph"),
        *(
            (pictures.masked_picture(photo.pixels, by_size[side]), f"mask, {side} x {side}")
            for side in sorted(by_size, reverse=True)
        ),
        (pictures.class_picture(found.dense), "output, dense"),
        (pictures.class_picture(found.swapped), "output, swapped"),
        (pictures.difference_picture(found.dense, found.swapped, row["largest"]), "difference"),
    ]
    return page.card(photo.name, f"largest difference {row['largest']:.1e}", strip)


def agreement_row(name: str, found: compare.Agreement) -> Row:
    """The numbers of a comparison."""
    difference = (found.dense - found.swapped).norm() / found.dense.norm()
    return {
        "name": name,
        "dense_error": found.dense_error,
        "swapped_error": found.swapped_error,
        "allowed": ACCURACY * found.dense_error,
        "relative_difference": float(difference),
        "largest": found.largest,
        "largest_logit": float(found.dense.abs().max()),
        "same_class": found.same_class,
    }


def run(out: Path, progress: Progress) -> Path:
    """Compare, measure, train, and write ``index.html`` and ``numbers.json``.

    Args:
        out: an existing folder.
        progress: told after each step.

    Returns:
        path of the page.

    Raises:
        Disagreement: when dense and swapped network do not agree; nothing is written then.
    """
    networks = compare.build_networks()
    sizes = sizes_of(networks.dense, photographs.SIDE)
    steps = 1 + len(photographs.NAMES) + len(sizes) + len(CORES) + 5
    done = 0

    def step(label: str) -> None:
        nonlocal done
        done += 1
        progress(done, steps, label)

    step("networks built, attention swapped")
    agreements, cards = [], []
    for name in photographs.NAMES:
        photo = photographs.load(name, photographs.SIDE)
        masks = photo.masks(sizes, KEEP)
        found = compare.agreement(networks, photo.tensor(), masks)
        row = agreement_row(name, found)
        agreements.append(row)
        cards.append(picture_card(photo, masks, row, found))
        errors = f"{found.dense_error:.1e} and {found.swapped_error:.1e}"
        step(f"{name}: dense and swapped agree (off by {errors})")

    photo = photographs.load(photographs.NAMES[0], photographs.SIDE)
    image, masks = photo.tensor(), photo.masks(sizes, KEEP)
    layers = []
    for scale, call in compare.layer_calls(networks.dense, image, masks).items():
        layers.append(compare.measure_layer(scale, call, LAYER_SECONDS))
        step(f"layer {scale}: {layers[-1]['times_faster']:.1f}x faster")
    by_keep = {keep: photo.masks(sizes, keep) for keep in CHART_KEEPS}
    forward = compare.measure_forward(networks, image, by_keep, KEEP, FORWARD_SECONDS)
    step(f"whole forward: {forward['times_faster']:.1f}x faster")
    rest = compare.forward_flops(networks.bare, image)
    products = {"dense": "dense", "swapped": "sparse"}
    for name, core in CORES.items():
        forward[name]["peak_bytes"] = in_fresh_process(network_memory, core, False)
        own = sum(layer[products[name]]["flops"] for layer in layers) if name in products else 0
        forward[name]["flops"] = rest + own
        step(f"memory of the {name} network")

    cells, count = nuclei.found_nuclei()
    step(f"{count} nuclei found by the network that comes with the package")
    trained = training.learn(out / "training", step)
    numbers = {
        "machine": machine_facts(),
        "side": photographs.SIDE,
        "keep": KEEP,
        "accuracy": ACCURACY,
        "swapped": str(networks.report),
        "agreement": agreements,
        "forward": forward,
        "layers": layers,
        "nuclei": count,
        "training": {"options": training.OPTIONS, "scores": trained.scores, "log": trained.log},
    }
    charts = {
        "layers_chart": pictures.layers_chart(layers),
        "keeps_chart": pictures.keeps_chart(forward),
        "loss_chart": pictures.loss_chart(trained.log),
    }
    panels = [pictures.drawn(panel) for panel in trained.panels]
    cell_panels = [pictures.drawn(panel) for panel in cells]
    text = page.render(numbers, cards, charts, cell_panels, panels)
    (out / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    path = out / "index.html"
    path.write_text(text, encoding="utf-8")
    step("page written")
    return path
