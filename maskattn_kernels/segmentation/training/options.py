# SPDX-License-Identifier: BSD-3-Clause
"""The options of ``maskattn train``: typed, from YAML files and the command line."""

import argparse
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentParser, Namespace

from maskattn_kernels.common.text import one_line
from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.data.arguments import add_data_arguments
from maskattn_kernels.segmentation.data.batches import Batches
from maskattn_kernels.segmentation.data.errors import shown
from maskattn_kernels.segmentation.model.losses import SegmentationLoss
from maskattn_kernels.segmentation.model.network import SegmentationNetwork
from maskattn_kernels.segmentation.training.keep_schedule import KeepOptions
from maskattn_kernels.segmentation.training.optimizer import OptimizerOptions
from maskattn_kernels.segmentation.training.plain_yaml import MOST, size_of_yaml

__all__ = [
    "ConfigError",
    "TrainerOptions",
    "as_arguments",
    "make_parser",
    "parse",
    "preset_names",
    "to_yaml",
]

PRESETS = files("maskattn_kernels.segmentation.training") / "configs"


#: Options of a data set. Not Any: to the parser a value of that type may name a class to import.
_Plain = bool | int | float | str | None
_Values = dict[str, _Plain | list[_Plain]]
#: Largest seed that the numbers of steps and processes can be mixed with in 64 bits.
_SEEDS = 2**32 - 1
_LARGEST = 10**9
#: What may be null though it has another default.
_NULL = ("trainer.gradient_clip_val",)
_WORDS = 300  # characters of an error; a hostile value could make it megabytes


class ConfigError(ValueError):
    """An option or a config file cannot be used."""


@dataclass
class TrainerOptions:
    """How the steps are run: what is handed to Lightning's ``Trainer``.

    Attributes:
        accelerator: "auto", "cpu", "gpu", ..
        devices: how many of them, or "auto".
        num_nodes: machines.
        strategy: "auto", "ddp", "fsdp", ..; one that runs the command in every process.
        precision: "32-true", "16-mixed", "bf16-mixed", ..
        accumulate_grad_batches: batches whose gradients make one step.
        gradient_clip_val: highest norm of all gradients together; null = no limit.
        deterministic: refuse operations whose results differ from run to run.
    """

    accelerator: str = "auto"
    devices: int | str = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = 1.0
    deterministic: bool = False


def preset_names() -> tuple[str, ...]:
    """Names that ``--config`` takes in place of a file.

    Example:
        >>> from maskattn_kernels.segmentation.training.options import preset_names
        >>> "digit-scenes-small" in preset_names()
        True
    """
    found = (entry.name for entry in PRESETS.iterdir())
    return tuple(sorted(n.removesuffix(".yaml") for n in found if n.endswith(".yaml")))


