# SPDX-License-Identifier: BSD-3-Clause
"""Runs a kernel's PTX on the CPU, one block at a time: what CuTe-DSL has no emulator for.

A warp is 32 lanes of numpy arrays; warps take turns in an order that a seed draws. What hardware
leaves to the program is held against it:

    copies     (cp.async) arrive when they are waited for; until then their target is NaN
    proxies    products read shared memory as the asynchronous proxy sees it: what a thread wrote or
               copied is NaN there until that thread has fenced it (fence.proxy.async)
    products   (WGMMA) read their operands once when they start and once when they are waited for,
               and both must be the same; their results must not be touched before
    memory     an address outside of every tensor is an error
    barriers   warps that all wait for one another are an error

It knows the instructions that csrc/cute uses, and refuses every other one.
"""

import re
from collections.abc import Callable, Iterator

import numpy as np
from ptx_numbers import OPERATORS, SIMPLE, TYPES, half_bits, numbers, operand_places
from ptx_program import NAN_BYTE, SHARED_BASE, Barrier, Block, Memory, Program
from ptx_tensor_memory import TensorMemory

LANES = np.arange(32)


class Warp(TensorMemory):
    """32 lanes: registers, places in the program, copies and products on their way."""

    def __init__(self, program: Program, block: Block, number: int) -> None:
        self.program, self.block, self.number = program, block, number
        self.registers: dict[str, np.ndarray] = {}
        self.at = np.zeros(32, int)
        self.copies: list[list] = [[]]  # groups; the last one is open
        self.unfenced: list[tuple[int, int]] = []
        self.products: list[Callable[[], None]] = []
        self.in_flight: set[str] = set()

    def run(self) -> Iterator[None]:
        """Yields where the warp waits, and where others may take their turn."""
        end = len(self.program.lines)
        while (self.at < end).any():
            place = self.at.min()
            lanes = self.at == place
            predicate, word, operands = self.program.lines[place]
            if predicate:
                holds = self.registers[predicate.lstrip("!")] != predicate.startswith("!")
                lanes = lanes & holds
            self.at[self.at == place] += 1
            if not lanes.any():
                continue
            name, _, rest = word.partition(".")
            if self.in_flight and name not in ("wgmma", "tcgen05"):
                touched = self.in_flight.intersection(re.findall(r"%\w+", " ".join(operands)))
                if name == "mov" and touched:  # under another name
                    self.in_flight.update(re.findall(r"%\w+", operands[0]))
                else:
                    assert not touched, f"{word} touches results on their way: {touched}"
            if name == "bra":
                self.at[lanes] = self.program.labels[operands[0]]
                yield
            elif name == "ret":
                self.at[lanes] = end
            elif word.startswith("bar.sync"):
                yield from self.meet(int(self.value(operands[0], "u32")[0]), operands)
            elif name in SIMPLE:
                self.arithmetic(name, lanes, rest.split("."), operands)
            else:
                handler = getattr(self, f"do_{name}", None)
                assert handler, f"unknown instruction {word}"
                handler(lanes, rest.split("."), operands)
                if name in ("mbarrier", "fence", "tcgen05"):
                    yield
        assert self.copies == [[]] and not self.products, "a warp ends before what it started"

    def meet(self, barrier: int, operands: list[str]) -> Iterator[None]:
        """A named barrier of some warps, or of the block."""
        warps = int(self.value(operands[1], "u32")[0]) // 32 if len(operands) > 1 else None
        here = self.block.waiting.setdefault(barrier, [])
        here.append(self)
        if len(here) == (warps or self.block.warps):
            here.clear()
        while self in self.block.waiting[barrier]:
            yield

    # ---- operands

    def value(self, operand: str, kind: str) -> np.ndarray:
        dtype = TYPES[kind]
        if operand in self.registers:
            found = self.registers[operand]
            if found.dtype == bool or dtype is bool:
                return found
            if found.itemsize > np.dtype(dtype).itemsize:
                found = found.astype(f"u{np.dtype(dtype).itemsize}")
            return found.view(dtype)
        if operand == "%tid.x":
            return (LANES + 32 * self.number).astype(dtype)
        if operand == "%laneid":
            return LANES.astype(dtype)
        if operand == "%ctaid.x":
            return np.full(32, self.block.index, dtype)
        if operand == "__dynamic_shmem__0":
            return np.full(32, SHARED_BASE, dtype)
        if operand.startswith("0f"):
            return np.full(32, int(operand[2:], 16), np.uint32).view(np.float32)
        size = np.dtype(dtype).itemsize
        bits = np.full(32, int(operand, 0) % (1 << 8 * size), np.uint64)
        return bits.astype(f"u{size}").view(dtype)

    def put(self, lanes: np.ndarray, operand: str, value: np.ndarray) -> None:
        if value.dtype != bool:
            value = value.view(f"u{value.itemsize}")
        old = self.registers.get(operand)
        if lanes.all() or old is None:
            self.registers[operand] = value.copy()
        else:
            old[lanes] = value[lanes]

    def addresses(self, operand: str) -> np.ndarray:
        base, _, offset = operand[1:-1].partition("+")
        wide = base.startswith("%rd")
        return self.value(base, "s64" if wide else "s32").astype(np.int64) + int(offset or 0)

    # ---- arithmetic

    def arithmetic(
        self, name: str, lanes: np.ndarray, words: list[str], operands: list[str]
    ) -> None:
        target, *sources = operands
        values = [self.value(source, words[-1]) for source in sources]
        with np.errstate(all="ignore"):
            self.put(lanes, target, OPERATORS[name](*values).astype(values[0].dtype))

    def do_mul(self, lanes: np.ndarray, words: list[str], operands: list[str]) -> None:
        if words[0] == "wide":
            wide = "s64" if words[1] == "s32" else "u64"
            a, b = (self.value(o, words[1]).astype(TYPES[wide]) for o in operands[1:])
            self.put(lanes, operands[0], a * b)
        else:
            self.arithmetic("mul", lanes, words, operands)

    def do_mad(self, lanes: np.ndarray, words: list[str], operands: list[str]) -> None:
        a, b, c = (self.value(o, words[-1]) for o in operands[1:])
        self.put(lanes, operands[0], a * b + c)

    def do_fma(self, lanes: np.ndarray, words: list[str], operands: list[str]) -> None:
        a, b, c = (self.value(o, "f32").astype(np.float64) for o in operands[1:])
        with np.errstate(all="ignore"):
            self.put(lanes, operands[0], (a * b + c).astype(np.float32))

    def do_div(self, lanes: np.ndarray, words: list[str], operands: list[str]) -> None:
        a, b = (self.value(o, words[-1]).astype(np.float64) for o in operands[1:])
        with np.errstate(all="ignore"):
            quotient = a / b if words[-1] == "f32" else np.trunc(a / b)
            self.put(lanes, operands[0], quotient.astype(TYPES[words[-1]]))

    def do_rcp(self, lanes: np.ndarray, words: list[str], operands: list[str]) -> None:
        with np.errstate(all="ignore"):
            self.put(lanes, operands[0], np.float32(1) / self.value(operands[1], "f32"))

    def do_ex2(self, lanes: np.ndarray, words: list[str], operands: list[str]) -> None:
        with np.errstate(all="ignore"):
            self.put(lanes, operands[0], np.exp2(self.value(operands[1], "f32")))

    def do_neg(self, lanes: np.ndarray, words: list[str], operands: list[str]) -> None:
        self.put(lanes, operands[0], -self.value(operands[1], words[-1]))

    def do_not(self, lanes: np.ndarray, words: list[str], operands: list[str]) -> None:
        self.put(lanes, operands[0], ~self.value(operands[1], words[-1]))

    def do_shl(self, lanes: np.ndarray, words: list[str], operands: list[str]) -> None:
        a, b = self.value(operands[1], words[-1]), self.value(operands[2], "u32")
        bits = 8 * a.itemsize
        shifted = np.where(b < bits, a << (b % bits).astype(a.dtype), 0)
        self.put(lanes, operands[0], shifted.astype(a.dtype))

    def do_shr(self, lanes: np.ndarray, words: list[str], operands: list[str]) -> None:
        a, b = self.value(operands[1], words[-1]), self.value(operands[2], "u32")
        self.put(lanes, operands[0], a >> np.minimum(b, 8 * a.itemsize - 1).astype(a.dtype))

    def do_setp(self, lanes: np.ndarray, words: list[str], operands: list[str]) -> None:
        a, b = (self.value(o, words[-1]) for o in operands[1:])
        self.put(lanes, operands[0], OPERATORS[words[0]](a, b))

    def do_selp(self, lanes: np.ndarray, words: list[str], operands: list[str]) -> None:
        a, b = (self.value(o, words[-1]) for o in operands[1:3])
        self.put(lanes, operands[0], np.where(self.value(operands[3], "pred"), a, b))

    def do_mov(self, lanes: np.ndarray, words: list[str], operands: list[str]) -> None:
        target, source = operands
        if target.startswith("{"):  # a number in two parts
            parts = self.value(source, "u64").copy().view(np.uint32).reshape(32, 2)
            for i, register in enumerate(target[1:-1].split(", ")):
                if register != "_":
                    self.put(lanes, register, parts[:, i].copy())
        elif source.startswith("{"):
            low, high = (self.value(r, "u32").astype(np.uint64) for r in source[1:-1].split(", "))
            self.put(lanes, target, high << 32 | low)
        else:
            self.put(lanes, target, self.value(source, words[-1]))

    def do_cvt(self, lanes: np.ndarray, words: list[str], operands: list[str]) -> None:
        if words[1] in ("bf16x2", "f16x2"):
            high, low = (half_bits(self.value(o, "f32"), words[1]) for o in operands[1:])
            self.put(lanes, operands[0], high << 16 | low)
        else:
            value = self.value(operands[1], words[-1])
            self.put(lanes, operands[0], value.astype(TYPES[words[-2]]))

    # ---- lanes together

    def do_shfl(self, lanes: np.ndarray, words: list[str], operands: list[str]) -> None:
        assert lanes.all(), "a shuffle of some lanes"
        place = self.value(operands[2], "u32")
        source = LANES ^ place if words[1] == "bfly" else place
        self.put(lanes, operands[0], self.value(operands[1], "b32")[source])

    def do_vote(self, lanes: np.ndarray, words: list[str], operands: list[str]) -> None:
        assert lanes.all(), "a vote of some lanes"
        bits = np.sum(self.value(operands[1], "pred").astype(np.uint64) << LANES.astype(np.uint64))
        self.put(lanes, operands[0], np.full(32, bits, np.uint32))

    def do_bar(self, lanes: np.ndarray, words: list[str], operands: list[str]) -> None:
        assert words[0] == "warp" and lanes.all()

    def do_setmaxnreg(self, lanes: np.ndarray, words: list[str], operands: list[str]) -> None:
        assert lanes.all()

    # ---- memory

    def do_ld(self, lanes: np.ndarray, words: list[str], operands: list[str]) -> None:
        space, kind = words[0], words[-1]
        if space == "param":
            value = self.block.parameters[int(operands[1][1:-1].rpartition("_")[2])]
            whole = np.full(32, value, np.float32 if isinstance(value, float) else np.int64)
            self.put(
                lanes, operands[0], whole if isinstance(value, float) else whole.astype(TYPES[kind])
            )
            return
        targets = re.findall(r"%\w+", operands[0])
        size = np.dtype(TYPES[kind]).itemsize
        found = np.zeros((32, len(targets)), TYPES[kind])
        for lane, address in zip(LANES[lanes], self.addresses(operands[1])[lanes], strict=True):
            data = self.bytes_at(space, int(address), size * len(targets))
            found[lane] = data.view(TYPES[kind])
        for i, target in enumerate(targets):
            wide = target.startswith("%rd") and size < 8  # by its sign, or by zeros
            self.put(lanes, target, found[:, i].astype(f"{found.dtype.kind}{8 if wide else size}"))

    def do_st(self, lanes: np.ndarray, words: list[str], operands: list[str]) -> None:
        space, *_, kind = words
        sources = re.findall(r"%\w+|0f\w+|-?\d+", operands[1])
        values = np.stack([self.value(source, kind) for source in sources], axis=1)
        for lane, address in zip(LANES[lanes], self.addresses(operands[0])[lanes], strict=True):
            data = values[lane].view(np.uint8)
            self.bytes_at(space, int(address), len(data))[:] = data
            if space == "shared":
                self.block.proxy[address : address + len(data)] = NAN_BYTE
                self.unfenced.append((int(address), len(data)))

    def bytes_at(self, space: str, address: int, count: int) -> np.ndarray:
        if space == "global":
            return self.block.memory.bytes_at(address, count)
        assert address >= SHARED_BASE and address + count <= len(self.block.shared)
        assert address % count == 0, f"address {address:#x} for {count} bytes"
        return self.block.shared[address : address + count]

    def do_cp(self, lanes: np.ndarray, words: list[str], operands: list[str]) -> None:
        if words[1] == "commit_group":
            self.copies.append([])
        elif words[1] == "wait_group":
            keep = int(operands[0]) + 1
            for group in self.copies[:-keep]:
                for address, data in group:
                    self.block.shared[address : address + 16] = data
                    self.unfenced.append((address, 16))
            self.copies = self.copies[-keep:]
        else:
            targets, sources = (self.addresses(o) for o in operands[:2])
            sizes = self.value(operands[3], "u32")
            for lane in LANES[lanes]:
                data = np.zeros(16, np.uint8)
                size, target = int(sizes[lane]), int(targets[lane])
                if size:
                    data[:size] = self.bytes_at("global", int(sources[lane]), size)
                self.bytes_at("shared", target, 16)[:] = NAN_BYTE
                self.block.proxy[target : target + 16] = NAN_BYTE
                self.copies[-1].append((target, data))

    def do_fence(self, lanes: np.ndarray, words: list[str], operands: list[str]) -> None:
        if words[0] == "proxy":
            assert lanes.all()
            for address, count in self.unfenced:
                own = slice(address, address + count)
                self.block.proxy[own] = self.block.shared[own]
            self.unfenced.clear()

    def do_mbarrier(self, lanes: np.ndarray, words: list[str], operands: list[str]) -> None:
        barriers = self.block.barriers
        if words[0] == "init":
            (address,) = set(self.addresses(operands[0])[lanes])
            barriers[address] = Barrier(int(self.value(operands[1], "u32")[lanes][0]))
        elif words[0] == "arrive":
            (address,) = set(self.addresses(operands[1])[lanes])
            counts = self.value(operands[2], "u32") if len(operands) > 2 else np.ones(32)
            barriers[address].arrive(int(counts[lanes].sum()))
        else:
            (address,) = set(self.addresses(operands[1])[lanes])
            parity = self.value(operands[2], "u32")
            self.put(lanes, operands[0], barriers[address].phase != parity)

    # ---- products

    def do_wgmma(self, lanes: np.ndarray, words: list[str], operands: list[str]) -> None:
        assert lanes.all()
        if words[0] == "wait_group":
            assert operands == ["0"]
            for check in self.products:
                check()
            self.products.clear()
            self.in_flight.clear()
        elif words[0] == "mma_async":
            self.multiply(words, operands)

    def multiply(self, words: list[str], operands: list[str]) -> None:
        columns = int(re.fullmatch(r"m64n(\d+)k16", words[3])[1])
        dtype = words[-1]
        targets = re.findall(r"%\w+", operands[0])
        assert len(targets) == columns // 2
        reads = []  # places in shared memory, and what was there
        if operands[1].startswith("{"):
            own = re.findall(r"%\w+", operands[1])
            a = np.zeros((16, 16), np.uint16)
            for i, register in enumerate(own):
                pair = self.value(register, "u32").copy().view(np.uint16).reshape(32, 2)
                for odd in range(2):
                    a[LANES // 4 + i % 2 * 8, LANES % 4 * 2 + odd + i // 2 * 8] = pair[:, odd]
            predicate, _, _, transposed = operands[3:]
            self.in_flight.update(own)
        else:
            predicate, _, _, turned, transposed = operands[3:]
            assert turned == "0"
            rows = operand_places(int(self.value(operands[1], "u64")[0]), 64, False)
            own_rows = rows[self.number % 4 * 16 :][:16]
            a = self.proxy_numbers(own_rows)
            reads.append((own_rows, a))
        places = operand_places(int(self.value(operands[2], "u64")[0]), columns, transposed == "1")
        b = self.proxy_numbers(places)
        reads.append((places, b))
        product = numbers(a, dtype).astype(np.float64) @ numbers(b, dtype).astype(np.float64).T
        for i, target in enumerate(targets):
            row, column = LANES // 4 + i // 2 % 2 * 8, LANES % 4 * 2 + i % 2 + i // 4 * 8
            value = product[row, column]
            if self.value(predicate, "pred").all():
                value = value + self.value(target, "f32")
            self.registers[target] = value.astype(np.float32).view(np.uint32)
        self.in_flight.update(targets)

        def check() -> None:
            for places, was in reads:
                same = self.proxy_numbers(places) == was
                assert same.all(), "an operand changed under a product"

        self.products.append(check)

    def proxy_numbers(self, places: np.ndarray) -> np.ndarray:
        return self.block.proxy.view(np.uint16)[places // 2]


def run_block(
    program: Program,
    memory: Memory,
    parameters: list,
    index: int,
    warps: int,
    shared: int,
    seed: int,
) -> None:
    """Runs one block to its end, its warps in an order that `seed` draws."""
    draw = np.random.default_rng(seed)
    block = Block(memory, shared, index, parameters, warps)
    running = [Warp(program, block, number).run() for number in range(warps)]
    idle = 0
    while running:
        # A few warps get many turns, so that some run far ahead of the others.
        warp = running[min(int(draw.exponential(len(running) / 3)), len(running) - 1)]
        for _ in range(int(draw.integers(1, 40))):
            if next(warp, warp) is warp:
                running.remove(warp)
                idle = 0
                break
        while block.products and draw.random() < 0.5:
            block.products.pop(0)()
        idle += 1
        assert idle < 5_000, "the warps wait for one another"
        if draw.random() < 0.05:
            draw.shuffle(running)
