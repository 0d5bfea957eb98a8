# SPDX-License-Identifier: BSD-3-Clause
"""What `ptx.py` runs: a kernel's instructions, and the memory that its warps share."""

import re

import numpy as np

SHARED_BASE = 1024
NAN_BYTE = 0xFF  # NaN in every format of floats


class Memory:
    """Global memory: tensors with gaps between them."""

    def __init__(self) -> None:
        self.tensors: list[tuple[int, np.ndarray]] = []
        self.end = 1 << 20

    def add(self, array: np.ndarray) -> int:
        """The address of a tensor."""
        start, self.end = self.end, self.end + array.nbytes + 4096 & ~255
        self.tensors.append((start, array.view(np.uint8).reshape(-1)))
        return start

    def bytes_at(self, address: int, count: int) -> np.ndarray:
        for start, data in self.tensors:
            if start <= address and address + count <= start + len(data):
                assert address % count == 0, f"address {address:#x} for {count} bytes"
                return data[address - start : address - start + count]
        raise AssertionError(f"{count} bytes at {address:#x} lie outside of every tensor")


class Barrier:
    """An mbarrier."""

    def __init__(self, count: int) -> None:
        self.count, self.left, self.phase = count, count, 0

    def arrive(self, times: int) -> None:
        self.left -= times
        assert self.left >= 0, "more arrivals than a phase has"
        if self.left == 0:
            self.left, self.phase = self.count, self.phase ^ 1


class Block:
    """What the warps of a block share."""

    def __init__(
        self, memory: Memory, shared: int, index: int, parameters: list, warps: int
    ) -> None:
        self.memory, self.index, self.parameters = memory, index, parameters
        self.shared = np.full(SHARED_BASE + shared, NAN_BYTE, np.uint8)
        self.proxy = self.shared.copy()  # as the asynchronous proxy sees it
        self.barriers: dict[int, Barrier] = {}
        self.warps = warps
        self.tensor: np.ndarray | None = None  # tensor memory, once it is allocated
        self.products: list = []  # of tcgen05, on their way
        self.waiting: dict[int, list] = {}  # warps at named barriers


class Program:
    """A kernel's instructions."""

    def __init__(self, text: str) -> None:
        body = text[text.index("\n{\n", text.index(".entry")) :]
        self.lines: list[tuple[str, str, list[str]]] = []  # predicate, instruction, operands
        self.labels: dict[str, int] = {}
        scope, depth = 0, 0
        body = re.sub(r"//.*", "", body)
        body = re.sub(r"^\s*\{\s*$", "{;", body, flags=re.M)
        body = re.sub(r"^\s*\}\s*$", "};", body, flags=re.M)
        body = re.sub(r"^\s*(\$?\w+):", r"\1:;", body, flags=re.M)
        for statement in body.split(";"):
            word = " ".join(statement.split())
            if word in ("{", "}"):
                depth += 1 if word == "{" else -1
                scope += word == "{"
            elif word.endswith(":"):
                self.labels[self._local(word[:-1], scope, depth)] = len(self.lines)
            elif word and not word.startswith("."):
                found = re.match(r"(?:@(!?[%\w]+) )?(\S+) ?(.*)", word)
                operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", found[3])
                predicate = found[1] or ""
                if depth > 1:
                    predicate = self._local(predicate, scope, depth)
                    operands = [self._local(o, scope, depth) for o in operands]
                self.lines.append((predicate, found[2], operands))

    @staticmethod
    def _local(name: str, scope: int, depth: int) -> str:
        """Names of inline assembly are those of its braces."""
        return re.sub(r"^(!?)([A-Za-z]\w*)$", rf"\1\2@{scope}", name) if depth > 1 else name
