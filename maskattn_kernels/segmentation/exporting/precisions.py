# SPDX-License-Identifier: BSD-3-Clause
"""Which precision each format of a file can have, and why not the others."""

from maskattn_kernels.common.text import quoted

__all__ = ["FORMATS", "PRECISIONS", "check_precision"]

FORMATS = {"onnx": ("fp32", "fp16", "int8"), "pt2": ("fp32", "bf16"), "aoti": ("fp32", "bf16")}
"""The precisions of each format."""
PRECISIONS = ("fp32", "fp16", "bf16", "int8")

_PROGRAM = {
    "fp16": "processors were not measured to be faster in float16, and bf16 is as small",
    "int8": "int8 is made by ONNX Runtime's tool, in the format onnx",
}
_WHY = {
    "onnx": {
        "bf16": "ONNX Runtime has no convolution in bfloat16; OpenVINO computes in it from a file "
        "in fp32, by `maskattn predict --runtime openvino --precision bfloat16`"
    },
    "pt2": _PROGRAM,
    "aoti": _PROGRAM,
}


def check_precision(format: str, precision: str) -> None:
    """Refuse a precision that files of a format cannot have.

    Args:
        format: a name in `FORMATS`.
        precision: as ``maskattn export`` takes it.

    Raises:
        ValueError: the line says why.

    Example:
        >>> from maskattn_kernels.segmentation.exporting.precisions import check_precision
        >>> check_precision("onnx", "int8")
        >>> check_precision("pt2", "int8")
        Traceback (most recent call last):
        ValueError: precision: expected "fp32", "bf16" with the format "pt2", got "int8": int8 is \
made by ONNX Runtime's tool, in the format onnx
    """
    if precision not in FORMATS[format]:
        why = _WHY[format].get(precision)
        raise ValueError(
            f'precision: expected {quoted(FORMATS[format])} with the format "{format}", got '
            f'"{precision}"{"" if why is None else f": {why}"}'
        )
