# SPDX-License-Identifier: BSD-3-Clause
"""What TensorRT's list of ONNX operators would refuse of a file; TensorRT itself is not run.

After docs/operators.md of onnx-tensorrt for TensorRT 10.1: which operators it has, of which types,
and the limits that the files of this package can meet.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["faults_of", "tensorrt_faults", "with_types_of_tensorrt"]

_FLOAT = frozenset({"FLOAT", "FLOAT16", "BFLOAT16"})
_NUMBER = _FLOAT | {"INT32", "INT64"}
_ANY = _NUMBER | {"BOOL"}
_TYPES = {
    **dict.fromkeys(
        "AveragePool BatchNormalization Clip Conv CumSum Erf Exp Floor Gelu Gemm GlobalAveragePool "
        "GroupNormalization HardSigmoid InstanceNormalization IsInf LayerNormalization Log "
        "LogSoftmax MatMul MaxPool Pow QuantizeLinear Resize Round Sigmoid Softmax Softplus "
        "Sqrt".split(),
        _FLOAT,
    ),
    **dict.fromkeys(
        "Add ArgMax Div Equal Greater GreaterOrEqual IsNaN Less LessOrEqual Max Min Mod Mul Neg "
        "Pad Range ReduceMax ReduceMean ReduceMin ReduceSum Relu Sign Sub TopK".split(),
        _NUMBER,
    ),
    **dict.fromkeys(
        "Concat Constant ConstantOfShape Expand Flatten Gather GatherElements GatherND Identity "
        "OneHot Reshape ScatterElements ScatterND Shape Slice Split Squeeze Tile Transpose Trilu "
        "Unsqueeze Where".split(),
        _ANY,
    ),
    **dict.fromkeys("And Not Or Xor".split(), frozenset({"BOOL"})),
    "Cast": _ANY | {"UINT8"},  # at the ends of a graph
    "DequantizeLinear": frozenset({"INT8"}),
}
_MOST = 3839  # K of a TopK


def faults_of(file: Path) -> list[str]:
    """`tensorrt_faults` of a file.

    Args:
        file: in ONNX.
    """
    import onnx

    return tensorrt_faults(onnx.load(file))


def tensorrt_faults(model: Any) -> list[str]:
    """What the list would refuse, a line each; empty if it has all.

    Args:
        model: an ``onnx.ModelProto``.
    """
    return list(dict.fromkeys(_faults(model)))


def _faults(model: Any) -> Iterator[str]:
    from onnx import TensorProto, helper, numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    types = _types(model)
    for node in model.graph.node:
        if node.op_type not in _TYPES:
            yield f"it has no operator {node.op_type}"
            continue
        place = 1 if node.op_type == "Where" else 0
        kind = TensorProto.DataType.Name(types.get(node.input[place], 0)) if node.input else ""
        if kind not in (*_TYPES[node.op_type], "UNDEFINED", ""):
            yield f"{node.op_type} takes no {kind.lower()}"
        if node.op_type == "TopK":
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            if attributes.get("sorted", 1) != 1:
                yield "TopK must be sorted"
            tensor = constants.get(node.input[1])
            count = None if tensor is None else int(numpy_helper.to_array(tensor).item())
            if count is None or count > _MOST:
                yield (
                    f"TopK of {count or 'any number of'} tokens, at most {_MOST} can be; the "
                    'selector "local" and a lower keep need fewer'
                )


def with_types_of_tensorrt(model: Any) -> None:
    """Changes a model in place to types that TensorRT has, which changes no result.

    Cumulative sums count tokens; they are computed in float32, exact up to 16 million, in place of
    int64. Whole numbers are clipped by Max and Min. TopK is sorted where its order does not matter.
    The shape of the uint8 image is that of what is cast from it.

    Args:
        model: an ``onnx.ModelProto``.
    """
    from onnx import TensorProto, helper

    types = _types(model)
    image = model.graph.input[0].name
    cast = next((n for n in model.graph.node if n.op_type == "Cast" and n.input[0] == image), None)
    nodes = [] if cast is None else [cast]
    for node in model.graph.node:
        source, result = node.input[0] if node.input else "", node.output[0]
        if node.op_type == "TopK":
            kept = [a for a in node.attribute if a.name != "sorted"]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute("sorted", 1)])
        elif node.op_type == "Shape" and source == image and cast is not None:
            node.input[0] = cast.output[0]
        if node.op_type == "CumSum":
            node.input[0], node.output[0] = f"{result}_float", f"{result}_sum"
            before = helper.make_node("Cast", [source], [node.input[0]], to=TensorProto.FLOAT)
            after = helper.make_node("Cast", [node.output[0]], [result], to=TensorProto.INT64)
            nodes += [before, node, after]
        elif node.op_type == "Clip" and types.get(source) == TensorProto.INT64:
            limits = list(zip(("Max", "Min"), node.input[1:], strict=False))
            limits = [(kind, limit) for kind, limit in limits if limit]
            for number, (kind, limit) in enumerate(limits, start=1):
                target = result if number == len(limits) else f"{result}_{number}"
                nodes.append(helper.make_node(kind, [source, limit], [target]))
                source = target
        elif node is not cast:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _types(model: Any) -> dict[str, int]:
    """The element type of each value that is known."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    return types
