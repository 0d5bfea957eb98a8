# SPDX-License-Identifier: BSD-3-Clause
"""The forward kernels in CuTe-DSL: their index arithmetic, and what is made of them for chips that
are not here."""

import re
import sys
from dataclasses import replace
from itertools import chain, pairwise, product

import pytest
from repository import ROOT

pytestmark = pytest.mark.skipif(
    not (ROOT / "tools" / "cute_kernels.py").exists(), reason="needs the source tree"
)
sys.path.append(str(ROOT / "tools"))
tool = pytest.importorskip("cute_kernels")
import tile_arithmetic as tiles  # noqa: E402  (the tool knows where it is)

EVERY = [(width, arch) for arch in tool.ARCHS for width in tiles.WIDTHS[arch]]
TILES = [(r, width) for width in tiles.WIDTHS["sm_90a"] for r in (64, tiles.keys_of(width))]


@pytest.mark.parametrize(("width", "arch"), EVERY)
def test_shared_memory(width: int, arch: str) -> None:
    """Nothing overlaps, tiles lie where a swizzle of 128 bytes may start, and a block fits."""
    memory, keys = tiles.memory_of(width, arch), tiles.keys_of(width)
    sizes = [tiles.QUERIES * width * 2, *[tiles.STAGES * keys * width * 2] * 2]
    sizes += [tiles.QUERIES * keys * 2 if arch == "sm_100a" else 0]
    sizes += [tiles.STAGES * keys * 4] * 2 + [tiles.QUERIES * 4, 4 * tiles.STAGES * 8, 16, 16]
    assert [end - start for start, end in pairwise(memory)] == sizes
    assert all(start % 1024 == 0 for start in memory[:4]) and memory.barriers % 8 == 0
    assert memory.end <= 227 * 1024


@pytest.mark.parametrize(("rows", "width"), TILES)
def test_chunks_of_a_tile(rows: int, width: int) -> None:
    """Every chunk has a place of its own, and eight rows of one column lie in different banks."""
    chunks = width // tiles.CHUNK
    places = {
        (r, c): tiles.chunk_offset(r, c, rows) for r, c in product(range(rows), range(chunks))
    }
    assert sorted(places.values()) == list(range(0, rows * width * 2, 16))
    for row, chunk in product(range(0, rows, 8), range(chunks)):
        assert len({places[row + i, chunk] // 16 % 8 for i in range(8)}) == 8


@pytest.mark.parametrize(("rows", "width"), TILES)
def test_copies_of_a_tile(rows: int, width: int) -> None:
    """The threads of a warpgroup copy each chunk once, and neighbours copy what lies together."""
    turns = range(tiles.copies_of(rows, width))
    pieces = [[tiles.piece_of(t, turn, width) for t in range(tiles.GROUP)] for turn in turns]
    every = [piece for turn in pieces for piece in turn]
    assert sorted(every) == list(product(range(rows), range(width // tiles.CHUNK)))
    for turn in pieces:
        assert turn == sorted(turn)


def test_numbers_of_a_result() -> None:
    """Each number of 64 rows and 16 columns has one thread, and four neighbours share a row."""
    places = [[tiles.score_place(t, i) for i in range(8)] for t in range(tiles.GROUP)]
    assert sorted(chain(*places)) == list(product(range(64), range(16)))
    for thread, own in enumerate(places):
        assert {row for row, _ in own} == {row for row, _ in places[thread // 4 * 4]}


GOOD = tool.Kernel(
    name="sm_90a-bfloat16-64", registers=168, stack=0, spills=0, tensor=12, wgmma=12,
    async_copies=20, float_atomics=0, size=40000, fences=5, parameters=(),
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"stack": 8}, "8 bytes of stack"),
        ({"tensor": 0}, "tensor cores"),
        ({"async_copies": 0}, "asynchronous copy"),
        ({"fences": 0}, "no fence"),
    ],
)
def test_faults_are_seen(change: dict, fault: str) -> None:
    assert tool.faults(GOOD) == []
    assert fault in "; ".join(tool.faults(replace(GOOD, **change)))


def fields(path: str, begin: str, pattern: str) -> list[str]:
    """Names that a declaration in csrc holds, in their order."""
    text = (ROOT / "csrc" / path).read_text().partition(begin)[2]
    lines = re.findall(
        pattern, text.partition("\n}" if "{" in begin else "\n\n\n")[0], re.MULTILINE
    )
    return [name for line in lines for name in line.split(", ")]


def test_arguments_are_those_of_the_library() -> None:
    """The struct that the library fills has the fields of the kernel's arguments, in order."""
    of_kernel = fields("cute/token_rows.py", "class Call(NamedTuple):", r"^    (\w+): Int64$")
    of_library = fields("cuda/cute.h", "struct CuteCall {", r"^  int64_t ([\w, ]+);$")
    assert of_kernel == of_library and len(of_kernel) == 38


@pytest.fixture
def dsl() -> None:
    if tool.missing():
        pytest.skip(tool.missing())


@pytest.mark.usefixtures("dsl")
@pytest.mark.parametrize("arch", tool.ARCHS)
def test_machine_code(arch: str) -> None:
    kernels = list(tool.compile_all((arch,)))
    assert len(kernels) == len(tool.compile_kernels.DTYPES) * len(tiles.WIDTHS[arch])
    assert [tool.line(kernel) for kernel in kernels if tool.faults(kernel)] == []
    # One word each, as device.cu hands them over, and the scale at the end.
    words = tuple((8 * i, 8) for i in range(38))
    assert {kernel.parameters for kernel in kernels} == {(*words, (8 * 38, 4))}


@pytest.mark.usefixtures("dsl")
def test_layouts_are_those_of_the_products() -> None:
    """Where copies write a chunk is where a product reads it, and a thread's numbers of one product
    are, in their order, what it hands to the next."""
    import cutlass
    import forward_sm90
    from cutlass import cute
    from cutlass.cute.nvgpu import warpgroup
    from cutlass.utils import hopper_helpers

    seen = []

    @cute.jit(preprocess=False)
    def look() -> None:
        for rows, width in TILES:
            kernel = forward_sm90.Forward(cutlass.BFloat16, width)
            layout = kernel.layout(rows, 1, width)
            for row, chunk in product(range(rows), range(width // tiles.CHUNK)):
                place = layout.outer((row, chunk * tiles.CHUNK, 0)) * 2
                place ^= (place >> 7) % 8 << 4  # the swizzle of 128 bytes, which is of addresses
                seen.append((place, tiles.chunk_offset(row, chunk, rows)))
            assert str(layout.inner) == "S<3,4,3>"
        major = cute.nvgpu.OperandMajorMode
        for source in (warpgroup.OperandSource.SMEM, warpgroup.OperandSource.RMEM):
            mma = hopper_helpers.make_trivial_tiled_mma(
                cutlass.BFloat16, cutlass.BFloat16, major.K, major.K, cutlass.Float32, (1, 1, 1),
                (64, 16), source,
            )  # fmt: skip
            from_registers = source is warpgroup.OperandSource.RMEM
            layout = mma.tv_layout_A if from_registers else mma.tv_layout_C
            for thread, number in product(range(tiles.GROUP), range(8)):
                row, column = tiles.score_place(thread, number)
                seen.append((cute.crd2idx((thread, number), layout), row + 64 * column))

    cute.compile(look, options="--gpu-arch sm_90a")
    assert len(seen) > 4000
    assert [pair for pair in seen if pair[0] != pair[1]] == []
