# SPDX-License-Identifier: BSD-3-Clause
"""Data, network and loss of a run, from its options."""

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import Namespace

from maskattn_kernels.common.command_line import torch_device
from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.data.batches import Batches
from maskattn_kernels.segmentation.data.errors import DataError, shown
from maskattn_kernels.segmentation.data.findings import Findings, survey
from maskattn_kernels.segmentation.data.frame import check_whole
from maskattn_kernels.segmentation.data.frame_advice import frame_advice
from maskattn_kernels.segmentation.data.label_counts import balanced_weights
from maskattn_kernels.segmentation.data.opening import SPLITS
from maskattn_kernels.segmentation.data.sample import VOID, Classes
from maskattn_kernels.segmentation.encoder_weights import has_default_weights, load_encoder_weights
from maskattn_kernels.segmentation.model.losses import SegmentationLoss
from maskattn_kernels.segmentation.model.network import SegmentationNetwork
from maskattn_kernels.segmentation.training.module import SegmentationModule
from maskattn_kernels.segmentation.training.optimizer import OptimizerOptions
from maskattn_kernels.segmentation.training.options import ConfigError
from maskattn_kernels.segmentation.training.processes import is_first_process, say
from maskattn_kernels.segmentation.training.resume import differing_classes
from maskattn_kernels.segmentation.training.self_training import LabelledAndPseudo, PseudoLabelled
from maskattn_kernels.segmentation.training.starting_weights import load_matching
from maskattn_kernels.segmentation.training.task import chosen_task

__all__ = ["make_batches", "make_module"]

#: Images of each split whose labels are read and judged before training.
LABELS_READ = 100


def make_batches(config: Namespace) -> Batches:
    """The data of a run, opened and judged; the task of the config becomes one that they allow.

    Raises:
        DataError, ConfigError: they cannot be used.
    """
    arguments = config.data.as_dict()
    options = arguments.pop("options")
    batches = Batches(**arguments, seed=config.seed, **options)
    batches.open()
    found = _judge_labels(batches)
    for width, height in found["val"].sizes if "val" in found else ():
        check_whole("data.frame own: a validation image", height, width, batches.frame)
    train = found.get("train")
    for note in frame_advice(train.sizes, batches.size, batches.frame) if train else ():
        say(f"note: {note}")
    say(f"data: {_summary(batches, found)}")
    config.network.task, reason = chosen_task(config.network.task, batches)
    say(f"task: {config.network.task} ({reason})")
    return batches


def make_module(
    config: Namespace, batches: Batches, identity: dict[str, str]
) -> SegmentationModule:
    """What is trained.

    Args:
        config: of the run; its task is known.
        batches: from `make_batches`.
        identity: kept in saved states, see `run_identity`.

    Raises:
        ConfigError, CheckpointError: an option or the checkpoint of ``init_from`` does not fit.
    """
    torch.manual_seed(config.seed)
    classes = batches.classes
    options = config.network.as_dict()
    options.pop("encoder_weights")
    network = SegmentationNetwork(len(classes), classes.things, **options)
    pretrained = _load_encoder(config, network)
    options = config.loss.as_dict()
    if network.task == "semantic":
        _check_no_loss_of_objects(options)
    if options["keep"] is None and config.network.selector in ("threshold", "gumbel"):
        options["keep"] = config.network.keep  # without this loss they select too much
    options["class_weights"] = _class_weights(options["class_weights"], batches)
    channels = network.body.decoder_channels[-1]
    loss = SegmentationLoss(classes.things, network.task, pixel_channels=channels, **options)
    if config.init_from:
        trained = Checkpoint.from_pretrained(config.init_from)
        _take_weights(config.init_from, network, classes, trained)
    if config.unlabelled:
        _learn_from_unlabelled(config, batches)
    if batches.balance:
        _counted(batches)
    return SegmentationModule(
        network,
        loss,
        classes,
        steps=config.steps,
        seed=config.seed,
        optimizer=OptimizerOptions(**config.optimizer.as_dict()),
        freeze_encoder=config.freeze_encoder,
        freeze_encoder_norms=config.freeze_encoder_norms,
        pretrained_encoder=pretrained,
        size=batches.size,
        frame=batches.frame,
        run=identity,
    )


def _check_no_loss_of_objects(options: dict[str, Any]) -> None:
    """Raises where the factor of a loss is asked for that the task does not have."""
    for name in ("center_weight", "offset_weight", "distance_weight", "contrastive_weight"):
        usual = signature(SegmentationLoss).parameters[name].default
        if options[name] not in (0, usual):
            raise ConfigError(
                f"loss.{name}: expected 0 or {usual}, its default, for the task semantic, which "
                f"tells no objects apart, got {options[name]}"
            )


