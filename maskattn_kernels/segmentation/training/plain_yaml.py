# SPDX-License-Identifier: BSD-3-Clause
"""How large a config file is: its aliases can make a billion values of 400 bytes."""

from pathlib import Path

import yaml

from maskattn_kernels.common.text import one_line

__all__ = ["size_of_yaml"]

MOST = 100_000  # values; no config needs a hundredth of it


def size_of_yaml(path: Path) -> int:
    """How many values a YAML file has once its aliases are written out; at most `MOST` + 1.

    Args:
        path: of the file.

    Raises:
        ValueError: it cannot be read, or is not YAML.
    """
    try:
        root = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
        return 0 if root is None else _size(root, {})
    except RecursionError:
        raise ValueError("it is nested too deeply, or holds itself") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(one_line(error)) from None


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Of a node that may be shared: each is counted once, and added as often as it occurs."""
    if id(node) not in known:
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        known[id(node)] = min(MOST + 1, 1 + sum(_size(child, known) for child in children))
    return known[id(node)]
