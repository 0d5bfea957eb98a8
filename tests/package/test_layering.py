# SPDX-License-Identifier: BSD-3-Clause
"""The house rules: which way imports run, who reaches compiled code, what C++ may include."""

import ast
import re
from pathlib import Path

import pytest
from repository import ROOT

from maskattn_kernels.common.extras import IMPORT_NAMES

PACKAGE = ROOT / "maskattn_kernels"
MODULES = sorted(PACKAGE.rglob("*.py"))
CSRC = ROOT / "csrc"
TWIN = ROOT / "tests" / "cuda_twin"
SOURCES = sorted(
    path
    for folder in (CSRC, TWIN)
    for path in folder.rglob("*")
    if path.suffix in (".h", ".cpp", ".cu", ".cuh")
)

# Extras whose packages the product imports; and those that only tests and tools need.
TOLD = (
    "bench",
    "demo",
    "fa4",
    "onnx",
    "openvino",
    "predict",
    "pretrained",
    "segmentation",
    "smp",
    "timm",
    "train",
    "transformers",
)
FOR_DEVELOPERS = ("docs", "test", "dev")

# Lower layers first; a module imports only from its own layer or from lower ones.
COMPAT = "torch_compat"
LAYERS = (
    (COMPAT,),
    ("problem", "token_index", "_version", "common"),
    ("backends", "flops"),
    ("op_table", "biases", "validation"),
    ("autograd_functions",),
    ("ops",),
    ("functional",),
    ("explanation", "distributed", "graphs"),
    ("nn",),
    ("models", "swap"),
    ("benchmark", "segmentation"),
    ("demo", "info", "integrations", "tiles"),
    ("cli",),
)
# The same for the wings of segmentation; its face, `__init__`, opens every one of them when asked.
WINGS = (
    ("data",),
    ("model", "sessions"),
    ("model_card", "results", "runtimes", "tiling"),
    ("reading",),
    ("infer",),
    ("checkpoint_files", "drift"),
    ("encoder_weights",),
    ("checkpoints",),
    ("scoring", "prediction"),
    ("exporting", "picking"),
    ("reporting", "training"),
)
WING_RANK = {name: rank for rank, wings in enumerate(WINGS) for name in wings}
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
# What each may import of the package besides: the public names are for those above functional.
LEAVES = (COMPAT, "problem", "token_index", "_version", "common")
CORE = (
    COMPAT,
    "problem",
    "token_index",
    "backends",
    "flops",
    "op_table",
    "biases",
    "validation",
    "autograd_functions",
    "ops",
    "functional",
    "explanation",
)
# What the core never imports: what extras bring, and what is not in the package.
NOT_IN_THE_CORE = {*IMPORT_NAMES.values(), "cutlass", "tests", "bench"}
FA4 = "maskattn_kernels.backends.fa4_kernels"  # which is loaded where its extra is installed


def test_the_table_of_packages_is_that_of_pyproject() -> None:
    """So neither the rule about the core nor the hint which extra to install can miss a package."""
    tomllib = pytest.importorskip("tomllib", reason="tomllib comes with Python 3.11")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    asked = {re.split(r"[^\w-]", r)[0] for extra in TOLD for r in extras[extra]}
    assert asked - {"maskattn_kernels"} == set(IMPORT_NAMES)
    assert set(extras) == {*TOLD, *FOR_DEVELOPERS}


def part(module: str) -> str:
    """The part of the package that a dotted name belongs to; '' for the package itself."""
    return [*module.split("."), ""][1]


def own_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


def imports(path: Path) -> list[tuple[str, bool]]:
    """(dotted name, inside a function) of all that a module imports."""
    tree = ast.parse(path.read_text())
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            base = node.module or ""
            for alias in node.names:
                submodule = PACKAGE.parent / base.replace(".", "/") / alias.name
                is_module = submodule.is_dir() or submodule.with_suffix(".py").exists()
                found.append((f"{base}.{alias.name}" if is_module else base, id(node) in inside))
    return found


def own_imports(path: Path) -> list[tuple[str, bool]]:
    return [(m, f) for m, f in imports(path) if m.split(".")[0] == "maskattn_kernels"]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: own_name(p))
def test_imports_run_one_way(path: Path) -> None:
    name = part(own_name(path))
    if not name:
        return  # the package's own __init__ gathers the public names
    assert name in RANK, f"give {name} a layer"
    for module, in_function in own_imports(path):
        other = part(module)
        dodges = in_function and (name in CORE or other == name)
        assert not dodges, f"{path.name}: an import inside a function dodges a cycle: {module}"
        if name in CORE:
            assert other, f"{path.name}: the core imports its modules, not the package"
        if other:
            assert RANK[other] < RANK[name] or other == name, f"{path.name} imports {module}"
        if name in LEAVES:
            assert other in (name, COMPAT), f"{path.name} is a leaf and imports {module}"
        if name in ("nn", "models"):
            assert other != "backends", f"{path.name}: pass backend= down instead"


