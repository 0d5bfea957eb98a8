# SPDX-License-Identifier: BSD-3-Clause
"""Segmentation with `MaskAttnUNet`: data, training, scores, and labels for new images.

Needs an extra: ``pip install 'maskattn_kernels[predict]'`` to segment images,
``pip install 'maskattn_kernels[train]'`` to train and score as well. A name is imported when it is
first used, so that each use needs only its own packages.
"""

from typing import TYPE_CHECKING, Any

from maskattn_kernels.common.extras import import_attribute

if TYPE_CHECKING:
    from maskattn_kernels.segmentation.checkpoints import Checkpoint, CheckpointError
    from maskattn_kernels.segmentation.data.errors import DataError
    from maskattn_kernels.segmentation.data.opening import open_dataset
    from maskattn_kernels.segmentation.data.sample import (
        VOID,
        Classes,
        Sample,
        SegmentationDataset,
    )
    from maskattn_kernels.segmentation.exporting.command import export
    from maskattn_kernels.segmentation.model.network import SegmentationNetwork
    from maskattn_kernels.segmentation.picking.command import pick
    from maskattn_kernels.segmentation.prediction.command import predict
    from maskattn_kernels.segmentation.reporting.command import report
    from maskattn_kernels.segmentation.results import Segmentation
    from maskattn_kernels.segmentation.scoring.evaluation import evaluate
    from maskattn_kernels.segmentation.training.command import train

__all__ = [
    "VOID",
    "Checkpoint",
    "CheckpointError",
    "Classes",
    "DataError",
    "Sample",
    "Segmentation",
    "SegmentationDataset",
    "SegmentationNetwork",
    "evaluate",
    "export",
    "open_dataset",
    "pick",
    "predict",
    "report",
    "train",
]

#: Public name to its place in this package, by the extra that brings the packages it needs.
_PLACES = {
    "predict": {
        "VOID": "data.sample",
        "Checkpoint": "checkpoints",
        "CheckpointError": "checkpoints",
        "Classes": "data.sample",
        "DataError": "data.errors",
        "Sample": "data.sample",
        "Segmentation": "results",
        "SegmentationDataset": "data.sample",
        "SegmentationNetwork": "model.network",
        "export": "exporting.command",
        "pick": "picking.command",
        "predict": "prediction.command",
    },
    "train": {
        "evaluate": "scoring.evaluation",
        "open_dataset": "data.opening",
        "report": "reporting.command",
        "train": "training.command",
    },
}


def __getattr__(name: str) -> Any:
    for extra, places in _PLACES.items():
        if name in places:
            value = import_attribute(f"{__name__}.{places[name]}:{name}", extra)
            globals()[name] = value  # from now on it is found without this function
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
