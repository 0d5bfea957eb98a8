# SPDX-License-Identifier: BSD-3-Clause
"""Pictures of every kind: turned by EXIF, 16 bit, float, transparent, of many frames, broken."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import data_trees as trees
import numpy as np
import pytest
from PIL import Image, ImageOps

from maskattn_kernels.segmentation.data import DataError, open_dataset
from maskattn_kernels.segmentation.data import images as image_files
from maskattn_kernels.segmentation.data.images import read_frames, read_image, read_labels
from maskattn_kernels.segmentation.prediction.frames import frames

CORNERS = np.arange(1, 25, dtype=np.uint8).reshape(4, 6) * 10


def saved(path: Path, picture: Image.Image, turn: int = 1, **options: object) -> Path:
    exif = Image.Exif()
    exif[0x112] = turn
    picture.save(path, exif=exif, **options)
    return path


@pytest.mark.parametrize("ending", ["png", "tif", "webp", "jpg"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_images_are_read_as_viewers_show_them(tmp_path: Path, ending: str, turn: int) -> None:
    options = {"lossless": True} if ending == "webp" else {}
    path = saved(tmp_path / f"a.{ending}", Image.fromarray(CORNERS).convert("RGB"), turn, **options)
    with Image.open(path) as picture:
        shown = np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    np.testing.assert_array_equal(read_image(path), shown)
    (read,) = frames(path)
    np.testing.assert_array_equal(read().image, shown)
    assert shown.shape[:2] == ((6, 4) if turn > 4 else (4, 6))


def test_compressed_tiffs_are_turned_once(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", Image.fromarray(CORNERS), 6, compression="tiff_lzw")
    np.testing.assert_array_equal(read_image(path)[..., 0], np.rot90(CORNERS, -1))


@pytest.mark.parametrize("turn", [3, 6])
def test_masks_that_exif_turns_are_refused(tmp_path: Path, turn: int) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(CORNERS), turn)
    with pytest.raises(DataError, match=rf"labels with EXIF orientation {turn}, .* save them upri"):
        read_labels(path)
    saved(path, Image.fromarray(CORNERS), 1)
    np.testing.assert_array_equal(read_labels(path), CORNERS)


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_masks_of_a_lossy_format_under_another_ending(tmp_path: Path, form: str) -> None:
    Image.fromarray(CORNERS).convert("RGB").save(tmp_path / "a.png", format=form)
    with pytest.raises(DataError, match=f"a {form} file, which may not keep labels exactly; save "):
        read_labels(tmp_path / "a.png")


def raw_png(values: np.ndarray, bits: int, color: int) -> bytes:
    """A PNG of ``values`` (H,W,channels), as Pillow cannot write it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    height, width = values.shape[:2]
    places = values[..., None] >> np.arange(bits)[::-1] & 1
    rows = np.packbits(places.reshape(height, -1).astype(np.uint8), axis=1)
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_masks_are_read_as_stored(tmp_path: Path, bits: int) -> None:
    values = np.arange(6).reshape(2, 3) % 2**bits
    (tmp_path / "a.png").write_bytes(raw_png(values, bits, 0))
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png"), values)


@pytest.mark.parametrize(("channels", "color"), [(2, 4), (3, 2), (4, 6)])
def test_masks_of_16_bits_in_colour_are_refused(tmp_path: Path, channels: int, color: int) -> None:
    values = np.full((2, 3, channels), 7)
    (tmp_path / "a.png").write_bytes(raw_png(values, 16, color))
    with pytest.raises(DataError, match=r"16 bits a channel in colour; save them in grey"):
        read_labels(tmp_path / "a.png")


def test_broken_exif_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(CORNERS).save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\xffnonsense")
    assert read_image(path).shape == (4, 6, 3)


def test_labels_of_the_stored_size_are_told_about_exif(tmp_path: Path) -> None:
    trees.folder(tmp_path)
    for path in (tmp_path / "images").iterdir():
        saved(path, Image.new("RGB", (8, 6)), 6)
    samples = open_dataset("folder", tmp_path)
    with pytest.raises(DataError, match=r"masks/.\.png: labels of 8 x 6 .* 6 x 8; .*orientation 6"):
        samples[0]
    for kind, dtype in (("masks", np.uint8), ("instances", np.uint16)):
        for path in (tmp_path / kind).iterdir():
            trees.save(path, trees.grid(0, 7, 0, dtype).T.copy())
    sample = samples[0]
    assert sample.image.shape[:2] == sample.semantic.shape == (8, 6)


