# SPDX-License-Identifier: BSD-3-Clause
"""Arrays and numbers as PNG inside HTML: photographs, masks over them, class maps, charts."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from matplotlib.image import imsave
from PIL.Image import Image
from torch import Tensor

from maskattn_kernels.benchmark.plots import STYLES, plain_ticks
from maskattn_kernels.common.plot_look import LOOK

Row = dict[str, Any]

#: What is not selected fades to this colour, by so much.
FADE_TO, FADE = np.array([0.83, 0.87, 0.92]), 0.86
DENSE, SPARSE, REST = STYLES["eager"]["color"], STYLES["ours"]["color"], "#444444"


def data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def picture(pixels: np.ndarray) -> str:
    """An (H, W, 3) array from 0 to 1 as a data URI."""
    buffer = io.BytesIO()
    imsave(buffer, np.clip(pixels, 0, 1), format="png")
    return data_uri(buffer.getvalue())


def masked_picture(pixels: np.ndarray, mask: Tensor) -> str:
    """The photograph where a mask (1, height, width) selects, faded elsewhere."""
    side = pixels.shape[0]
    places = mask[0].numpy()
    places = np.kron(
        places, np.ones((side // places.shape[0], side // places.shape[1]), dtype=bool)
    )
    return picture(np.where(places[..., None], pixels, FADE * FADE_TO + (1 - FADE) * pixels))


def class_picture(logits: Tensor) -> str:
    """The best class of each pixel; each class has a colour of its own."""
    classes = logits.argmax(0).numpy()
    # Steps of a golden section: neighbours in number are far apart in colour.
    steps = (np.arange(logits.shape[0]) * 0.61803) % 1.0
    return picture(colormaps["Spectral"](steps)[classes, :3])


def difference_picture(first: Tensor, second: Tensor, largest: float) -> str:
    """The largest difference of any logit at each pixel: white is none, dark is ``largest``."""
    difference = (first - second).abs().amax(0).numpy() / max(largest, 1e-30)
    return picture(colormaps["magma_r"](difference)[..., :3])


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=160)
    return data_uri(buffer.getvalue())


def drawn(image: Image) -> str:
    """A drawn picture as a data URI."""
    buffer = io.BytesIO()
    image.save(buffer, format="png")
    return data_uri(buffer.getvalue())


@rc_context(LOOK)
def loss_chart(log: Sequence[Row]) -> str:
    """The parts of the loss against the training step, each as a share of its first value."""
    figure = Figure(figsize=(6.2, 3.8), layout="constrained")
    axes = figure.subplots()
    steps = [row["step"] for row in log]
    for name in ("semantic", "center", "offset", "contrastive"):
        first = log[0][f"loss/{name}"]
        axes.plot(steps, [row[f"loss/{name}"] / first for row in log], label=name)
    axes.set(xlabel="step", ylabel="of its first value", title="loss", ylim=(0, None))
    axes.legend()
    return _png(figure)


@rc_context(LOOK)
def layers_chart(rows: Sequence[Row]) -> str:
    """Time of each attention layer, dense and masked."""
    figure = Figure(figsize=(6.2, 3.8), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(rows))
    for shift, name, label, color in (
        (-0.2, "dense", "dense", DENSE),
        (0.2, "sparse", "masked_attention", SPARSE),
    ):
        heights = [r[name]["median"] * 1e3 for r in rows]
        axes.bar(places + shift, heights, 0.38, label=label, color=color)
    labels = [f"{r['scale']}\n{r['tokens']} x {r['head_dim']}" for r in rows]
    axes.set_xticks(places, labels, fontsize=8.5)
    axes.set(yscale="log", ylabel="ms", title="attention layer by layer (tokens x channels)")
    plain_ticks(axes)
    axes.grid(axis="x", visible=False)
    axes.legend()
    return _png(figure)


@rc_context(LOOK)
def keeps_chart(forward: Row) -> str:
    """Time of a forward against the keep ratio, between the dense network and the bare one."""
    figure = Figure(figsize=(6.2, 3.8), layout="constrained")
    axes = figure.subplots()
    keeps = forward["keeps"]
    x = [k["keep"] for k in keeps]
    axes.plot(x, [k["median"] * 1e3 for k in keeps], label="swapped", **STYLES["ours"])
    axes.axhline(forward["dense"]["median"] * 1e3, color=DENSE, label="dense")
    axes.axhline(
        forward["bare"]["median"] * 1e3,
        color=REST,
        linestyle=":",
        label="without attention products",
    )
    axes.set(
        xlabel="keep ratio", ylabel="ms", title="whole forward", xlim=(0, 1.04), ylim=(0, None)
    )
    axes.legend(loc="upper left", bbox_to_anchor=(0, 0.94))
    return _png(figure)
