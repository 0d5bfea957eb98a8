# SPDX-License-Identifier: BSD-3-Clause
"""``maskattn export``: ONNX files with the masks inside give torch's results in other runtimes."""

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskattn_kernels import cli
from maskattn_kernels.segmentation import Checkpoint, Classes, SegmentationNetwork, export
from maskattn_kernels.segmentation.exporting import checking, command, precisions
from maskattn_kernels.segmentation.exporting.onnx_file import half_weights
from maskattn_kernels.segmentation.exporting.tensorrt import tensorrt_faults, with_types_of_tensorrt
from maskattn_kernels.segmentation.model.grouping import group
from maskattn_kernels.segmentation.runtimes import Exported

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

SIZE = (32, 48)
#: Networks and forms of files that together have every selector, head, layout and kind of batch.
EXPORTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "learned masks, any batch": (
        {"selector": "gumbel-topk", "num_heads": 2, "unselected": "mean"},
        {"batch": None},
    ),
    "masks of windows": (
        {"selector": "local", "sparsity": "qk", "task": "semantic", "attention_norm": "before"},
        {"precision": "fp16"},
    ),
    "the preset for small devices": (
        {"preset": "mobile", "selector": "gumbel-topk", "task": "semantic"},
        {},
    ),
    "frm, entropy": (
        {"arch": "frm", "preset": "tiny", "selector": "entropy", "objects": "distance"},
        {"layout": "nchw", "batch": 2},
    ),
}


def made(**config: Any) -> Checkpoint:
    torch.manual_seed(0)
    own = {} if "preset" in config else {"width": 4, "depth": 1}
    network = SegmentationNetwork(3, [1], **own, **{"task": "panoptic", **config}).eval()
    for head in network.coarse_heads:  # random heads are unsure everywhere alike
        head.weight.data *= 20
    classes = Classes(("a", "b", "c"), (False, True, False), ((0, 0, 0),) * 3, (0, 1, 2))
    return Checkpoint(network, classes, SIZE)


def pictures(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, *SIZE), dtype=torch.uint8)


def plain() -> Checkpoint:
    return made(selector="random", task="semantic")


@pytest.fixture(autouse=True)
def short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "_SECONDS", 0.0)


@pytest.fixture(scope="module")
def plain_file(tmp_path_factory: Any) -> Path:
    out = tmp_path_factory.mktemp("plain") / "out"
    export(plain(), out, SIZE)
    return out


