# SPDX-License-Identifier: BSD-3-Clause
"""The table of finished runs, ``runs.jsonl``: a line a run.

A line holds the run's name, its commit, its seed, the minutes that training and scoring took, the
machine (not known of the first 64 runs), the scores, and ``config``: the options in which the run
differs from runs_config.yaml, which holds what all runs share. The two give the complete config of
a run. Names with dots are options within sections: ``data.limit``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from bench.trainings import Record, Table

HERE = Path(__file__).resolve().parent
TABLE, SHARED = Table(HERE / "runs.jsonl"), HERE / "runs_config.yaml"

Config = dict[str, Any]


def shared() -> Config:
    """The options that all runs share."""
    return yaml.safe_load(SHARED.read_text(encoding="utf-8"))


def config_of(record: Record) -> Config:
    """The complete config of a run, as ``maskattn train`` saved it."""
    config = {"out": f"out/study/{record['run']}", "seed": record["seed"], **shared()}
    for name, value in record["config"].items():
        *sections, option = name.split(".")
        section = config
        for part in sections:
            section = section[part]
        section[option] = value
    return config


def differences(config: Config) -> Config:
    """The options in which a saved config differs from `shared`, without ``out`` and ``seed``.

    Raises:
        ValueError: the config lacks an option of `shared`: `config_of` would not give it back.
    """
    own = {name: value for name, value in config.items() if name not in ("out", "seed")}
    return dict(_differences(own, shared(), ""))


def _differences(config: Config, shared: Config, prefix: str) -> Iterator[tuple[str, Any]]:
    if missing := shared.keys() - config.keys():
        raise ValueError(f"the config has no {prefix}{min(missing)}, which {SHARED.name} has")
    for name, value in config.items():
        both = isinstance(value, dict) and isinstance(shared.get(name), dict)
        if both:
            yield from _differences(value, shared[name], f"{prefix}{name}.")
        elif name not in shared or value != shared[name]:
            yield f"{prefix}{name}", value