def _class_weights(asked: str | list[float], batches: Batches) -> list[float] | None:
    """The weights of the classes, by name or one by one."""
    names = batches.classes.names
    if asked == "none":
        return None
    if isinstance(asked, str):
        weights = balanced_weights(_counted(batches).sum(0))
        told = (f"{name} {weight:.2g}" for name, weight in zip(names, weights, strict=True))
        say(f"weights of the classes: {', '.join(told)}")
        return weights
    if len(asked) != len(names) or min(asked) < 0 or not np.isfinite(asked).all():
        raise ConfigError(
            f"loss.class_weights: expected {len(names)} numbers from 0, one a class, got "
            f"{shown(asked)}"
        )
    return asked


def _counted(batches: Batches) -> np.ndarray:
    """`Batches.class_pixels`, which takes long for many images, and so is told."""
    say(f"counting the pixels of the classes of {len(batches.labelled())} images")
    return batches.class_pixels()


def _load_encoder(config: Namespace, network: SegmentationNetwork) -> bool:
    """Load trained weights of an encoder, unless those of the whole network follow.

    Returns:
        whether the encoder starts trained.
    """
    name, weights = network.config["encoder"], config.network.encoder_weights
    own, encoder = name == network.config["arch"], network.body.encoder
    if weights not in ("default", "none") and (own or config.init_from):
        why = (
            "as those of --init_from are taken"
            if config.init_from
            else "with the network's own encoder"
        )
        raise ConfigError(
            f"network.encoder_weights: expected default or none {why}, got {shown(weights)}"
        )
    if own or encoder is None or weights == "none":
        return False
    if weights == "default" and not has_default_weights(name):
        return bool(config.init_from)
    if not config.init_from and not config.ckpt_path:
        file = load_encoder_weights(encoder, name, weights)
        say(f"encoder: {name} with the weights of {file}")
    return True


def _take_weights(
    source: str, network: SegmentationNetwork, classes: Classes, trained: Checkpoint
) -> None:
    """Start from the weights of a checkpoint; a class keeps those of the class of its name."""
    there = {name: number for number, name in enumerate(trained.classes.names)}
    rows = {n: there[name] for n, name in enumerate(classes.names) if name in there}
    new = load_matching(network, trained.network, rows)
    say(f"weights of {source}; new: {', '.join(new) or 'none'}")
    if classes.names != trained.classes.names:
        parts = {
            "kept": [classes.names[number] for number in rows],
            "new": [name for name in classes.names if name not in there],
            "left out": [name for name in trained.classes.names if name not in classes.names],
        }
        told = (f"{what} {', '.join(names) or 'none'}" for what, names in parts.items())
        say(f"classes by name: {'; '.join(told)}")


def _judge_labels(batches: Batches) -> Mapping[str, Findings]:
    """Look at some labels of files, so that a run that cannot learn ends before it starts."""
    if batches.root is None or not is_first_process():
        return {}
    say(f"reading the labels of up to {LABELS_READ} images of each split")
    sets = {split: batches.dataset(split) for split in SPLITS}
    found = survey(sets, LABELS_READ, {"train": batches.labelled()})
    for note in found.notes:
        say(f"note: {note}")
    for fault in found.faults:
        raise DataError(f"{batches.root}: {fault}")
    return found.splits


def _summary(batches: Batches, found: Mapping[str, Findings]) -> str:
    """What there is to learn from, in a line."""
    used, there = len(batches.labelled()), len(batches.dataset("train"))
    train = f"{used} images" if used == there else f"{used} of {there} images"
    things = len(batches.classes.things)
    parts = [
        f"train {train}, val {len(batches.dataset('val'))} images",
        f"{len(batches.classes)} classes ({things} of them things)",
    ]
    if found:
        pixels = np.sum([findings.pixels for findings in found.values()], axis=0)
        objects = [count for findings in found.values() for count in findings.objects]
        parts.append(f"{pixels[VOID] / pixels.sum():.0%} of the pixels are void")
        if things and objects:
            parts.append(f"{min(objects)} to {max(objects)} objects in an image")
    return "; ".join(parts)


def _learn_from_unlabelled(config: Namespace, batches: Batches) -> None:
    """Add the images of ``--unlabelled``, with labels by the checkpoint of ``--teacher``."""
    option = "teacher" if config.teacher else "init_from"
    teacher = Checkpoint.from_pretrained(config[option])
    theirs = teacher.classes
    differing = differing_classes(theirs.names, theirs.is_thing, batches.classes)
    if differing:
        raise ConfigError(
            f"unlabelled: the checkpoint of --{option} has other classes ({differing}); train it "
            "with those of the data first"
        )
    say(f"labelling the images of {config.unlabelled} with {config[option]}")
    device = "cpu" if config.trainer.accelerator == "cpu" else "auto"
    pseudo = PseudoLabelled(
        teacher,
        Path(config.unlabelled),
        config.sure_share,
        config.confidence,
        torch_device(device),
    )
    for note in pseudo.notes:
        say(f"note: {note}")
    say(f"{len(pseudo)} images without labels; {pseudo.kept:.0%} of their pixels are learned")
    labelled = batches.dataset("train")
    batches.train_with(LabelledAndPseudo(labelled, batches.labelled(), pseudo))
