# SPDX-License-Identifier: BSD-3-Clause
"""The task of a run: as asked for, or what the labels of the data allow."""

from maskattn_kernels.segmentation.data.batches import Batches
from maskattn_kernels.segmentation.training.options import ConfigError

__all__ = ["chosen_task"]

_LOOKED_AT = 50  # images in which an object is looked for, evenly spread; most sets have one in all


def chosen_task(asked: str, batches: Batches) -> tuple[str, str]:
    """The task, and in a few words why.

    Args:
        asked: "auto", or a task by its name.
        batches: opened.

    Raises:
        ConfigError: the task that is asked for needs labels that the data do not have.
    """
    things = [batches.classes.names[number] for number in batches.classes.things]
    if asked == "semantic" or (asked != "auto" and not things):
        return asked, "as asked for"
    if not things:
        return "semantic", "no class is a thing"
    listed = ", ".join(things[:5]) + (" .." if len(things) > 5 else "")
    labelled = _has_objects(batches)
    if asked == "auto" and labelled:
        return "panoptic", f"objects of {listed} are labelled"
    if asked == "auto":
        return "semantic", f"objects of {listed} are not labelled, so they are not told apart"
    if not labelled:
        raise ConfigError(
            f"network.task: {asked} needs labels of the objects of {listed}, and the training "
            f"images have none (a folder `instances`, say); give them, or choose semantic"
        )
    return asked, "as asked for"


def _has_objects(batches: Batches) -> bool:
    """Whether some training image has a labelled object."""
    samples, numbers = batches.dataset("train"), batches.labelled()
    count = min(_LOOKED_AT, len(numbers))
    for place in range(count):
        instance = samples[int(numbers[place * len(numbers) // count])].instance
        if instance is not None and instance.any():
            return True
    return False