@pytest.mark.parametrize(
    "path", [p for p in MODULES if "segmentation" in p.parts], ids=lambda p: own_name(p)
)
def test_imports_between_the_wings_of_segmentation_run_one_way(path: Path) -> None:
    wing = [*own_name(path).split("."), ""][2]
    if not wing:
        return  # the face
    assert wing in WING_RANK, f"give {wing} a place among the wings"
    for module, _ in own_imports(path):
        if part(module) == "segmentation":
            other = [*module.split("."), ""][2]
            assert other, f"{path.name} imports the face, which imports it"
            assert WING_RANK[other] < WING_RANK[wing] or other == wing, f"{path.name}: {module}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: own_name(p))
def test_outside_imports_stay_in_their_place(path: Path) -> None:
    name = own_name(path)
    for module, _ in imports(path):
        assert module != "maskattn_kernels._dev", f"{name} needs what wheels lack"
        if module.split(".")[0] == "triton":
            assert name.startswith("maskattn_kernels.backends.triton_"), f"{name} imports triton"
        if part(name) in (*CORE, "nn", "models", "swap", "") and name != FA4:
            assert module.split(".")[0] not in NOT_IN_THE_CORE, f"{name} imports {module}"
    if name == "maskattn_kernels.backends.reference":
        known = ("backends.arguments", "backends.base", "problem", "token_index")
        own = {m.removeprefix("maskattn_kernels.") for m, _ in own_imports(path)}
        assert own <= set(known), "the yardstick stands on its own"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: own_name(p))
def test_private_names_of_torch_are_in_one_module(path: Path) -> None:
    """What a new torch may change is found in torch_compat.py."""
    if part(own_name(path)) not in (*CORE, "nn", "models", "swap", "") or path.stem == COMPAT:
        return
    named = {
        ast.unparse(n)
        for n in ast.walk(ast.parse(path.read_text()))
        if isinstance(n, ast.Attribute)
    }
    named |= {module for module, _ in imports(path)}
    private = [n for n in named if re.match(r"torch\.([a-z]\w*\.)*_(?!_)", n)]
    assert not private, f"{path.name} uses {private}"


def test_one_module_loads_the_libraries() -> None:
    loads = [own_name(path) for path in MODULES if "load_library" in path.read_text()]
    assert loads == ["maskattn_kernels.backends.native"]


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), flags=re.MULTILINE)


def own_headers(path: Path) -> list[Path]:
    """The headers of this repository that a C++ file includes."""
    found = []
    for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', path.read_text(), flags=re.MULTILINE):
        places = [(folder / name).resolve() for folder in (path.parent, CSRC, TWIN.parent)]
        found += [next((place for place in places if place.exists()), places[0])]
        assert found[-1].exists(), f"{path.name}: no {name}"
    return found


def library(path: Path) -> str:
    """The library that a C++ file belongs to; '' for what both share."""
    if TWIN in path.parents:
        return "cuda"
    folders = {"cpu": "cpu", "cuda": "cuda", "python": "cpu"}
    return folders.get(path.relative_to(CSRC).parts[0], "")


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_includes(path: Path) -> None:
    """Device code sees no torch header, the CPU and the CUDA library not each other."""
    for header in own_headers(path):
        assert library(header) in ("", library(path)), header
        if TWIN in header.parents and TWIN not in path.parents:
            assert path.name in ("device.cuh", "gpu.h"), f"{path.name} knows of the tests"
    for header in includes(path):
        if path.suffix in (".cu", ".cuh") or path.name == "params.h":
            assert not re.match(r"(torch|ATen|c10)/", header), header
        if re.match(r"pybind11/|Python\.h", header):
            assert path.parent == CSRC / "python", "no library depends on Python"
        if header.startswith("torch/"):
            stable = re.match(r"torch/(csrc/stable|headeronly|csrc/inductor/aoti_torch)/", header)
            assert stable, f"{header} is outside torch's stable ABI"


OTHERS = sorted(p for folder in ("tests", "bench", "tools") for p in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize(
    "path", [*MODULES, *SOURCES, *OTHERS], ids=lambda p: str(p.relative_to(ROOT))
)
def test_every_file_is_short_and_licensed(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 400, f"{len(lines)} lines"
    assert "SPDX-License-Identifier: BSD-3-Clause" in lines[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: own_name(p))
def test_no_assert_statements(path: Path) -> None:
    """`python -O` removes them, and with them the check."""
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(path.read_text())))
