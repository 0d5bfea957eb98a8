# SPDX-License-Identifier: BSD-3-Clause
"""Blackwell's products for `ptx.py`: tcgen05, with results in tensor memory.

A product reads its operands when it starts and once more when it ends, some turns later; until then
its results are NaN. A load from tensor memory may not be touched before it is waited for.
"""

import re

import numpy as np
from ptx_numbers import numbers, operand_places

TENSOR_SHAPE = (128, 512)  # lanes and columns of tensor memory


class TensorMemory:
    """What a warp does with tensor memory."""

    def do_elect(self, lanes: np.ndarray, words: list[str], operands: list[str]) -> None:
        assert lanes.all(), "a choice among some lanes"
        self.put(lanes, operands[0].split("|")[1], np.arange(32) == 0)

    def do_tcgen05(self, lanes: np.ndarray, words: list[str], operands: list[str]) -> None:
        block = self.block
        if words[0] == "alloc":
            assert block.tensor is None and lanes.all()
            block.tensor = np.full(TENSOR_SHAPE, np.nan, np.float32)
            (address,) = set(self.addresses(operands[0]))
            self.bytes_at("shared", int(address), 4)[:] = 0
        elif words[0] == "dealloc":
            assert lanes.all() and not block.products
            block.tensor = None
        elif words[0] == "ld":
            targets = re.findall(r"%\w+", operands[0])
            (address,) = set(self.addresses(operands[1]))
            lane, column = int(address) >> 16, int(address) & 0xFFFF
            assert lane == self.number % 4 * 32, "lanes of tensor memory of another warp"
            found = block.tensor[lane : lane + 32, column : column + len(targets)]
            for i, target in enumerate(targets):
                self.registers[target] = found[:, i].copy().view(np.uint32)
            self.in_flight.update(targets)
        elif words[0].startswith("wait"):
            self.in_flight.clear()
        elif words[0] == "mma":
            assert lanes.sum() == 1
            self.product(int(np.argmax(lanes)), operands)
        elif words[0] == "commit":
            assert lanes.sum() == 1
            (address,) = set(self.addresses(operands[0])[lanes])
            block.products.append(lambda: block.barriers[address].arrive(1))

    def product(self, lane: int, operands: list[str]) -> None:
        target, a_at, b_at, facts = (
            int(self.value(operand.strip("[]"), kind)[lane])
            for operand, kind in zip(operands[:4], ("u32", "u64", "u64", "u32"), strict=True)
        )
        rows, columns = (facts >> 24 & 31) * 16, (facts >> 17 & 63) * 8
        kinds = {0: "f16", 1: "bf16"}
        assert facts >> 4 & 3 == 1 and rows == TENSOR_SHAPE[0]
        reads = []
        for at, size, shift in ((a_at, rows, 15), (b_at, columns, 16)):
            assert at >> 61 == 2 and at >> 46 & 3 == 1, "not a swizzle of 128 bytes"
            plain = at & (1 << 46) - 1 | 1 << 62
            places = operand_places(plain, size, bool(facts >> shift & 1))
            reads.append((places, self.proxy_numbers(places)))
        kind = kinds[facts >> 7 & 7]
        a, b = (numbers(bits, kind).astype(np.float64) for _, bits in reads)
        adds = bool(self.value(operands[5], "pred")[lane])
        place = (slice(None), slice(target, target + columns))

        def finish() -> None:
            for places, was in reads:
                assert (self.proxy_numbers(places) == was).all(), "an operand changed"
            before = self.block.tensor[place] if adds else 0.0
            self.block.tensor[place] = (before + a @ b.T).astype(np.float32)

        if not adds:
            self.block.tensor[place] = np.nan
        self.block.products.append(finish)
