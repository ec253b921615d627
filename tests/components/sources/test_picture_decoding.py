"""Pictures that Pillow alone would refuse, warn of, or show wrongly, in every place that opens one."""

from __future__ import annotations

import io
import os
import shutil
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from vilavt_components.sources.image import ImageConfig, ImageSource
from vilavt_components.sources.video.source import VideoConfig, VideoSource
from vilavt_toolkit.data.fields import BadRow
from vilavt_toolkit.data.originals import Inspector
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.utils.embedded import EmbeddedFile

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, data: bytes, wrong: bool = False) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ wrong)


def png(header: tuple[int, int, int, int], rows: bytes, *before: bytes, after: tuple[bytes, ...] = ()) -> bytes:
    """A PNG of (width, height, bits, colour type) with chunks before and after its pixels."""
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0)), *before]
    return SIGNATURE + b"".join([*parts, chunk(b"IDAT", zlib.compress(rows)), *after, chunk(b"IEND", b"")])


def shown(data: bytes, path: Path) -> np.ndarray:
    """The pixels of a picture, which every entrance must agree on."""
    path.write_bytes(data)
    pixels = ImageSource.open(path, ImageConfig()).pixels
    for original in (EmbeddedFile("a row's image", data), EmbeddedFile("a part", (path, (0, len(data))))):
        assert np.array_equal(ImageSource.open(original, ImageConfig()).pixels, pixels)
        assert Inspector(decode=True).inspect(original, video=False) == pixels.shape[1::-1]
    video = VideoSource.open(path, VideoConfig())
    assert np.array_equal(video.crop(video.extent).data, pixels)
    for decode in (False, True):
        assert Inspector(decode).inspect(str(path), video=False) == pixels.shape[1::-1]
    return pixels


RED = b"\0\xff\0\0"
TEXT = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 2_000_000))
UNIMPORTANT = {
    "a long text": (TEXT,),
    "many texts": (chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 1_000_000)),) * 70,
    "a long international text": (chunk(b"iTXt", b"C\0\1\0\0\0" + zlib.compress(b"x" * 2_000_000)),),
    "a large profile": (chunk(b"iCCP", b"p\0\0" + zlib.compress(b"x" * 2_000_000)),),
    "a wrong checksum of its resolution": (chunk(b"pHYs", b"\0" * 9, wrong=True),),
    "a wrong checksum of a text": (chunk(b"tEXt", b"a\0b", wrong=True),),
    "a wrong checksum of its gamma": (chunk(b"gAMA", b"\0" * 4, wrong=True),),
    "a wrong checksum of its EXIF": (chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0", wrong=True),),
    "a short resolution": (chunk(b"pHYs", b"\0"),),
}


@pytest.mark.parametrize("chunks", UNIMPORTANT.values(), ids=UNIMPORTANT)
def test_what_says_nothing_about_pixels_cannot_cost_a_png(tmp_path: Path, chunks: tuple[bytes, ...]) -> None:
    assert shown(png((1, 1, 8, 2), RED, *chunks), tmp_path / "a.png").tolist() == [[[255, 0, 0]]]
    assert shown(png((1, 1, 8, 2), RED, after=chunks), tmp_path / "b.png").tolist() == [[[255, 0, 0]]]


