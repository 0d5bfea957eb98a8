# SPDX-License-Identifier: BSD-3-Clause
"""``maskattn train``: from a config to a run's folder.

The folder holds ``config.yaml`` (every option as it was), ``train.csv`` and ``validation.csv``,
``tensorboard/``, ``last.ckpt`` (state to resume from), ``best/`` and ``final/`` (checkpoints).
"""

import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from jsonargparse import Namespace
from pytorch_lightning.loggers import TensorBoardLogger

from maskattn_kernels.common.command_line import torch_device, writable_folder
from maskattn_kernels.segmentation.checkpoints import Checkpoint, load_matching
from maskattn_kernels.segmentation.data.batches import Batches
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.findings import survey
from maskattn_kernels.segmentation.data.opening import SPLITS
from maskattn_kernels.segmentation.model.losses import SegmentationLoss
from maskattn_kernels.segmentation.model.network import SegmentationNetwork
from maskattn_kernels.segmentation.training.callbacks import (
    SaveState,
    ShowProgress,
    Stopped,
    StopRequest,
    save_network,
)
from maskattn_kernels.segmentation.training.csv_log import CSVLog
from maskattn_kernels.segmentation.training.finite import StopIfNotFinite
from maskattn_kernels.segmentation.training.module import OptimizerOptions, SegmentationModule
from maskattn_kernels.segmentation.training.options import ConfigError, as_arguments, parse, to_yaml
from maskattn_kernels.segmentation.training.run_data import RunData
from maskattn_kernels.segmentation.training.run_state import SafeStateIO, read_state, saved_batches
from maskattn_kernels.segmentation.training.self_training import LabelledAndPseudo, PseudoLabelled
from maskattn_kernels.segmentation.training.sync_norm import share_batch_norm
from maskattn_kernels.segmentation.training.task import chosen_task

__all__ = ["main", "run", "train"]

#: Images of each split whose labels are read and judged before training.
LABELS_READ = 100

#: Sections that a resumed run must share with the one that was stopped.
FIXED = ("seed", "steps", "data", "network", "loss", "optimizer", "freeze_encoder", "unlabelled")
#: Of those, what may differ: it changes no result.
FREE = ("data.workers", "data.root")


def main(argv: Sequence[str]) -> int:
    """Run ``maskattn train`` with the arguments ``argv``; returns the exit code."""
    config = parse(argv)
    scores = run(config)
    print("  ".join(f"{name} {score:.2f}" for name, score in scores.items()))
    for name in ("best", "final"):
        print(f"written: {Path(config.out) / name}")
    return 0


def train(config: str | Path | None = None, **options: Any) -> Checkpoint:
    """Train a network as ``maskattn train`` does.

    Args:
        config: a YAML file, or the name of a preset such as "digit-scenes-small"; None = defaults.
        options: of ``maskattn train`` by name, over those of the config; those of a section (data,
            network, loss, optimizer, trainer) in a dict under the section's name. Most used:

            - ``out``: folder of the run (default "out/train"); it keeps the logs, the state to
              resume from, and the checkpoints ``best`` and ``final``.
            - ``data``, ``root``: name and folder of the data set, see `open_dataset`;
              or ``data={"name": .., "root": .., "size": .., "batch_size": ..}``.
            - ``steps``: optimizer steps.
            - ``init_from``: a checkpoint to start from.
            - ``ckpt_path``: "last" to resume the run in ``out``.

    Returns:
        the checkpoint of the best validation, as in the folder ``best``.

    Raises:
        ValueError: an option, the data or a checkpoint cannot be used, in one line.
        KeyboardInterrupt: after Ctrl-C, with a line on how to resume.
        RuntimeError: what fails while running, a full disk among it.

    Example:
        >>> import tempfile
        >>> from maskattn_kernels.segmentation import train
        >>> checkpoint = train(
        ...     data={"name": "digit-scenes", "size": 32, "batch_size": 2, "options": {"count": 4}},
        ...     network={"width": 4, "depth": 2},
        ...     trainer={"accelerator": "cpu"},
        ...     steps=1,
        ...     out=tempfile.mkdtemp(),
        ... )
        >>> sorted(checkpoint.metrics)
        ['AP', 'AP50', 'PQ', 'RQ', 'SQ', 'mIoU']
    """
    parsed = parse(as_arguments(config, options))
    run(parsed)
    return Checkpoint.from_pretrained(Path(parsed.out) / "best")


def run(config: Namespace) -> dict[str, float]:
    """Train as a config says; returns the scores of the last validation.

    Args:
        config: from `options.parse`.

    Raises:
        ValueError: the config, the data or a checkpoint cannot be used.
        KeyboardInterrupt: after Ctrl-C, with the command that resumes.
        RuntimeError: what fails while running, a full disk among it.
    """
    with warnings.catch_warnings():
        # What Lightning advises (more workers, other logging intervals) is not ours to follow.
        warnings.filterwarnings("ignore", module=r"pytorch_lightning|lightning_fabric|torch")
        logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
        return _train(config)


