# SPDX-License-Identifier: BSD-3-Clause
"""docs/integrations.md: all its code runs; its blocks of `py` need other libraries, or warn."""

import re
import warnings

import pytest
from optional_timm import import_timm
from repository import ROOT

PAGE = ROOT / "docs" / "integrations.md"


def test_all_blocks_run(tmp_path, monkeypatch):
    import_timm()
    pytest.importorskip("transformers", reason="needs the package transformers")
    smp = "segmentation_models_pytorch"
    pytest.importorskip(smp, reason="needs the package segmentation-models-pytorch")
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text()
    names: dict[str, object] = {}
    for block in re.finditer(r"^```py(?:thon)?\n(.*?)^```$", text, flags=re.M | re.S):
        lines_before = "\n" * text[: block.start(1)].count("\n")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(compile(lines_before + block[1], str(PAGE), "exec"), names)
