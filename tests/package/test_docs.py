# SPDX-License-Identifier: BSD-3-Clause
"""Public names are what they say, and documented; pytest itself runs the examples.

Public is what a module lists in ``__all__``, but for modules whose list is for the modules above
them (`INTERNAL`). What users import from (`FACES`) also has examples.
"""

import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from torch.nn import Module

import maskattn_kernels

FACES = (
    "maskattn_kernels",
    "maskattn_kernels.models",
    "maskattn_kernels.nn",
    "maskattn_kernels.segmentation",
)
INTERNAL = ("benchmark", "demo", "flops", "ops", "torch_compat")
NEED_MORE = ("fa4_", "tiles", "triton_")  # modules that need triton or flash-attn-4
SAME_ARGUMENTS = "Takes the arguments of `"


def modules() -> Iterator[ModuleType]:
    """Every module of the package that says what is public."""
    yield maskattn_kernels
    for found in pkgutil.walk_packages(maskattn_kernels.__path__, "maskattn_kernels."):
        part, own = found.name.split(".")[1], found.name.rpartition(".")[2]
        if part not in INTERNAL and not own.startswith(("_", *NEED_MORE)):
            module = importlib.import_module(found.name)
            if hasattr(module, "__all__"):
                yield module


def public_objects() -> dict[str, Any]:
    """Public functions and classes, by where they are defined."""
    found = {}
    for module in modules():
        for name in module.__all__:
            public = getattr(module, name)
            if inspect.isclass(public) or inspect.isfunction(public):
                found[f"{public.__module__}.{public.__qualname__}"] = public
    return {place: public for place, public in found.items() if place.startswith("maskattn")}


def public_methods() -> dict[str, tuple[type, Any]]:
    """(class, function) of the methods that a public class adds to those of its bases."""
    found = {}
    for place, kind in OBJECTS.items():
        for name, value in vars(kind).items() if inspect.isclass(kind) else ():
            function = getattr(value, "fget", None) or getattr(value, "__func__", value)
            inherited = [getattr(base, name, None) for base in kind.__mro__[1:]]
            promised = any(method not in (None, Module.forward) for method in inherited)
            if inspect.isfunction(function) and not name.startswith("_") and not promised:
                found[f"{place}.{name}"] = (kind, function)
    return found


def taken(function: Any) -> list[str]:
    """The names of the arguments that a call gives."""
    return [n for n in inspect.signature(function).parameters if n not in ("self", "cls")]


def given_at_construction(kind: type) -> list[str]:
    """A dataclass's and a tuple's are its fields."""
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind)]
    if hasattr(kind, "_fields"):
        return list(kind._fields)
    is_protocol = getattr(kind, "_is_protocol", False)
    return taken(kind.__init__) if "__init__" in vars(kind) and not is_protocol else []


def unnamed(names: list[str], doc: str) -> list[str]:
    return [name for name in names if not re.search(rf"\b{name}\b", doc, re.I)]


OBJECTS = public_objects()
METHODS = public_methods()
FACE_NAMES = [(face, name) for face in FACES for name in importlib.import_module(face).__all__]


@pytest.mark.parametrize("place", OBJECTS)
def test_functions_and_classes_name_what_they_take(place: str) -> None:
    public = OBJECTS[place]
    doc = vars(public).get("__doc__") or "" if inspect.isclass(public) else public.__doc__ or ""
    names = given_at_construction(public) if inspect.isclass(public) else taken(public)
    assert doc and not doc.startswith(f"{public.__name__}("), "no docstring of its own"
    assert SAME_ARGUMENTS in doc or not unnamed(names, doc), unnamed(names, doc)


@pytest.mark.parametrize("place", METHODS)
def test_methods_name_what_they_take(place: str) -> None:
    """In their own docstring, or in that of the class or of a base."""
    kind, function = METHODS[place]
    ours = [c for c in kind.__mro__ if c.__module__.startswith("maskattn_kernels")]
    doc = "\n".join(documented.__doc__ or "" for documented in (function, *ours))
    assert function.__doc__ or function.__name__ == "forward", "no docstring"
    assert SAME_ARGUMENTS in doc or not unnamed(taken(function), doc)


@pytest.mark.parametrize(("face", "name"), FACE_NAMES)
def test_what_users_import_has_an_example(face: str, name: str) -> None:
    public = getattr(importlib.import_module(face), name)
    is_error = inspect.isclass(public) and issubclass(public, Exception)
    if (inspect.isclass(public) or inspect.isfunction(public)) and not is_error:
        assert ">>>" in (public.__doc__ or "")


def test_star_import_gives_the_public_names() -> None:
    names: dict[str, object] = {}
    exec("from maskattn_kernels import *", names)
    assert set(maskattn_kernels.__all__) - names.keys() == set()