def make_parser() -> ArgumentParser:
    """The parser of all options, for `parse`."""
    parser = ArgumentParser(
        prog="maskattn train",
        description="Train a network that segments images. "
        f"Presets for --config: {', '.join(preset_names())}.",
        exit_on_error=False,
    )
    add = parser.add_argument
    add("--config", action="config", help="YAML file, or name of a preset; later options win")
    add("--out", type=str, default="out/train", help="folder of the run")
    add("--seed", type=int, default=0, help="of weights, order, augmentation and draws")
    add("--steps", type=int, default=1000, help="optimizer steps of the whole run")
    add("--val_every", type=int, default=250, help="steps between validations")
    add("--patience", type=int, default=0, help="validations without a better score after which "
        "the run ends; 0: never")  # fmt: skip
    add("--save_every", type=int, default=100, help="steps between saved states; 0: at validations")
    add("--log_every", type=int, default=10, help="steps between rows of the log")
    add("--ckpt_path", type=str | None, default=None, help="resume: 'last', or a .ckpt file")
    add("--init_from", type=str | None, default=None, help="checkpoint to start from; a class "
        "of another name is new; width, depth and the like are taken from it")  # fmt: skip
    add("--freeze_encoder", type=bool, default=False, help="train the decoder and heads only")
    add("--freeze_encoder_norms", type=bool, default=False, help="keep the statistics of the "
        "encoder's BatchNorms")  # fmt: skip
    add("--unlabelled", type=str | None, default=None, help="folder of images without labels: "
        "learn from what --teacher predicts there")  # fmt: skip
    add("--teacher", type=str | None, default=None, help="checkpoint that labels the images of "
        "--unlabelled; default: that of --init_from")  # fmt: skip
    add("--sure_share", type=float, default=0.5, help="of those predictions, for each class: the "
        "share of its pixels that is learned, the surest of all images")  # fmt: skip
    add("--confidence", type=float, default=0.0, help="of those predictions: pixels of a lower "
        "probability are not learned in any case")  # fmt: skip
    data = parser.add_argument_group(
        "data",
        "`--data NAME --root DIR --set KEY=VALUE` set data.name, data.root and data.options.KEY, "
        "and win over a config",
    )
    skipped = {"seed", "val_options", "augment"}
    data.add_class_arguments(Batches, "data", skip=skipped, as_group=False)
    data.add_argument("--data.augment", type=bool | _Values, default=True, help="whether training "
        "images are changed at random, or how: zoom, mirror, light, gamma, saturation, hue, blur, "
        "noise, paste")  # fmt: skip
    data.add_argument("--data.options", type=_Values, default={}, help="of the data set")
    data.add_argument("--data.val_options", type=_Values | None, default=None,
        help="of the validation set where they differ (textures: shifted)")  # fmt: skip
    parser.add_class_arguments(SegmentationNetwork, "network", skip={"classes", "things", "task"})
    add("--network.task", type=Literal["auto", "semantic", "instance", "panoptic"], default="auto",
        help="auto: panoptic where objects of things are labelled, else semantic")  # fmt: skip
    parser.add_argument("--network.encoder_weights", type=str, default="default",
        help="default: trained ones where the encoder has some; none; a .safetensors or .pth file; "
        "or owner/name on the Hugging Face hub")  # fmt: skip
    skipped = {"things", "task", "class_weights", "pixel_channels"}
    parser.add_class_arguments(SegmentationLoss, "loss", skip=skipped)
    add("--loss.class_weights", type=Literal["none", "balanced"] | list[float], default="none",
        help="of the cross-entropy: balanced, by the labels; or a number a class")  # fmt: skip
    parser.add_class_arguments(OptimizerOptions, "optimizer")
    parser.add_class_arguments(TrainerOptions, "trainer")
    parser.add_class_arguments(KeepOptions, "keep")
    return parser


def parse(argv: Sequence[str]) -> Namespace:
    """Options from the arguments ``argv`` and the config files they name.

    With ``--init_from`` the network's options default to those of the checkpoint, and Muon's rate
    to a quarter of that from scratch, so that the network keeps what it has learned.

    Raises:
        ConfigError: one line naming the option, what came and what was expected.
    """
    parser = make_parser()
    try:
        given, argv = _data_arguments(_with_preset_files(list(argv)))
        config = parser.parse_args(argv)
        if config.init_from:
            trained = Checkpoint.from_pretrained(config.init_from).network.config
            known = config.network.as_dict().keys() - {"task"}  # the data decide
            defaults = {f"network.{k}": v for k, v in trained.items() if k in known}
            defaults["optimizer.muon_lr"] = OptimizerOptions.muon_lr / 4
            parser.set_defaults(defaults)
            config = parser.parse_args(argv)
    except argparse.ArgumentError as error:
        raise ConfigError(_plain(error)) from None
    _check(config)
    config.data.name = given.data or config.data.name
    config.data.root = given.root or config.data.root
    config.data.options.update(given.set)
    return config