@pytest.fixture
def no_work(plain_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports of `plain` copy a file that is there: writing one takes seconds."""
    file = plain_file / "model.onnx"
    monkeypatch.setattr(command, "write_onnx", lambda path, *_, **__: shutil.copy(file, path))


@pytest.mark.parametrize("name", EXPORTS)
def test_an_export_gives_the_outputs_of_torch_in_every_runtime(name: str, tmp_path: Path) -> None:
    config, options = EXPORTS[name]
    checkpoint, out = made(**config), tmp_path / "made"
    half = options.get("precision") == "fp16"  # which are other weights
    told = export(checkpoint, out, SIZE, min_agreement=0.99 if half else 0.999, **options)
    here = [check["runtime"] for check in told["checks"]]
    assert "onnxruntime" in here and len(here) + len(told["notes"]) == 2  # none of TensorRT
    assert all(c["images"] == 3 and c["ms"] > 0 and c["torch_ms"] > 0 for c in told["checks"])
    assert json.loads((out / "export.json").read_text()) == json.loads(json.dumps(told))
    assert sorted(path.name for path in out.iterdir()) == ["export.json", "model.onnx"]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    check_description(told, onnx.load(out / "model.onnx"))
    images = pictures(3)
    for runtime in here:
        outputs = Exported(out, runtime)(images)
        for i, image in enumerate(images.split(1)):
            with torch.inference_mode():
                expected = checkpoint.network(image)
            for output in set(told["outputs"]) - {"labels"}:
                field = "semantic" if output == "logits" else output
                found, right = getattr(outputs, field)[i], getattr(expected, field)[0]
                assert torch.allclose(found, right, atol=0.05 if half else 1e-3), field


def check_description(told: dict[str, Any], model: Any) -> None:
    """The file describes itself, and has standard operators only."""
    inside = json.loads({entry.key: entry.value for entry in model.metadata_props}["maskattn"])
    outside = json.loads(json.dumps(told))
    assert inside == {key: outside[key] for key in outside if key not in ("checks", "notes")}
    assert inside["classes"]["names"] == ["a", "b", "c"] and len(inside["weights_sha256"]) == 64
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert str(Path(__file__).parents[2]) not in str(model)  # no folder of this machine
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    sides = (*SIZE, 3) if told["layout"] == "nhwc" else (3, *SIZE)
    assert shape == [told["batch"] or 0, *sides]


@pytest.mark.parametrize(("bias", "count"), [(1.0, 5), (0.0, 0)])
def test_objects_are_found_inside_of_a_file(bias: float, count: int, tmp_path: Path) -> None:
    """As `group` finds them, with numbers and scores; also where an image has no centre."""
    checkpoint, out = made(selector="random"), tmp_path / "out"
    assert checkpoint.network.objects is not None
    checkpoint.network.objects[-1].bias.data[0] += bias  # of the map of centres
    told = export(checkpoint, out, SIZE, max_objects=5, batch=None)
    assert told["outputs"][:4] == ["labels", "instance", "object_labels", "object_scores"]
    assert all(check["labels_equal"] >= 0.999 for check in told["checks"])
    images = pictures(2)
    with torch.inference_mode():
        outputs = [checkpoint.network(image) for image in images.split(1)]
        right = [group(o, checkpoint.classes.things, max_objects=5) for o in outputs]
    assert right[0].instance.max() == count
    for runtime in [check["runtime"] for check in told["checks"]]:
        run = Exported(out, runtime)
        found = run.batch(images)
        assert found["instance"].dtype == np.int32 and found["object_labels"].shape == (2, 5)
        assert run(images).center is not None  # `predict` finds them by itself
        for i, one in enumerate(right):
            assert (found["labels"][i] == one.semantic[0].numpy()).mean() > 0.999
            assert (found["instance"][i] == one.instance[0].numpy()).mean() > 0.999
            assert (found["object_labels"][i] == one.labels[0].numpy()).all()
            assert np.allclose(found["object_scores"][i], one.scores[0].numpy(), atol=1e-3)


@pytest.mark.parametrize(
    ("config", "most", "line"),
    [
        ({"task": "semantic"}, 5, "expected none for a network that finds no objects, got 5"),
        ({"objects": "distance"}, 5, "no standard operator finds, got 5"),
        ({}, 0, "expected a whole number from 1, got 0"),
    ],
)
def test_objects_that_a_file_cannot_find(
    config: dict[str, Any], most: int, line: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"^max_objects: .*{line}$"):
        export(made(selector="random", **config), tmp_path / "out", SIZE, max_objects=most)
    assert not list(tmp_path.iterdir())


def test_half_weights_are_half_of_the_file(plain_file: Path) -> None:
    model = onnx.load(plain_file / "model.onnx")
    before = model.ByteSize()
    half_weights(model)
    onnx.checker.check_model(model)
    assert model.ByteSize() < 0.7 * before  # the rest are small tensors and the graph
    weight = next(w for w in model.graph.initializer if w.data_type == onnx.TensorProto.FLOAT16)
    big = onnx.numpy_helper.from_array(np.full(weight.dims, 1e5, np.float32), "big")
    model.graph.initializer.append(big)
    with pytest.raises(ValueError, match=r"^precision: expected fp32, as big has values"):
        half_weights(model)


def test_other_labels_are_an_error_and_leave_nothing(
    no_work: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = plain().network
    torch.nn.init.normal_(other.body.head.weight)
    monkeypatch.setattr(checking, "prepared", lambda *_: other)
    with pytest.raises(checking.Mismatch, match=r"at least 99.9% of the pixels, got \d.*written$"):
        export(plain(), tmp_path / "out", SIZE)
    assert not list(tmp_path.iterdir())


def test_a_missing_runtime_is_a_note(
    no_work: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    told = export(plain(), tmp_path / "out", SIZE)
    assert [check["runtime"] for check in told["checks"]] == ["onnxruntime"]
    assert "pip install 'maskattn_kernels[openvino]'" in told["notes"][0]


def test_smaller_images_are_padded_and_larger_ones_refused(plain_file: Path) -> None:
    run = Exported(plain_file, "onnxruntime")
    image = pictures(1)
    image[..., 24:, :] = image[..., 40:] = 124
    with torch.inference_mode():
        expected = plain().network(image).semantic[..., :24, :40]
    assert torch.allclose(run(image[..., :24, :40]).semantic, expected, atol=1e-3)
    with pytest.raises(ValueError, match=r"^exported: .* 32 x 48 pixels, .* \(--tiles 32x48\)$"):
        run(torch.zeros(1, 3, 33, 48, dtype=torch.uint8))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_threads_share_a_file(plain_file: Path, runtime: str) -> None:
    """As `predict` calls it: two batches at a time."""
    pytest.importorskip(runtime, reason=f"{runtime} is not installed")
    run, images = Exported(plain_file, runtime), pictures(1)
    expected = run.batch(images)["logits"]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(run.batch, [images] * 40))
    assert all(np.allclose(made["logits"], expected, atol=1e-4) for made in results)


def test_labels_are_the_highest_logits(plain_file: Path) -> None:
    outputs = Exported(plain_file, "onnxruntime").batch(pictures(1))
    assert outputs["labels"].dtype == np.uint8 and outputs["labels"].shape == (1, *SIZE)
    assert (outputs["labels"] == outputs["logits"].argmax(1)).all()


def test_a_file_of_labels_only_has_no_logits(tmp_path: Path) -> None:
    export(made(selector="none", task="semantic"), tmp_path / "out", SIZE, labels_only=True)
    run = Exported(tmp_path / "out", "onnxruntime")
    assert list(run.batch(pictures(1))) == ["labels"]
    with pytest.raises(ValueError, match=r"^exported: expected a file with logits, got one with"):
        run(pictures(1))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--size", "32"], "--size: expected 2 arguments"),
        (["--size", "dynamic", "32"], "masks keep a fixed number of tokens, got 'dynamic'"),
        (["--size", "0", "32"], "masks keep a fixed number of tokens, got '0'"),
        (["--size", "32", "99999"], "size: expected a whole number from 1 to 16384"),
        (["--size", "32", "32", "--batch", "0"], "--batch: expected a whole number from 1"),
        (["--size", "32", "32", "--format", "coreml"], "--format: invalid choice: 'coreml'"),
        (["--size", "32", "32", "--selector", "topk"], "there are none"),
        (["--size", "32", "32", "--verify", "nowhere"], "verify: expected a folder of images"),
        (["--size", "32", "32", "--out", "."], "out: expected a folder that is not there yet"),
    ],
)
def test_wrong_arguments_are_one_line(
    arguments: list[str], line: str, capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["export", "nuclei", "--out", "out", *arguments]
    try:
        code = cli.main(words)
    except SystemExit as stop:
        code = int(str(stop.code))
    error = capsys.readouterr().err
    assert code == 2 and line in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


#: What each format makes of each precision: nothing to say, or why not.
PRECISIONS = {
    ("onnx", "fp32"): None,
    ("onnx", "fp16"): None,
    ("onnx", "bf16"): "ONNX Runtime has no convolution in bfloat16",
    ("onnx", "int8"): None,
    ("pt2", "fp32"): None,
    ("pt2", "fp16"): "not measured to be faster in float16",
    ("pt2", "bf16"): None,
    ("pt2", "int8"): "int8 is made by ONNX Runtime's tool, in the format onnx",
    ("aoti", "fp32"): None,
    ("aoti", "fp16"): "not measured to be faster in float16",
    ("aoti", "bf16"): None,
    ("aoti", "int8"): "int8 is made by ONNX Runtime's tool, in the format onnx",
}


def test_every_format_and_precision_has_an_answer() -> None:
    assert set(PRECISIONS) == {(f, p) for f in precisions.FORMATS for p in precisions.PRECISIONS}


@pytest.mark.parametrize(("format", "precision"), PRECISIONS)
def test_a_precision_that_a_format_cannot_have_is_refused_with_the_reason(
    format: str, precision: str, capsys: Any, tmp_path: Path
) -> None:
    """Those that it can have are exported by the tests of each."""
    why, out = PRECISIONS[format, precision], tmp_path / "out"
    if why is None:
        precisions.check_precision(format, precision)
        return
    words = ["--size", "32", "32", "--format", format, "--precision", precision, "--out", str(out)]
    assert cli.main(["export", "nuclei", *words]) == 2
    error = capsys.readouterr().err
    start = f'maskattn export: precision: expected "{precisions.FORMATS[format][0]}", '
    assert error.startswith(start) and why in error and error.count("\n") == 1
    assert not out.exists()


def test_onnx_runtime_has_no_convolution_in_bfloat16(tmp_path: Path) -> None:
    """What the refusal says; once this fails, it can go."""
    import onnxruntime

    make, kind = onnx.helper, onnx.TensorProto.BFLOAT16
    shapes = {"x": [1, 1, 4, 4], "w": [1, 1, 3, 3], "y": [1, 1, 2, 2]}
    values = {name: make.make_tensor_value_info(name, kind, shapes[name]) for name in shapes}
    node = make.make_node("Conv", ["x", "w"], ["y"])
    graph = make.make_graph([node], "made", [values["x"], values["w"]], [values["y"]])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 22)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
        onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])


def test_a_selector_without_a_count_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^selector: expected one that keeps a fixed number"):
        export(made(selector="threshold", task="semantic"), tmp_path / "out", SIZE)
    assert not list(tmp_path.iterdir())


def test_what_writes_the_format_is_asked_for_by_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    out = tmp_path / "out"
    assert cli.main(["export", "nuclei", "--size", "32", "32", "--out", str(out)]) == 1
    line = "cannot run: onnxscript is not installed; pip install 'maskattn_kernels[onnx]'"
    assert capsys.readouterr().err == f"maskattn export: {line}\n"
    assert not list(tmp_path.iterdir())


def test_the_command_tells_what_it_found(no_work: None, tmp_path: Path, capsys: Any) -> None:
    plain().save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "README.md").write_text("---\nlicense: mit\n---\n")
    out = tmp_path / "out"
    words = ["export", str(tmp_path / "saved"), "--size", "32", "48", "--out", str(out)]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "onnxruntime" in printed and "labels equal on 100.000% of the pixels" in printed
    assert f"written: {out / 'model.onnx'} (" in printed
    assert json.loads((out / "export.json").read_text())["licence"] == "mit"


def test_what_tensorrt_would_refuse_is_told() -> None:
    """Types and limits of its documented list; the exports above have no such note."""
    make, kind = onnx.helper.make_node, onnx.TensorProto
    nodes = [
        make("TopK", ["scores", "count"], ["values", "places"], sorted=0),
        make("CumSum", ["places", "axis"], ["sums"]),
        make("Clip", ["sums", "axis", "count"], ["clipped"]),
        make("BitShift", ["clipped", "axis"], ["shifted"], direction="LEFT"),
    ]
    tensors = [
        onnx.numpy_helper.from_array(np.array([4096]), "count"),
        onnx.numpy_helper.from_array(np.array(1), "axis"),
    ]
    scores = onnx.helper.make_tensor_value_info("scores", kind.FLOAT, [1, 16384])
    clipped = onnx.helper.make_tensor_value_info("clipped", kind.INT64, [1, 4096])
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "made", [scores], [clipped], tensors),
        opset_imports=[onnx.helper.make_opsetid("", 20)],
    )
    topk = (
        'TopK of 4096 tokens, at most 3839 can be; the selector "local" and a lower keep need fewer'
    )
    shift = "it has no operator BitShift"
    whole = ["CumSum takes no int64", "Clip takes no int64"]
    assert tensorrt_faults(model) == ["TopK must be sorted", topk, *whole, shift]
    with_types_of_tensorrt(model)
    assert tensorrt_faults(model) == [topk, shift]
    assert [node.op_type for node in model.graph.node][1:] == [
        *("Cast", "CumSum", "Cast", "Max", "Min", "BitShift")
    ]
