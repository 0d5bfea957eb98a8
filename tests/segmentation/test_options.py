# SPDX-License-Identifier: BSD-3-Clause
"""Options of `maskattn train`: every one that cannot be used is named, and no file costs much."""

import json
import random
import sys

import pytest
import yaml
from segmentation_runs import TINY

from maskattn_kernels.segmentation.training.options import ConfigError, parse


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("seed", "-1", "expected a whole number from 0, got -1"),
        ("seed", "9" * 20, "expected a whole number from 0 to 4294967295, got a huge number"),
        ("network.seed", "-3", "expected a whole number from 0, got -3"),
        ("steps", str(10**12), "expected a whole number from 1 to 1000000000, got 1000000000000"),
        ("optimizer.lr", "nan", "expected float, got nan"),
        ("optimizer.muon_lr", "-1", "expected a number from 0, got -1.0"),
        ("optimizer.warmup", "2", "expected a number from 0 to 1, got 2.0"),
        ("loss.center_weight", "inf", "expected float, got inf"),
        ("trainer.gradient_clip_val", "-2", "expected a number from 0, got -2.0"),
        ("network.task", "detection", "[Ee]xpected"),
        ("network.keep", "x", r"expected float or dict\[str, float\], got x"),
    ],
)
def test_a_wrong_value_names_its_option(option, value, says):
    with pytest.raises(ConfigError, match=rf"^{option}: .*{says}") as caught:
        parse([f"--{option}={value}"])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 310


def test_keep_is_a_number_or_a_number_for_each_scale():
    assert parse(["--network.keep=0.1"]).network.keep == 0.1
    assert parse(['--network.keep={"up1": 0.1, "up2": 1}']).network.keep == {"up1": 0.1, "up2": 1.0}
    with pytest.raises(ConfigError, match=r"^network\.keep: expected a number with the selector"):
        parse(['--network.keep={"up1": 0.1}', "--network.selector=gumbel"])


@pytest.mark.parametrize("section", ["options", "val_options"])
def test_options_of_data_import_nothing(section, tmp_path, monkeypatch):
    (tmp_path / "exploding.py").write_text("raise SystemExit('imported')\n\nclass Bomb: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = tmp_path / "config.yaml"
    config.write_text(f"data: {{{section}: {{x: {{class_path: exploding.Bomb}}}}}}\n")
    with pytest.raises(ConfigError, match=rf"^data.{section}"):
        parse(["--config", str(config)])
    parsed = parse([f"--data.{section}", '{"class_path": "exploding.Bomb"}'])
    assert parsed.data[section] == {"class_path": "exploding.Bomb"}
    assert "exploding" not in sys.modules


def test_plain_options_of_data_stay_what_they_are():
    expected = {"count": 3, "legend": True, "textures": "shifted", "share": 0.5, "b": [1, None]}
    parsed = parse(["--data.options", json.dumps(expected)])
    assert parsed.data.options == expected
    assert all(type(parsed.data.options[k]) is type(v) for k, v in expected.items())


def bomb(levels: int) -> str:
    first = "a0: &a0 [x, x, x, x, x, x, x, x, x]"
    more = (f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, levels))
    return "\n".join([first, *more, f"network: *a{levels - 1}", ""])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (bomb(12), "has more than 100000 values, by its aliases$"),
        (bomb(3), "^"),
        ("steps: &a [*a]\n", "holds itself"),
        ("[" * 100_000, "nested too deeply"),
        ("steps: {" + "a" * 10**6 + ": 1}\n", "^"),
        ("network: " + "x" * 10**6 + "\n", "^"),
        ("a: b: c", "cannot be read as YAML"),
        ("- 1\n- 2\n", "^"),
        ("!!python/object/apply:os.system ['true']\n", "^"),
        ("\x00", "cannot be read as YAML"),
    ],
    ids=lambda value: value[:12],
)
def test_a_hostile_config_is_one_short_line(text, says, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        parse(["--config", str(config)])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("option", ["steps", "optimizer.lr", "trainer.strategy", "data.size"])
def test_null_is_no_value(option, tmp_path):
    section, _, name = option.rpartition(".")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({section: {name: None}} if section else {name: None}))
    with pytest.raises(ConfigError, match=rf"^{option}: expected a value such as .*, got null$"):
        parse(["--config", str(config)])


def test_aliases_of_sense_are_read(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("val_every: &every 5\nsave_every: *every\n")
    assert parse(["--config", str(config)]).save_every == 5


def test_a_folder_called_like_a_preset_is_no_config(tmp_path, monkeypatch):
    (tmp_path / "own-data").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse(["--config", "own-data"]).data.name == "folder"


HOSTILE = [None, True, -1, 0, 1.5, 2**70, float("nan"), "", "x", "1", "x" * 3000, [], {}, [[1]]]
HOSTILE += [{"class_path": "this.Foo"}, {"a": {"b": 1}}, "null", "!!python/name:os.system"]


def places(part, path=()):
    yield path
    if isinstance(part, dict):
        for name in part:
            yield from places(part[name], (*path, name))


@pytest.mark.parametrize("seed", range(4))
def test_damaged_configs_are_refused_in_one_line_or_read(seed, tmp_path):
    """Values replaced, and bytes changed."""
    rng = random.Random(seed)
    whole = yaml.safe_load(TINY)
    config = tmp_path / "config.yaml"
    for _ in range(40):
        changed = yaml.safe_load(TINY)
        if rng.random() < 0.5:
            *where, last = rng.choice([path for path in places(whole) if path])
            part = changed
            for name in where:
                part = part[name]
            part[last] = rng.choice(HOSTILE)
            config.write_text(yaml.safe_dump(changed))
        else:
            data = bytearray(TINY, "ascii")
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            config.write_bytes(data)
        said = ""
        try:
            parse(["--config", str(config)])
        except ConfigError as error:
            said = str(error)
        assert "\n" not in said and len(said) < 400, config.read_bytes()