RAMP = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
LEVELS = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_16_bits_become_8(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    Image.fromarray(RAMP).save(path)
    np.testing.assert_array_equal(read_image(path), np.repeat(LEVELS[..., None], 3, axis=2))


def test_big_endian_tiffs_are_scaled_too(tmp_path: Path) -> None:
    picture = Image.frombytes("I;16B", (16, 16), RAMP.astype(">u2").tobytes())
    picture.save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[..., 0], LEVELS)


def test_a_tiff_that_declares_12_bits_is_scaled_by_them(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(RAMP >> 4).save(path, tiffinfo={281: 4095})
    difference = read_image(path)[..., 0].astype(int) - LEVELS
    assert np.abs(difference).max() <= 1 and read_image(path).max() == 255


def test_a_16_bit_tiff_where_0_is_white_is_no_negative(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(65535 - RAMP).save(path)
    content = bytearray(path.read_bytes())
    place = content.index((262).to_bytes(2, "little") + (3).to_bytes(2, "little"))
    content[place + 8] = 0  # photometric interpretation
    path.write_bytes(content)
    np.testing.assert_array_equal(read_image(path)[..., 0], LEVELS)


def tiff_of_16_bit_colours(path: Path, colors: np.ndarray) -> None:
    """An uncompressed RGB TIFF of 16 bits a channel, which Pillow reads and does not write."""
    height, width = colors.shape[:2]
    data = colors.astype("<u2").tobytes()
    entries = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, 3, 8 + len(data)),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 8),
        (277, 3, 1, 3),
        (278, 3, 1, height),
        (279, 4, 1, len(data)),
    ]
    bits = np.array([16, 16, 16], "<u2").tobytes()
    table = len(entries).to_bytes(2, "little")
    for tag, kind, count, value in entries:
        table += tag.to_bytes(2, "little") + kind.to_bytes(2, "little")
        table += count.to_bytes(4, "little") + value.to_bytes(4, "little")
    offset = 8 + len(data) + len(bits)
    path.write_bytes(b"II*\0" + offset.to_bytes(4, "little") + data + bits + table + bytes(4))


@pytest.mark.parametrize("values", [RAMP >> 4, (LEVELS > 5).astype(np.uint16) * 255])
def test_12_or_fewer_bits_in_16_are_refused(tmp_path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(tmp_path / "a.png")
    tiff_of_16_bit_colours(tmp_path / "b.tif", np.repeat((RAMP >> 4)[..., None], 3, axis=2))
    for name in ("a.png", "b.tif"):
        with pytest.raises(DataError, match=rf"{name}: 16-bit pixels below 4096 only"):
            read_image(tmp_path / name)


def test_16_bit_colours_and_black_pictures_are_read(tmp_path: Path) -> None:
    tiff_of_16_bit_colours(tmp_path / "a.tif", np.repeat(RAMP[..., None], 3, axis=2))
    difference = read_image(tmp_path / "a.tif")[..., 0].astype(int) - LEVELS
    assert np.abs(difference).max() <= 1
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "b.png")
    assert read_image(tmp_path / "b.png").max() == 0


def test_floats_are_levels_from_0_to_1(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(LEVELS.astype(np.float32) / 255).save(path)
    np.testing.assert_array_equal(read_image(path)[..., 0], LEVELS)
    for values in (LEVELS - np.float32(0.5), LEVELS / np.float32(254), LEVELS * np.float32("nan")):
        Image.fromarray(values).save(path)
        with pytest.raises(DataError, match=r"a\.tif: floating-point pixels from .* 0 to 1"):
            read_image(path)
    Image.fromarray(LEVELS.astype(np.int32) * 900).save(path)
    with pytest.raises(DataError, match=r"a\.tif: signed or 32-bit whole numbers"):
        read_image(path)


def palette_with_alpha() -> Image.Image:
    picture = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8)).convert("P")
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.info["transparency"] = bytes([255, 0])
    return picture


TRANSPARENT = {
    "RGBA": Image.fromarray(np.array([[[10, 20, 30, 255], [200, 100, 50, 0]]] * 2, np.uint8)),
    "LA": Image.merge(
        "LA", [Image.new("L", (2, 2), 40), Image.linear_gradient("L").resize((2, 2))]
    ),
    "P": palette_with_alpha(),
}


@pytest.mark.parametrize("mode", TRANSPARENT)
def test_transparent_pixels_are_laid_over_white(tmp_path: Path, mode: str) -> None:
    TRANSPARENT[mode].save(tmp_path / "a.png")
    rgba = np.array(TRANSPARENT[mode].convert("RGBA")).astype(float)
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(read_image(tmp_path / "a.png") - expected).max() <= 1