def as_arguments(config: str | Path | None, options: Mapping[str, Any]) -> list[str]:
    """Options of Python as arguments of the command, for `parse`.

    Args:
        config: a YAML file or the name of a preset.
        options: by name; those of a section in a dict under the section's name.

    Example:
        >>> from maskattn_kernels.segmentation.training.options import as_arguments
        >>> as_arguments("coco", {"steps": 9, "data": {"root": "coco", "options": {"a": [1]}}})
        ['--config=coco', '--steps=9', '--data.root=coco', '--data.options={"a": [1]}']
    """
    flat: dict[str, Any] = {} if config is None else {"config": config}
    for name, value in options.items():
        section = value if isinstance(value, Mapping) else None
        flat |= {name: value} if section is None else {f"{name}.{k}": v for k, v in section.items()}
    return [
        f"--{name}={value if isinstance(value, str | Path) else json.dumps(value)}"
        for name, value in flat.items()
    ]


def to_yaml(config: Namespace) -> str:
    """All options as a config file, without the names of the files they came from.

    Args:
        config: from `parse`.
    """
    plain = config.as_dict() | {"ckpt_path": None}
    plain.pop("config", None)
    return yaml.safe_dump(json.loads(json.dumps(plain, default=str)), sort_keys=False)


def _data_arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The words that all commands take for a data set, and the other words."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_data_arguments(parser, required=False)
    return parser.parse_known_args(argv)


def _with_preset_files(argv: list[str]) -> list[str]:
    """Names of presets after ``--config`` replaced by their files."""
    for place, word in enumerate(argv):
        if word.startswith("--config="):
            argv[place] = f"--config={_preset_file(word.removeprefix('--config='))}"
        elif word == "--config" and place + 1 < len(argv):
            argv[place + 1] = _preset_file(argv[place + 1])
    return argv


def _preset_file(name: str) -> str:
    if Path(name).is_file():  # and not a folder of data that is called like a preset
        try:
            size = size_of_yaml(Path(name))
        except ValueError as error:
            raise ConfigError(f"config: {name} cannot be read as YAML ({error})"[:_WORDS]) from None
        if size > MOST:
            raise ConfigError(f"config: {name} has more than {MOST} values, by its aliases")
        return name
    if name in preset_names():
        return str(PRESETS / f"{name}.yaml")
    raise ConfigError(
        f"config: {name!r} is neither a file nor one of the presets {', '.join(preset_names())}"
    )


