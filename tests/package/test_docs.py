# SPDX-License-Identifier: BSD-3-Clause
"""Public names are what they say, and documented; pytest itself runs the examples."""

import inspect

import pytest

import maskattn_kernels


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
