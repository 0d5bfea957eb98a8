# SPDX-License-Identifier: BSD-3-Clause
"""Exported programs of torch, in Python and in a C++ program; and `predict` with exported files."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from building import COMPILER
from PIL import Image
from repository import ROOT

import maskattn_kernels
from maskattn_kernels import backends, cli
from maskattn_kernels.segmentation import Checkpoint, Classes, SegmentationNetwork, export, predict
from maskattn_kernels.segmentation.checkpoint_files import digest
from maskattn_kernels.segmentation.exporting import checking
from maskattn_kernels.segmentation.exporting.programs import EXTRA_FILE
from maskattn_kernels.segmentation.runtimes import Exported

SIZE = (24, 32)


@pytest.fixture(autouse=True)
def short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "_SECONDS", 0.0)


def made(task: str = "panoptic") -> Checkpoint:
    torch.manual_seed(0)
    network = SegmentationNetwork(3, [1], task, selector="topk", width=4, depth=1).eval()
    classes = Classes(("a", "b", "c"), (False, True, False), ((0, 0, 0),) * 3, (0, 1, 2))
    return Checkpoint(network, classes, SIZE)


def save_pictures(folder: Path, *sizes: tuple[int, int]) -> None:
    folder.mkdir()
    for i, (height, width) in enumerate(sizes):
        pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")


def test_a_program_is_the_network(tmp_path: Path) -> None:
    checkpoint, out = made(), tmp_path / "out"
    told = export(checkpoint, out, SIZE, format="pt2", batch=None)
    assert [check["runtime"] for check in told["checks"]] == ["torch"]
    assert told["checks"][0]["labels_equal"] == 1
    inside = {EXTRA_FILE: ""}
    program = torch.export.load(out / "model.pt2", extra_files=inside)
    assert json.loads(inside[EXTRA_FILE])["weights_sha256"] == told["weights_sha256"]
    assert "maskattn" in str(program.graph)  # our op, not what it is lowered to
    images = torch.randint(0, 256, (3, 3, *SIZE), dtype=torch.uint8)
    outputs = Exported(out, "torch")(images)
    with torch.inference_mode():
        expected = checkpoint.network(images)
    for name in ("semantic", "center", "offset"):
        assert torch.allclose(getattr(outputs, name), getattr(expected, name), atol=1e-4), name


@pytest.mark.parametrize("format", ["pt2", "aoti"])
def test_programs_compute_in_bfloat16(format: str, tmp_path: Path) -> None:
    """As torch does in bfloat16, on most pixels: each rounds in its own order."""
    if format == "aoti" and not (COMPILER and backends()[0].available):
        pytest.skip("needs a C++ compiler and the library")
    checkpoint, out = made("semantic"), tmp_path / "out"
    told = export(checkpoint, out, SIZE, format=format, precision="bf16", labels_only=True)
    assert told["precision"] == "bf16" and told["checks"][0]["labels_equal"] > 0.98
    inside = out / "model.pt2"
    export(checkpoint, tmp_path / "exact", SIZE, format="pt2", labels_only=True)
    assert inside.stat().st_size > 0
    images = torch.randint(0, 256, (1, 3, *SIZE), dtype=torch.uint8)
    made_labels = Exported(out, "torch").batch(images)["labels"]
    exact = Exported(tmp_path / "exact", "torch").batch(images)["labels"]
    assert (made_labels == exact).mean() > 0.9


@pytest.mark.skipif(not COMPILER, reason="needs a C++ compiler")
@pytest.mark.skipif(not backends()[0].available, reason="; ".join(backends()[0].reasons))
def test_a_compiled_program_runs_in_python_and_in_a_program_without(tmp_path: Path) -> None:
    checkpoint, out = made("semantic"), tmp_path / "out"
    told = export(checkpoint, out, SIZE, format="aoti", labels_only=True)
    assert told["checks"][0]["labels_equal"] >= 0.999
    save_pictures(tmp_path / "in", SIZE)
    picture = np.array(Image.open(tmp_path / "in" / "0.png"))
    expected = Exported(out, "torch").named(picture[None])["labels"][0]
    if shutil.which("cmake") is None:
        pytest.skip("needs cmake")
    build, example = tmp_path / "build", ROOT / "examples" / "cpp"
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    configure = ["-S", example, "-B", build, prefix]
    for arguments in (configure, ["--build", build, "--target", "segment"]):
        done = subprocess.run(["cmake", *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    Image.fromarray(picture).save(tmp_path / "in.ppm")
    library = Path(maskattn_kernels.__path__[0]) / "lib" / "libmaskattn_cpu.so"
    words = [build / "segment", library, out / "model.pt2", "in.ppm", "labels.pgm"]
    done = subprocess.run(words, env={}, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "written: labels.pgm, 24 x 32\n"
    assert (np.array(Image.open(tmp_path / "labels.pgm")) == expected).all()
    (tmp_path / "in.ppm").write_bytes(b"P6 32 24 255\nshort")
    done = subprocess.run(words, env={}, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == "segment: in.ppm: is cut off\n"


def labels(folder: Path) -> dict[str, np.ndarray]:
    files = [*folder.glob("labels/*.png"), *folder.glob("instances/*.png")]
    return {f"{p.parent.name}/{p.name}": np.array(Image.open(p)) for p in files}


def test_predict_gives_the_same_with_a_file(tmp_path: Path, capsys: Any) -> None:
    """And the same report. Images of the file's size go through it whole, others in tiles."""
    checkpoint = made()
    checkpoint.save_pretrained(tmp_path / "saved")
    export(checkpoint, tmp_path / "file", SIZE, format="pt2")
    save_pictures(tmp_path / "in", SIZE, (48, 64))
    save_pictures(tmp_path / "large", (40, 50))
    words = ["--checkpoint", str(tmp_path / "saved"), "--panels", "1"]
    file = ["--exported", str(tmp_path / "file")]
    for source, more in (("in", []), ("large", ["--tiles", "24x32"])):
        shown = []
        for way, options in (("torch", []), ("file", file)):
            out = tmp_path / f"{source}-{way}"
            arguments = ["predict", str(tmp_path / source), "--out", str(out), *words, *more]
            assert cli.main([*arguments, *options]) == 0
            shown.append(capsys.readouterr().out)
            summary = json.loads((out / "summary.json").read_text())
            assert summary["runtime"] == f"torch {torch.__version__}"
            assert summary["exported"] == (str(tmp_path / "file") if options else None)
            assert summary["network"]["latency_ms"] > 0 and summary["selector"] == "topk"
        a, b = (labels(tmp_path / f"{source}-{way}") for way in ("torch", "file"))
        assert a.keys() == b.keys() and len(a) > 1
        assert all((a[name] == b[name]).mean() > 0.999 for name in a)
        assert [text.count("images/s") for text in shown] == [2, 2]


