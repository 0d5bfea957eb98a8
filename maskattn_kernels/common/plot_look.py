# SPDX-License-Identifier: BSD-3-Clause
"""How all plots of this package look."""

from typing import Any

__all__ = ["LOOK"]

LOOK: Any = {
    "figure.facecolor": "white",
    "font.size": 10,
    "axes.grid": True,
    "axes.grid.which": "major",
    "grid.color": "#e3e6ea",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa2ab",
    "axes.titlesize": 10.5,
    "lines.markersize": 5,
    "legend.frameon": False,
    "savefig.dpi": 150,
}
"""Settings for `matplotlib.rc_context`."""