def _train(config: Namespace) -> dict[str, float]:
    out = Path(config.out)
    state_path, state = _saved_state(config, out)
    batches = _batches(config)
    config.network.task, reason = chosen_task(config.network.task, batches)
    _say(f"task: {config.network.task} ({reason})")
    module = _module(config, batches)
    writable_folder(out)
    stop = StopRequest()
    trainer = _trainer(config, out, batches.batch_size, stop, int(state.get("global_step", 0)))
    if trainer.world_size > 1:
        share_batch_norm(module.network)
    if trainer.is_global_zero:
        (out / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    total = config.steps * config.trainer.accumulate_grad_batches
    data = RunData(batches, total, start=saved_batches(state) if state else 0)
    try:
        with stop.listen():
            trainer.fit(module, datamodule=data, ckpt_path=state_path, weights_only=True)
            if module.scored_at != trainer.global_step:  # no validation was due at the last step
                trainer.validate(module, datamodule=data, verbose=False)
    except Stopped as stopped:
        raise KeyboardInterrupt(
            f"stopped after step {stopped}; resume with: "
            f"maskattn train --config {out / 'config.yaml'} --ckpt_path last"
        ) from None
    save_network(trainer, module, out / "final")
    return module.scores


def _saved_state(config: Namespace, out: Path) -> tuple[Path | None, dict[str, Any]]:
    """The file to resume from, and what it holds; None and nothing for a new run."""
    if config.ckpt_path is None:
        if (out / "last.ckpt").exists() and "LOCAL_RANK" not in os.environ:
            raise ConfigError(
                f"out: {out} holds a run; resume it with --ckpt_path last, or choose another folder"
            )
        return None, {}
    path = out / "last.ckpt" if config.ckpt_path == "last" else Path(config.ckpt_path)
    state = read_state(path)
    _check_same(config, state)
    return path, state


def _trainer(
    config: Namespace, out: Path, batch_size: int, stop: StopRequest, resumed_at: int
) -> pl.Trainer:
    options = config.trainer
    return pl.Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=options.strategy,
        precision=options.precision,
        accumulate_grad_batches=options.accumulate_grad_batches,
        gradient_clip_val=options.gradient_clip_val,
        deterministic=options.deterministic,
        max_epochs=-1,
        max_steps=config.steps,
        check_val_every_n_epoch=None,
        val_check_interval=config.val_every * options.accumulate_grad_batches,
        log_every_n_steps=config.log_every,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=[
            ShowProgress(config.steps, batch_size, config.log_every),
            StopIfNotFinite(config.log_every, _rates(config)),
            SaveState(out, config.save_every, stop, config.log_every),
        ],
        logger=[
            CSVLog(out, resumed_at),
            TensorBoardLogger(out, name=None, version="tensorboard"),
        ],
        plugins=[SafeStateIO()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _rates(config: Namespace) -> dict[str, float]:
    names = ("lr", "muon_lr") if config.optimizer.name == "muon" else ("lr",)
    return {f"optimizer.{name}": config.optimizer[name] for name in names}


def _learn_from_unlabelled(config: Namespace, batches: Batches) -> None:
    """Add the images of ``--unlabelled``, with labels by the checkpoint of ``--init_from``."""
    teacher = Checkpoint.from_pretrained(config.init_from)
    if teacher.classes.names != batches.classes.names:
        raise ConfigError("unlabelled: the checkpoint of --init_from has other classes")
    device = "cpu" if config.trainer.accelerator == "cpu" else "auto"
    pseudo = PseudoLabelled(
        teacher, Path(config.unlabelled), config.confidence, torch_device(device)
    )
    for note in pseudo.notes:
        _say(f"note: {note}")
    _say(f"{len(pseudo)} images without labels; {pseudo.kept:.0%} of their pixels are sure enough")
    labelled = batches.dataset("train")
    batches.train_with(LabelledAndPseudo(labelled, batches.labelled(), pseudo))


def _batches(config: Namespace) -> Batches:
    arguments = config.data.as_dict()
    options = arguments.pop("options")
    batches = Batches(**arguments, seed=config.seed, **options)
    batches.open()
    _judge_labels(batches)
    if config.unlabelled:
        _learn_from_unlabelled(config, batches)
    return batches


def _judge_labels(batches: Batches) -> None:
    """Look at some labels of files, so that a run that cannot learn ends before it starts."""
    if batches.root is None or "LOCAL_RANK" in os.environ:
        return
    sets = {split: batches.dataset(split) for split in SPLITS}
    found = survey(sets, LABELS_READ, {"train": batches.labelled()})
    for note in found.notes:
        _say(f"note: {note}")
    for fault in found.faults:
        raise DataError(f"{batches.root}: {fault}")


def _module(config: Namespace, batches: Batches) -> SegmentationModule:
    torch.manual_seed(config.seed)
    classes = batches.classes
    network = SegmentationNetwork(len(classes), classes.things, **config.network.as_dict())
    options = config.loss.as_dict()
    if options["keep"] is None and config.network.selector in ("threshold", "gumbel"):
        options["keep"] = config.network.keep  # without this loss they select too much
    loss = SegmentationLoss(classes.things, network.task, **options)
    if config.init_from:
        trained = Checkpoint.from_pretrained(config.init_from)
        new = load_matching(network, trained.network)
        _say(f"weights of {config.init_from}; new: {', '.join(new) or 'none'}")
    return SegmentationModule(
        network,
        loss,
        classes,
        steps=config.steps,
        seed=config.seed,
        optimizer=OptimizerOptions(**config.optimizer.as_dict()),
        freeze_encoder=config.freeze_encoder,
        size=batches.size,
        run=_run_options(config),
    )


def _check_same(config: Namespace, state: dict[str, Any]) -> None:
    """A resumed run gives the result of an unbroken one only if it is the same run."""
    before = state.get("run", {})
    for name, value in _run_options(config).items():
        if before.get(name, value) != value:
            raise ConfigError(f"{name}: the run to resume has {before[name]}, got {value}")


def _run_options(config: Namespace) -> dict[str, str]:
    """The options that decide a run's result, by name, as text."""
    plain = {name: value for name, value in vars(config.as_flat()).items() if name not in FREE}
    return {n: json.dumps(v, default=str) for n, v in plain.items() if n.split(".")[0] in FIXED}


def _say(text: str) -> None:
    if "LOCAL_RANK" not in os.environ:
        print(text, file=sys.stderr, flush=True)