def test_exif_behind_the_pixels_of_a_png_turns_it_as_exif_before_them(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    part = chunk(b"eXIf", exif.tobytes()[6:])
    rows = b"\0\1\2\0\3\4\0\5\6"
    before = shown(png((2, 3, 8, 0), rows, part), tmp_path / "a.png")
    assert np.array_equal(before, shown(png((2, 3, 8, 0), rows, after=(part,)), tmp_path / "b.png"))
    assert before[..., 0].tolist() == [[5, 3, 1], [6, 4, 2]]


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_transparent_value_of_a_grey_png_is_white_in_every_depth(tmp_path: Path, bits: int) -> None:
    # Two pixels: the largest value and 0.
    width = max(8, 2 * bits)
    row = b"\0" + ((2**bits - 1) << (width - bits)).to_bytes(width // 8, "big")
    for transparent, seen in ((0, [255, 255]), (2**bits - 1, [255, 0])):
        data = png((2, 1, bits, 0), row, chunk(b"tRNS", transparent.to_bytes(2, "big")))
        assert shown(data, tmp_path / "a.png")[0, :, 0].tolist() == seen


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa"])
def test_an_image_in_memory_with_alpha_is_white_where_it_is_transparent(mode: str) -> None:
    assert ImageSource.open(Image.new(mode, (2, 1)), ImageConfig()).pixels.tolist() == [[[255] * 3] * 2]


def test_values_beside_the_transparent_one_stay_as_they_are(tmp_path: Path) -> None:
    deep = png((2, 1, 16, 0), b"\0\x01\x01\x01\x02", chunk(b"tRNS", b"\x01\x01"))
    assert shown(deep, tmp_path / "a.png")[0, :, 0].tolist() == [255, 1]
    two = png((4, 1, 2, 0), b"\0\x1b", chunk(b"tRNS", b"\0\x01"))
    assert shown(two, tmp_path / "b.png")[0, :, 0].tolist() == [0, 255, 170, 255]
    # By all sixteen bits, of which Pillow decodes eight.
    rgb = png((2, 1, 16, 2), b"\0\1\2\3\4\5\6\1\2\3\4\5\7", chunk(b"tRNS", b"\1\2\3\4\5\6"))
    assert shown(rgb, tmp_path / "c.png")[0].tolist() == [[255] * 3, [1, 3, 5]]
    plain = png((2, 1, 8, 2), b"\0\1\2\3\1\2\4", chunk(b"tRNS", b"\0\1\0\2\0\3"))
    assert shown(plain, tmp_path / "d.png")[0].tolist() == [[255] * 3, [1, 2, 4]]


@pytest.mark.parametrize(
    ("kind", "count", "value"),
    [
        (2, 2, b"6\0"),
        (2, 4, b"top\0"),
        (7, 1, b"\6"),
        (3, 0, b""),
        (3, 1, b"\0\0"),
        (3, 1, b"\0\x09"),
        (8, 1, b"\xff\xff"),
        (4, 1, b"\0\1\0\6"),
        (11, 1, b"\x40\xc0\0\0"),
        (99, 1, b"\0\6"),
    ],
)
def test_an_orientation_that_is_no_number_from_1_to_8_is_upright(
    tmp_path: Path, kind: int, count: int, value: bytes
) -> None:
    entry = struct.pack(">HHI", 0x0112, kind, count) + value.ljust(4, b"\0")
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 1) + entry + bytes(4)
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20)).save(buffer, "JPEG", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert shown(buffer.getvalue(), tmp_path / "a.jpg").shape == (20, 30, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_every_orientation_is_turned_as_pillow_turns_it(tmp_path: Path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image, buffer = Image.fromarray(np.arange(18, dtype=np.uint8).reshape(2, 3, 3)), io.BytesIO()
    image.save(buffer, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(buffer.getvalue()))))
    assert np.array_equal(shown(buffer.getvalue(), tmp_path / "a"), expected)


def malformed_mpo(folder: Path) -> Path:
    image = Image.new("RGB", (8, 8))
    image.save(folder / "a.jpg", format="MPO", save_all=True, append_images=[image])
    data = (folder / "a.jpg").read_bytes()
    (folder / "a.jpg").write_bytes(data.replace(b"MPF\0", b"MPF\0\xff", 1))
    return folder / "a.jpg"


def many_entries(folder: Path) -> Path:
    Image.new("RGB", (8, 8)).save(folder / "a.tif", tiffinfo={305: "x" * 100})
    data = bytearray((folder / "a.tif").read_bytes())
    place = data.index(b"x" * 100)
    del data[place + 50 :]
    (folder / "a.tif").write_bytes(data)
    return folder / "a.tif"


def palette_of_bytes(folder: Path) -> Path:
    image = Image.new("P", (4, 4))
    image.putpalette([1, 2, 3, 4, 5, 6])
    image.save(folder / "a.png", transparency=b"\x80\x40")
    return folder / "a.png"


def invalid_animation(folder: Path) -> Path:
    data = png((1, 1, 8, 2), RED, chunk(b"acTL", b"\0" * 8), chunk(b"acTL", b"\0" * 8))
    (folder / "a.png").write_bytes(data)
    return folder / "a.png"


@pytest.mark.parametrize("make", [malformed_mpo, many_entries, palette_of_bytes, invalid_animation])
def test_no_warning_of_pillows_is_seen(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for work in (
            lambda: ImageSource.open(path, ImageConfig()),
            lambda: VideoSource.open(path, VideoConfig()),
            lambda: Inspector(decode=True).inspect(str(path), video=False),
        ):
            try:
                work()
            except (InputError, BadRow) as error:
                assert "damaged" in str(error)


# --- Limits -------------------------------------------------------------------------------------------


def test_an_image_of_any_place_is_refused_by_its_header_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = png((30_000, 30_000, 8, 2), RED)
    (tmp_path / "a.png").write_bytes(data)

    def refuse(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    opened = Image.open(io.BytesIO(png((20_000, 4_460, 8, 2), RED)))
    for original in (tmp_path / "a.png", EmbeddedFile("inside", data), opened):
        for source, config in ((ImageSource, ImageConfig()), (VideoSource, VideoConfig())):
            with pytest.raises(InputError, match="too large"):
                source.open(original, config)
    with pytest.raises(BadRow, match=r"30000 x 30000 pixels, and at most 89,000,000 are decoded"):
        Inspector(decode=True).inspect(str(tmp_path / "a.png"), video=False)
    assert Inspector().inspect(str(tmp_path / "a.png"), video=False) == (30_000, 30_000)


def test_the_default_limit_is_below_pillows() -> None:
    assert ImageConfig().max_pixels == VideoConfig().max_pixels < Image.MAX_IMAGE_PIXELS


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize("name", ["a.eps", "a.png", "a.jpg", "a"])
def test_postscript_starts_no_program_whatever_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", None)
    (tmp_path / name).write_bytes(EPS)
    for work in (
        lambda: ImageSource.open(tmp_path / name, ImageConfig()),
        lambda: ImageSource.open(EmbeddedFile(name, EPS), ImageConfig()),
        lambda: Inspector(decode=True).inspect(str(tmp_path / name), video=False),
    ):
        with pytest.raises((InputError, BadRow), match=r"in the format EPS, which is not read\. Convert it to PNG"):
            work()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "AVIF", "PPM", "TIFF"])
def test_a_damaged_header_is_no_unknown_format(tmp_path: Path, kind: str) -> None:
    if kind not in Image.registered_extensions().values():
        pytest.skip("this Pillow does not read it")
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, kind)
    (tmp_path / "a").write_bytes(buffer.getvalue()[:16])
    with pytest.raises(InputError, match="damaged or cut off"):
        ImageSource.open(tmp_path / "a", ImageConfig())
    if kind != "PPM":  # which PyAV reads
        with pytest.raises(InputError, match="damaged or cut off"):
            VideoSource.open(tmp_path / "a", VideoConfig())


