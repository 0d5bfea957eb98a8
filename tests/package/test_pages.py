# SPDX-License-Identifier: BSD-3-Clause
"""README, CONTRIBUTING and docs/: their code runs, their links lead somewhere, the site builds."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT

from maskattn_kernels import __version__
from maskattn_kernels.segmentation import Checkpoint, Classes, SegmentationNetwork

DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
SOURCES = [
    ROOT / "setup.py",
    ROOT / "CMakeLists.txt",
    *(ROOT / "maskattn_kernels").rglob("*.py"),
    *(p for p in (ROOT / "csrc").rglob("*") if p.is_file()),
]
VARIABLE = re.compile(
    r"""environ(?:\.get\(|\.pop\(|\.setdefault\(|\[)\s*["'](\w+)"""
    r"""|["'](\w+)["']\s+(?:not\s+)?in\s+os\.environ"""
    r"""|getenv\(\s*["'](\w+)"""
    r"""|(?<!set\()ENV\{(\w+)\}"""  # of CMake, which may also set one for itself
)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.M | re.S)


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), flags=re.M)
    words = (re.sub(r"[^\w\s-]", "", heading.lower()).strip() for heading in headings)
    return {re.sub(r"\s+", "-", heading) for heading in words}


def test_every_picture_is_shown() -> None:
    shown = {link for page in PAGES for link in re.findall(r"!\[.*?\]\((.*?)\)", page.read_text())}
    assert {path.name for path in DOCS.glob("*.png")} == {Path(link).name for link in shown}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_of_the_repository(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target}: no such file"
        assert not anchor or anchor in anchors(file), f"{target}: no such heading"


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 900


@pytest.mark.parametrize(
    ("page", "answer"),
    [
        ("CONTRIBUTING.md", "the arithmetic of one block on the CPU | [vector_tier.cpp](csrc/"),
        ("docs/extending.md", "## Add a data set"),
        ("docs/segmentation.md", "`predict` needs a checkpoint and images, and nothing else"),
    ],
)
def test_strangers_find_answers_in_two_clicks(page: str, answer: str) -> None:
    assert f"]({page}" in (ROOT / "README.md").read_text()
    assert answer in (ROOT / page).read_text()


def test_figures_of_the_readme_are_those_of_the_benchmarks() -> None:
    section = (ROOT / "README.md").read_text().partition("## How fast")[2].partition("\n## ")[0]
    figures = set(re.findall(r"\b\d[\d.]*(?:x| MiB)(?!\w)", section)) - {"128 x"}
    measured = (DOCS / "benchmarks.md").read_text()
    assert len(figures) > 10
    assert not [figure for figure in figures if figure not in measured]


#: Training on pages is as a user wants it; here it takes one step on few and small scenes.
SHORT = (
    'train("digit-scenes-small", ',
    'train("digit-scenes-small", steps=1, network={"width": 4, "depth": 2}, '
    'data={"size": 32, "options": {"count": 8}, "val_options": {"count": 2}}, ',
)


@pytest.mark.parametrize("page", [p for p in PAGES if "```python" in p.read_text()], ids=name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page run one after another, in one namespace and in an empty folder."""
    monkeypatch.chdir(tmp_path)
    text = page.read_text()
    names: dict[str, object] = {}
    for block in re.finditer(r"^```python\n(.*?)^```$", text, flags=re.M | re.S):
        lines_before = "\n" * text[: block.start(1)].count("\n")  # for the line in a traceback
        exec(compile(lines_before + block[1].replace(*SHORT), str(page), "exec"), names)


def variables_read() -> set[str]:
    found = (VARIABLE.findall(path.read_text(errors="replace")) for path in SOURCES)
    return {word for hits in found for groups in hits for word in groups if word}


def test_every_environment_variable_is_documented() -> None:
    text = (DOCS / "start.md").read_text()
    own = text.partition("## Environment variables")[2].partition("Read by what lies below")[0]
    documented = set(re.findall(r"^\| `(\w+)`", own, flags=re.M))
    assert "MASKATTN_CPU_TIER" in documented
    assert documented == variables_read()


def test_version_is_the_same_everywhere() -> None:
    """CHANGELOG has Unreleased on top, then this version with the date of CITATION.cff."""
    sections = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    citation = (ROOT / "CITATION.cff").read_text()
    facts = dict(re.findall(r"^(version|date-released): (\S+)$", citation, flags=re.M))
    assert sections[:2] == ["Unreleased", f"{__version__} - {facts['date-released']}"]
    assert facts["version"] == __version__


def test_checkpoint_page_has_the_fields_of_a_checkpoint() -> None:
    example = re.search(r"```json\n(.*?)```", (DOCS / "checkpoints.md").read_text(), flags=re.S)
    shown = json.loads(example[1])
    classes = Classes(("car",), (True,), ((0, 0, 0),), (7,))
    saved = Checkpoint(SegmentationNetwork(1, (0,), width=4), classes, 32).description()
    assert shown.keys() == saved.keys() and shown["classes"].keys() == saved["classes"].keys()
    assert shown["format"] == saved["format"]
    assert shown["network"].keys() - saved["network"].keys() == {"..."}


def test_site_builds_strictly_and_needs_no_network(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    site = tmp_path / "site"
    build = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert build.returncode == 0, build.stdout + build.stderr
    loaded = re.compile(r"<(?:script|img|iframe)[^>]*\ssrc=\"https?:|<link[^>]*\shref=\"https?:")
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > len(list(DOCS.rglob("*.md")))  # and a 404.html
    for page in pages:
        assert not loaded.search(page.read_text()), f"{page.name} loads from the network"