def test_a_colour_that_means_transparent(tmp_path: Path) -> None:
    colors = Image.fromarray(np.array([[[9, 8, 7], [1, 2, 3]]], np.uint8))
    colors.save(tmp_path / "a.png", transparency=(9, 8, 7))
    assert read_image(tmp_path / "a.png").tolist() == [[[255, 255, 255], [1, 2, 3]]]
    Image.new("RGBA", (3, 3), (9, 9, 9, 0)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"b\.png: every pixel is transparent"):
        read_image(tmp_path / "b.png")


def test_cmyk_is_colour(tmp_path: Path) -> None:
    colors = Image.new("RGB", (8, 8), (200, 30, 60))
    colors.convert("CMYK").save(tmp_path / "a.jpg", quality=98)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - (200, 30, 60)).max() <= 6


def pictures(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (8, 6), (60 * n, 0, 0)) for n in range(1, count + 1)]


@pytest.mark.parametrize(
    ("ending", "count"), [("gif", 3), ("tif", 3), ("png", 3), ("webp", 3), ("mpo", 1)]
)
def test_films_have_frames_and_photographs_one(tmp_path: Path, ending: str, count: int) -> None:
    path = tmp_path / f"a.{ending}"
    first, *more = pictures(3)
    options = {"lossless": True} if ending == "webp" else {}
    first.save(path, save_all=True, append_images=more, **options)
    found = list(frames(str(path)))
    names = ["a"] if count == 1 else [f"a-{n:06d}" for n in range(count)]
    assert [read().name for read in found] == names
    reds = [int(read().image[0, 0, 0]) for read in found]
    assert np.abs(np.array(reds) - [60, 120, 180][:count]).max() <= 2
    assert abs(int(read_image(path)[0, 0, 0]) - 60) <= 2, "a folder takes the first frame"


def test_thumbnails_in_a_tiff_are_no_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    first, second = pictures(2)
    second.encoderinfo = {"tiffinfo": {254: 1}}
    first.save(path, save_all=True, append_images=[second])
    assert [read().name for read in frames(path)] == ["a"]


def test_the_pixel_limit_holds_for_every_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tif"
    pictures(1)[0].save(path, save_all=True, append_images=[Image.new("RGB", (100, 100))])
    monkeypatch.setattr(image_files, "MAX_PIXELS", 1000)
    found = list(frames(str(path)))
    assert found[0]().image.shape == (6, 8, 3)
    with pytest.raises(DataError, match=r"a\.tif: 100 x 100 pixels; expected at most"):
        found[1]()


def broken(ending: str, keep: float) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
    first, *more = map(Image.fromarray, noise)
    first.save(buffer, ending, save_all=True, append_images=more)
    return buffer.getvalue()[: int(keep * buffer.tell())]


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("ending", ["gif", "tiff", "png", "webp"])
def test_a_film_that_breaks_off_names_its_file(tmp_path: Path, ending: str, keep: float) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_bytes(broken(ending, keep))
    with pytest.raises(DataError, match=rf"a\.{ending}: .+"):
        for read in frames(path):
            assert read().image.shape == (40, 40, 3)


def test_nothing_but_the_error_is_printed(tmp_path: Path) -> None:
    """Pillow warns of sizes, of metadata and of what it cannot decode; its log goes to stderr."""
    Image.new("1", (12_000, 8_000)).save(tmp_path / "large.png")  # below our limit, above Pillow's
    tiff_of_16_bit_colours(tmp_path / "many.tif", np.zeros((4, 4, 3)))
    content = bytearray((tmp_path / "many.tif").read_bytes())
    content[content.index((277).to_bytes(2, "little")) + 8] = 77  # channels
    (tmp_path / "many.tif").write_bytes(content)
    code = (
        "import sys; from pathlib import Path\n"
        "from maskattn_kernels.segmentation.data.images import read_frames\n"
        "for path in sys.argv[1:]:\n"
        "    try: list(read_frames(Path(path)))\n"
        "    except ValueError as error: print(error)\n"
    )
    files = [str(tmp_path / name) for name in ("large.png", "many.tif")]
    run = subprocess.run(
        [sys.executable, "-c", code, *files], capture_output=True, text=True, env=os.environ
    )
    assert run.returncode == 0 and run.stderr == ""
    assert len(run.stdout.splitlines()) == 1 and "many.tif" in run.stdout


def test_frames_are_not_read_before_they_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    first, *more = pictures(3)
    first.save(path, save_all=True, append_images=more)
    assert next(read_frames(path)).shape == (6, 8, 3)
