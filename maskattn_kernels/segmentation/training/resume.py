# SPDX-License-Identifier: BSD-3-Clause
"""Whether a saved state is that of the run that is to be resumed.

A resumed run gives the result of an unbroken one only if it is the same run: options, classes,
processes. Whatever differs is refused, or told where a user may mean it.
"""

import json
import shlex
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from maskattn_kernels.segmentation.checkpoints import CheckpointError
from maskattn_kernels.segmentation.data.batches import Batches
from maskattn_kernels.segmentation.data.opening import SPLITS
from maskattn_kernels.segmentation.data.sample import Classes
from maskattn_kernels.segmentation.training.options import ConfigError, make_parser
from maskattn_kernels.segmentation.training.processes import say
from maskattn_kernels.segmentation.training.run_state import check_counters, check_parts, read_state

__all__ = ["check_data", "check_processes", "differing_classes", "run_identity", "saved_state"]

#: Sections of options that a resumed run must share with the one that was stopped.
FIXED = (
    *("seed", "steps", "data", "network", "loss", "optimizer", "trainer"),
    *("keep", "freeze_encoder", "freeze_encoder_norms"),
    *("unlabelled", "teacher", "sure_share", "confidence"),
)
#: Of those, what may differ: it changes no result.
FREE = (
    *("data.workers", "data.root"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
    "trainer.deterministic",
)
#: What runs of earlier versions did where their states do not name an option, if not the default.
UNNAMED = {"optimizer.ema": "0.0", "data.frame": '"squeeze"'}


def saved_state(config: Namespace, out: Path) -> tuple[Path | None, dict[str, Any]]:
    """The file to resume from, and what it holds; None and nothing for a new run.

    Args:
        config: of the run; its task becomes that of the state, if it is "auto".
        out: folder of the run.

    Raises:
        CheckpointError: the file is not the state of a run.
        ConfigError: it is that of a run with other options.
    """
    if config.ckpt_path is None:
        return None, {}
    path = out / "last.ckpt" if config.ckpt_path == "last" else Path(config.ckpt_path)
    if config.ckpt_path == "last":
        _say_if_moved(config, path)
    state = read_state(path)
    check_parts(state, path)
    if config.network.task == "auto":
        config.network.task = state["run"].get("network.task", "auto").strip('"')
    _check_options(config, state["run"])
    check_counters(state, path, config.steps, config.trainer.accumulate_grad_batches)
    return path, state


def _say_if_moved(config: Namespace, path: Path) -> None:
    """The config of a folder that was copied or moved names the folder where it was before."""
    for given in config.config or ():
        folder = Path(str(given)).parent
        here = folder / "last.ckpt"
        if not here.is_file() or here.resolve() == path.resolve() or not _names(given, config.out):
            continue
        cure = f"to resume the run in {folder}, add --out {shlex.quote(str(folder))}"
        if not path.is_file():
            raise CheckpointError(f"ckpt_path: there is no {path}; {cure}")
        say(f"note: {given} names the folder {config.out}, and that run is resumed; {cure}")


def _names(config: Any, out: str) -> bool:
    """Whether the file of a config names this folder, and not the command line."""
    return yaml.safe_load(Path(str(config)).read_text(encoding="utf-8")).get("out") == out


def run_identity(config: Namespace, batches: Batches) -> dict[str, str]:
    """What is kept in a saved state to tell a run by, as text by name.

    Args:
        config: of the run.
        batches: opened.
    """
    classes = batches.classes
    images = {f"images of {split}": _images(batches.dataset(split)) for split in SPLITS}
    return {
        **_options(config),
        "classes": json.dumps(classes.names),
        "things": json.dumps(classes.is_thing),
        **images,
    }


def check_data(batches: Batches, before: Mapping[str, str]) -> None:
    """Compare the data with those of the run to resume.

    Args:
        batches: opened.
        before: by `run_identity`, from the saved state.

    Raises:
        ConfigError: other classes, or in another order.
    """
    if "classes" in before and "things" in before:
        names, things = _listed(before["classes"]), _listed(before["things"])
        differing = differing_classes(names, things, batches.classes)
        if differing:
            raise ConfigError(
                f"data: the run to resume has other classes ({differing}); give it the same in "
                "the same order, or start a new run with --init_from"
            )
    for split in SPLITS:
        now, then = _images(batches.dataset(split)), before.get(f"images of {split}")
        if then is not None and now != then:
            counts = f"{then.partition(' ')[0]} then, {now.partition(' ')[0]} now"
            say(
                f"note: the images of {split} are not those of the run to resume ({counts}), so "
                "its result is not that of an unbroken run"
            )


def check_processes(world: int, before: Mapping[str, str]) -> None:
    """Compare the number of processes, and so of images in a step.

    Args:
        world: processes now.
        before: by `run_identity`, from the saved state.

    Raises:
        ConfigError: there were more or fewer.
    """
    then = before.get("processes", str(world))
    if then != str(world):
        raise ConfigError(
            f"trainer.devices: the run to resume has {then} processes, got {world}; give it as "
            "many, or start a new run with --init_from"
        )


def differing_classes(names: tuple[str, ...], is_thing: tuple[bool, ...], now: Classes) -> str:
    """The first difference in words; "" if names, order and kinds are the same.

    Args:
        names, is_thing: of the classes then, as in `Classes`.
        now: the classes now.
    """
    if len(names) != len(now) or len(is_thing) != len(now):
        return f"{len(names)} then, {len(now)} now"
    for number, (then, here) in enumerate(zip(names, now.names, strict=True)):
        if then != here:
            return f"class {number} was {then!r} and is {here!r}"
    for name, was, is_now in zip(names, is_thing, now.is_thing, strict=True):
        if was != is_now:
            return f"{name!r} was {'a thing' if was else 'stuff'} and is not now"
    return ""


def _check_options(config: Namespace, before: Mapping[str, str]) -> None:
    before = {**_options(make_parser().get_defaults()), **UNNAMED, **before}
    for name, value in _options(config).items():
        then = before[name]
        if then == value:
            continue
        cure = ""
        if name == "steps":
            cure = (
                "; the learning rate falls to zero at the end of a run, so a longer one is a new "
                f"run: --init_from {Path(config.out) / 'final'} --out ANOTHER"
            )
        then = then if len(then) <= 60 else f"{then[:60]} .."
        raise ConfigError(f"{name}: the run to resume has {then}, got {value}{cure}")


def _options(config: Namespace) -> dict[str, str]:
    """The options that decide a run's result, by name, as text."""
    plain = {name: value for name, value in vars(config.as_flat()).items() if name not in FREE}
    return {n: json.dumps(v, default=str) for n, v in plain.items() if n.split(".")[0] in FIXED}


def _listed(text: str) -> tuple[Any, ...]:
    """A list in JSON; nothing for other text."""
    try:
        return tuple(json.loads(text))
    except (ValueError, TypeError):
        return ()


def _images(samples: Any) -> str:
    """How many images, and a digest of their names where they have some."""
    names = "\n".join(getattr(samples, "files", ()))
    return f"{len(samples)} {sha256(names.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}"
