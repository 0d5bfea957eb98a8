# SPDX-License-Identifier: BSD-3-Clause
"""``maskattn train``: from a config to a run's folder.

The folder holds ``config.yaml`` (every option as it was), ``train.csv`` and ``validation.csv``,
``tensorboard/``, ``last.ckpt`` (state to resume from), ``best/`` and ``final/`` (checkpoints).
"""

import logging
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from jsonargparse import Namespace
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import SIGTERMException

from maskattn_kernels.common.atomic import replace_file
from maskattn_kernels.common.text import one_line
from maskattn_kernels.segmentation.checkpoints import Checkpoint, CheckpointError
from maskattn_kernels.segmentation.training.building import make_batches, make_module
from maskattn_kernels.segmentation.training.callbacks import (
    SaveState,
    ShowProgress,
    Stopped,
    StopRequest,
    save_network,
)
from maskattn_kernels.segmentation.training.csv_log import CSVLog
from maskattn_kernels.segmentation.training.finite import Diverged, StopIfNotFinite
from maskattn_kernels.segmentation.training.keep_schedule import KeepOptions, KeepSchedule
from maskattn_kernels.segmentation.training.module import SegmentationModule
from maskattn_kernels.segmentation.training.options import as_arguments, parse, to_yaml
from maskattn_kernels.segmentation.training.processes import say
from maskattn_kernels.segmentation.training.reference import keep_reference
from maskattn_kernels.segmentation.training.resume import (
    check_data,
    check_processes,
    run_identity,
    saved_state,
)
from maskattn_kernels.segmentation.training.run_data import RunData
from maskattn_kernels.segmentation.training.run_folder import MARK, claimed
from maskattn_kernels.segmentation.training.run_state import (
    SafeStateIO,
    check_weights,
    saved_batches,
)
from maskattn_kernels.segmentation.training.sync_norm import share_batch_norm

__all__ = ["main", "run", "train"]


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
        KeyboardInterrupt: after Ctrl-C or SIGTERM, with the command that resumes.
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
        KeyboardInterrupt: after Ctrl-C or SIGTERM, with the command that resumes.
        CommandError: the loss or a weight is not finite any more.
        RuntimeError: what fails while running, a full disk among it.
    """
    with warnings.catch_warnings():
        # What Lightning advises (more workers, other logging intervals) is not ours to follow.
        warnings.filterwarnings("ignore", module=r"pytorch_lightning|lightning_fabric|torch")
        logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
        return _train(config)


def _train(config: Namespace) -> dict[str, float]:
    out = Path(config.out)
    state_path, state = saved_state(config, out)
    resumes = state_path is not None and state_path.resolve() == (out / "last.ckpt").resolve()
    with claimed(out, resume=resumes):
        end = _end(config, state) if resumes and (out / "final").is_dir() else ""
        if end:
            say(f"{out}: {end} --init_from {out / 'final'} --out ANOTHER")
            return Checkpoint.from_pretrained(out / "final").metrics
        return _train_in(out, config, state_path, state)


def _end(config: Namespace, state: dict[str, Any]) -> str:
    """Why a run is at its end, and what to do; "" if it is not."""
    done, waited = state["global_step"], state["callbacks"]["SaveState"].get("since_best", 0)
    if done == config.steps:
        return f"all {done} steps are done; to train on, start a new run with"
    if 0 < config.patience <= waited:
        return (
            f"ended after step {done}, by --patience; to train on, resume it with another one, or "
            "start a new run with"
        )
    return ""


def _train_in(
    out: Path, config: Namespace, state_path: Path | None, state: dict[str, Any]
) -> dict[str, float]:
    batches = make_batches(config)
    if state_path is not None:
        check_data(batches, state["run"])
    module = make_module(config, batches, run_identity(config, batches))
    stop = StopRequest()
    trainer = _trainer(config, out, batches.batch_size, stop, state, _schedules(config, module))
    module.run["processes"] = str(trainer.world_size)
    if state_path is not None:
        check_processes(trainer.world_size, state["run"])
        check_weights(state, state_path, module)
        say(f"resuming {state_path} after step {state['global_step']} of {config.steps}, in {out}")
    together = trainer.world_size * config.trainer.accumulate_grad_batches * batches.batch_size
    say(
        f"run: {config.steps} steps of {together} images on {trainer.strategy.root_device}, "
        f"validation every {config.val_every}, into {out}"
    )
    if trainer.world_size > 1:
        share_batch_norm(module.network)
    if trainer.is_global_zero:
        text = f"{MARK}\n{to_yaml(config)}"
        replace_file(out / "config.yaml", lambda path: path.write_text(text, encoding="utf-8"))
    total = config.steps * config.trainer.accumulate_grad_batches
    data = RunData(batches, total, start=saved_batches(state) if state else 0)
    try:
        with stop.listen():
            trainer.fit(module, datamodule=data, ckpt_path=state_path, weights_only=True)
            module.restoring = False
            if module.scored_at != trainer.global_step:  # no validation was due at the last step
                trainer.validate(module, datamodule=data, verbose=False)
    except (Stopped, Diverged, SIGTERMException) as error:
        if not trainer.is_global_zero:
            raise SystemExit(0) from None  # the first process tells the exit code of all
        if isinstance(error, Diverged):
            raise
        raise stop.interrupt(_how_to_resume(out, trainer.global_step)) from None
    except Exception as error:
        if module.restoring:
            raise CheckpointError(f"{state_path}: cannot be restored: {one_line(error)}") from error
        raise
    save_network(trainer, module, out / "final")
    if trainer.is_global_zero:
        keep_reference(out, batches, trainer.strategy.root_device)
    return module.scores


def _how_to_resume(out: Path, step: int) -> str:
    if not (out / "last.ckpt").exists():
        return f"stopped after step {step}; nothing is saved yet"
    resume = shlex.join(["--config", str(out / "config.yaml"), "--ckpt_path", "last"])
    return f"stopped after step {step}; resume with: maskattn train {resume}"


def _schedules(config: Namespace, module: SegmentationModule) -> list[pl.Callback]:
    if config.keep.schedule == "constant":
        return []
    options = KeepOptions(**config.keep.as_dict())
    return [KeepSchedule(module.network.body, options, config.steps, config.seed)]


def _trainer(
    config: Namespace,
    out: Path,
    batch_size: int,
    stop: StopRequest,
    state: dict[str, Any],
    schedules: list[pl.Callback],
) -> pl.Trainer:
    options = config.trainer
    saver = SaveState(out, config.save_every, stop, config.log_every, config.patience)
    last_row = state["callbacks"]["SaveState"]["row"] if state else None
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
            *schedules,
            ShowProgress(config.steps, batch_size, config.log_every),
            StopIfNotFinite(config.log_every, _rates(config)),
            saver,
        ],
        logger=[
            CSVLog(out, state.get("global_step", 0), last_row),
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
