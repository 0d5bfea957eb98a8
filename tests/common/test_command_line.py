# SPDX-License-Identifier: BSD-3-Clause
"""Types of arguments that the commands share."""

import argparse
from typing import Any

import pytest

from maskattn_kernels.common.command_line import fraction, key_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[(word, True) for word in ("true", "True", "yes", "on")],
        *[(word, False) for word in ("false", "no", "OFF")],
        ("null", None),
        *[("3", 3), ("-2", -2), ("0", 0)],
        *[("1.5", 1.5), (".5", 0.5), ("2.", 2.0), ("1e-3", 0.001), ("-1E3", -1000.0)],
        *[(word, word) for word in ("shifted", "", "a=b", "1_000", "nan", "1,5", "{a: 1}")],
        *[("'2017'", "2017"), ('"yes"', "yes"), ('"', '"')],
    ],
)
def test_values_of_options(text: str, value: Any) -> None:
    key, got = key_value(f"option={text}")
    assert (key, got, type(got)) == ("option", value, type(value))


@pytest.mark.parametrize("text", ["legend", "=yes", ""])
def test_an_option_needs_a_key_and_a_value(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected KEY=VALUE, got"):
        key_value(text)


@pytest.mark.parametrize(("text", "value"), [("0", 0.0), ("1", 1.0), (".25", 0.25), ("1e-2", 0.01)])
def test_fractions(text: str, value: float) -> None:
    assert fraction(text) == value


@pytest.mark.parametrize("text", ["", "x", "-0.1", "1.01", "nan", "inf"])
def test_what_is_no_fraction(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"^expected a number from 0 to 1, got '"):
        fraction(text)