def _check(config: Namespace) -> None:
    for section in ("data", "network", "loss", "optimizer", "trainer", "keep"):
        if not isinstance(config[section], Namespace):
            raise ConfigError(f"{section}: expected options by name, got {config[section]!r}")
    limits = {
        "steps": (1, _LARGEST),
        "val_every": (1, _LARGEST),
        "log_every": (1, _LARGEST),
        "save_every": (0, _LARGEST),
        "patience": (0, _LARGEST),
        "trainer.accumulate_grad_batches": (1, _LARGEST),
        "seed": (0, _SEEDS),
        "network.seed": (0, _SEEDS),
    }
    for name, default in vars(make_parser().get_defaults().as_flat()).items():
        if config[name] is None and default is not None and name not in _NULL:
            raise ConfigError(f"{name}: expected a value such as {default!r}, got null")
    for name, (lowest, highest) in limits.items():
        if not lowest <= config[name] <= highest:
            end = f" to {highest}" if config[name] > highest else ""
            raise ConfigError(
                f"{name}: expected a whole number from {lowest}{end}, got {shown(config[name])}"
            )
    for name, value in vars(config.as_flat()).items():
        section, _, option = name.partition(".")
        if not isinstance(value, float):
            continue
        if not math.isfinite(value) or (section in ("loss", "optimizer", "trainer") and value < 0):
            raise ConfigError(f"{name}: expected a number from 0, got {value}")
        if option == "warmup" and value > 1:
            raise ConfigError(f"{name}: expected a number from 0 to 1, got {value}")
    if not 0 <= config.confidence <= 1:
        raise ConfigError(f"confidence: expected a number from 0 to 1, got {config.confidence}")
    if not 0 < config.sure_share <= 1:
        raise ConfigError(f"sure_share: expected above 0, to 1, got {config.sure_share}")
    _check_keep(config)
    if config.unlabelled and not (config.teacher or config.init_from):
        raise ConfigError("unlabelled: needs --teacher, the checkpoint that labels the images")
    if config.teacher and not config.unlabelled:
        raise ConfigError("teacher: needs --unlabelled, the folder of the images that it labels")
    if any(word in config.trainer.strategy for word in ("spawn", "fork", "notebook")):
        raise ConfigError(
            "trainer.strategy: expected auto, ddp, fsdp or another that runs the command in every "
            f"process, got {config.trainer.strategy!r}"
        )
    sharding = any(word in config.trainer.strategy for word in ("fsdp", "deepspeed"))
    if config.optimizer.name == "muon" and sharding:
        raise ConfigError(
            "optimizer.name: muon needs whole weights; expected adamw for trainer.strategy "
            f"{config.trainer.strategy!r}"
        )
    if config.optimizer.ema >= 1:
        raise ConfigError(
            f"optimizer.ema: expected a number from 0 below 1, got {config.optimizer.ema}"
        )
    if config.optimizer.ema and sharding:
        raise ConfigError(
            "optimizer.ema: an average needs whole weights; expected 0 for trainer.strategy "
            f"{config.trainer.strategy!r}"
        )
    if config.optimizer.ema and config.trainer.precision in ("bf16-true", "16-true"):
        raise ConfigError(
            "optimizer.ema: weights of 16 bits cannot hold an average; expected 0 for "
            f"trainer.precision {config.trainer.precision!r}"
        )
    config.val_every = min(config.val_every, config.steps)


def _check_keep(config: Namespace) -> None:
    """Raises unless the keep ratio and its schedule fit the selector."""
    selector, keep, schedule = config.network.selector, config.network.keep, config.keep
    free = selector in ("threshold", "gumbel")
    if free and not isinstance(keep, float):
        raise ConfigError(
            f"network.keep: expected a number with the selector {selector!r}, whose masks have "
            f"that size on the average of all scales, got {keep}"
        )
    if schedule.schedule != "constant" and (free or selector == "none"):
        raise ConfigError(
            f"keep.schedule: expected constant with the selector {selector!r}, which has no ratio "
            f"that can be set, got {schedule.schedule}"
        )
    start, end = schedule.falls
    if not 0 <= start <= end <= 1:
        raise ConfigError(
            f"keep.falls: expected two fractions of the run, the lower one first, got {start}, "
            f"{end}"
        )
    if not 0 < schedule.lowest <= 1:
        raise ConfigError(
            f"keep.lowest: expected a number above 0 and at most 1, got {schedule.lowest}"
        )


def _plain(error: argparse.ArgumentError) -> str:
    """What the parsers say, in the words of this package."""
    text = re.sub(r"<class '(\w+)'>", r"\1", one_line(error))
    text = re.sub(r'^Parser key "([\w.]+)": ', r"\1: ", text)
    text = re.sub(r": Expected an? (.+?)\. Got value: ", r": expected \1, got ", text)
    union = r"Does not validate against any of the Union .*?\[(.*)\] Errors: .* Given value: "
    text = re.sub(union, lambda found: f"expected {' or '.join(_types(found[1]))}, got ", text)
    text = re.sub(r"typing\.Literal\[(.*?)\]", r"\1", text)
    text = text.replace("tuple[int, int]", "[height, width]")  # the only pairs that options take
    return text if len(text) <= _WORDS else f"{text[:_WORDS]} .."


def _types(listed: str) -> list[str]:
    """The types of a union, separated by commas outside of brackets."""
    return re.findall(r"[\w.]+(?:\[[^\]]*\])?", listed)