def test_predict_takes_onnx_files(tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    checkpoint = made()
    export(checkpoint, tmp_path / "file", SIZE)
    save_pictures(tmp_path / "in", SIZE)
    predict(tmp_path / "in", checkpoint, tmp_path / "a", panels=0)
    told = predict(
        *(tmp_path / "in", checkpoint, tmp_path / "b"),
        panels=0,
        runtime="onnxruntime",
        exported=tmp_path / "file",
    )
    assert told["runtime"].startswith("onnxruntime ")
    a, b = labels(tmp_path / "a"), labels(tmp_path / "b")
    assert len(a) == 2 and all((a[name] == b[name]).mean() > 0.999 for name in a)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"runtime": "openvino"}, r'^exported: .* with the runtime "openvino", got none$'),
        ({"exported": "nowhere"}, "^exported: expected a folder that `maskattn export` wrote"),
        ({"runtime": "openvino", "exported": "file"}, r'^runtime: expected "torch" for .*"pt2"'),
        ({"exported": "file", "precision": "bfloat16"}, "^precision: expected float32 with the"),
        ({"exported": "file", "compile": True}, "^compile: expected none with an exported file"),
        ({"exported": "file", "device": "meta"}, "^device: expected cpu with an exported file"),
        ({"exported": "file", "keep": 0.5}, "^keep: expected none with an exported file"),
        ({"exported": "other"}, "^exported: expected a file made of this checkpoint, got other$"),
    ],
)
def test_what_predict_refuses(
    options: dict[str, Any], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = made()
    for folder, source in (("file", checkpoint), ("other", made("semantic"))):
        (tmp_path / folder).mkdir()
        write_stub(tmp_path / folder, digest(source.network.state_dict()))
    with pytest.raises(ValueError, match=line):
        predict(ROOT / "docs" / "legend.png", checkpoint, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def write_stub(folder: Path, sha256: str) -> None:
    """An export with a program that gives nothing: what is refused is refused before it runs."""
    program = torch.export.export(torch.nn.Identity(), (torch.zeros(1),))
    torch.export.save(program, folder / "model.pt2")
    described = {"format": 1, "kind": "pt2", "file": "model.pt2", "size": SIZE, "batch": 1}
    described |= {"weights_sha256": sha256, "outputs": ["labels"], "layout": "nhwc"}
    (folder / "export.json").write_text(json.dumps(described))
