# SPDX-License-Identifier: BSD-3-Clause
"""Public names: what they are, that they are documented, and that the examples run."""

import doctest
import importlib
import inspect

import pytest

import maskattn_kernels

MODULES = ("functional", "token_index")


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module: str) -> None:
    results = doctest.testmod(importlib.import_module(f"maskattn_kernels.{module}"))
    assert results.attempted > 0 and results.failed == 0


@pytest.mark.parametrize("name", maskattn_kernels.__all__)
def test_public_names_are_documented(name: str) -> None:
    public = getattr(maskattn_kernels, name)
    if inspect.isfunction(public):
        doc = inspect.getdoc(public) or ""
        assert ">>>" in doc, "no example"
        for parameter in inspect.signature(public).parameters:
            assert f"{parameter}:" in doc or "Takes the arguments of" in doc, parameter


def test_star_import_gives_the_public_names() -> None:
    names: dict[str, object] = {}
    exec("from maskattn_kernels import *", names)
    assert set(maskattn_kernels.__all__) - names.keys() == set()