def test_too_little_memory_is_called_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load_prepare", fail)
    with pytest.raises(InputError, match=r"a\.png needs more memory than is free\. Scale it down"):
        ImageSource.open(tmp_path / "a.png", ImageConfig())


def test_large_images_are_converted_in_strips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    images = [
        Image.fromarray(rng.integers(0, 256, (9, 7, 4), np.uint8)),
        Image.fromarray(rng.integers(0, 65536, (9, 7), np.uint16)),
        Image.fromarray(rng.normal(size=(9, 7)).astype(np.float32)),
    ]
    whole = [ImageSource.open(image, ImageConfig()).pixels for image in images]
    monkeypatch.setattr("vilavt_components.sources.picture_decoding._STRIP", 14)
    for image, pixels in zip(images, whole, strict=True):
        assert np.array_equal(ImageSource.open(image, ImageConfig()).pixels, pixels)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files through /proc")
def test_no_embedded_file_stays_open(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    size = (tmp_path / "b.png").stat().st_size
    before = len(os.listdir("/proc/self/fd"))
    for span in ((0, size), (3, size), (0, 40)):
        original = EmbeddedFile("inside", (tmp_path / "b.png", span))
        for source, config in ((ImageSource, ImageConfig()), (VideoSource, VideoConfig())):
            try:
                source.open(original, config)
            except InputError as error:
                assert "inside" in str(error)
    assert len(os.listdir("/proc/self/fd")) == before
