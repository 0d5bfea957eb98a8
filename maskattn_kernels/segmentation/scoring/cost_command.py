# SPDX-License-Identifier: BSD-3-Clause
"""``maskattn cost``: what a network costs to run, as a whole and by its parts."""

import json
from argparse import Namespace
from collections.abc import Sequence
from inspect import signature

from maskattn_kernels.common.command_line import Parser, key_value, positive, torch_device
from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.model.architectures import ARCHITECTURES
from maskattn_kernels.segmentation.model.cost_parts import cost_report, cost_table
from maskattn_kernels.segmentation.model.dialed import add_dial_arguments, dialed
from maskattn_kernels.segmentation.model.network import SegmentationNetwork
from maskattn_kernels.segmentation.model.prepared import PRECISIONS, inference_dtype

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Run ``maskattn cost`` with the arguments ``argv``; returns the exit code."""
    parser = Parser(
        prog="maskattn cost",
        description="GFLOPs, milliseconds, memory and parameters of a network for one image, and "
        "the share of its parts. The network is that of a checkpoint or of a preset.",
    )
    add = parser.add_argument
    add("--checkpoint", help="folder as `maskattn train` leaves, or hf:owner/name")
    add("--arch", choices=ARCHITECTURES, help="of a preset (default unet)")
    presets = "; ".join(f"{name}: {', '.join(a.presets)}" for name, a in ARCHITECTURES.items())
    add("--preset", help=presets)
    add("--classes", type=positive, help="of a preset (default 19)")
    add("--set", type=key_value, action="append", default=[], metavar="KEY=VALUE",
        help="an option of a preset's network, such as grid=8; can be given again")  # fmt: skip
    add("--size", type=positive, nargs=2, metavar=("HEIGHT", "WIDTH"),
        help="of the image (default: that of the checkpoint)")  # fmt: skip
    add_dial_arguments(parser)
    add("--precision", choices=PRECISIONS, default="float32", help="default float32")
    add("--device", default="auto", help="cpu, cuda, .. (default: a GPU if there is one)")
    add("--json", action="store_true", help="print JSON")
    given = parser.parse_args(argv)
    device = torch_device(given.device)
    if (given.checkpoint is None) == (given.preset is None):
        parser.error("expected one of --checkpoint and --preset")
    if given.checkpoint is not None:
        if given.arch or given.classes or given.set:
            parser.error("--arch, --classes, --set: expected with --preset, not with --checkpoint")
        checkpoint = Checkpoint.from_pretrained(given.checkpoint)
        network, size = checkpoint.network, given.size or checkpoint.size
    else:
        network, size = _of_preset(given), given.size
    if size is None:
        parser.error("--size: expected together with --preset")
    network = dialed(network, given.keep, given.selector).to(device).eval()
    dtype = inference_dtype(given.precision, device)
    report = cost_report(network, (size[0], size[1]), dtype)
    if given.json:
        print(json.dumps({"network": network.config, **report.as_dict()}, indent=2))
    else:
        print(cost_table(report))
    return 0


def _of_preset(given: Namespace) -> SegmentationNetwork:
    options = {"task": "semantic", **dict(given.set)}
    known = signature(SegmentationNetwork).parameters.keys() - {"classes", "arch", "preset"}
    for name in options:
        if name not in known:
            raise ValueError(f"set: expected an option of a network, such as grid, got {name!r}")
    arch, classes = given.arch or "unet", given.classes or 19
    return SegmentationNetwork(classes, arch=arch, preset=given.preset, **options)
