"""Images of every kind are read right, bad ones are refused in a sentence, crops come from the original."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vilavt_components.sources.image import ImageConfig, ImageSource
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.vision.boxes import BoxError

CONFIG = ImageConfig()
RED, WHITE = (255, 0, 0), (255, 255, 255)


def pixels(original: object, config: ImageConfig = CONFIG) -> np.ndarray:
    return ImageSource.open(original, config).pixels


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def corners() -> Image.Image:
    """3 wide, 2 high, its first pixel red."""
    image = Image.new("RGB", (3, 2), "white")
    image.putpixel((0, 0), RED)
    return image


def test_path_pil_image_and_array_read_the_same(tmp_path: Path) -> None:
    path = saved(corners(), tmp_path / "a.png")
    expected = np.asarray(corners())
    for original in (path, str(path), corners(), expected):
        assert np.array_equal(pixels(original), expected)


@pytest.mark.parametrize(("orientation", "red_at"), [(3, (1, 2)), (6, (0, 1)), (8, (2, 0))])
def test_a_rotated_photo_is_turned_upright(tmp_path: Path, orientation: int, red_at: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    read = pixels(saved(corners(), tmp_path / "a.png", exif=exif))
    assert read.shape == ((2, 3, 3) if orientation == 3 else (3, 2, 3))
    assert tuple(read[red_at]) == RED


def test_a_malformed_exif_block_does_not_cost_the_image(tmp_path: Path) -> None:
    path = saved(corners().resize((30, 20), 0), tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\x01\x12")
    assert pixels(path).shape == (20, 30, 3)


def test_cmyk_reads_as_the_colour_it_prints(tmp_path: Path) -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    for name in ("a.tif", "a.jpg"):
        assert np.abs(pixels(saved(image, tmp_path / name)).astype(int) - RED).max() < 8


def test_palettes_read_as_their_colours_and_transparency_as_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    assert pixels(saved(image, tmp_path / "a.png"))[0].tolist() == [[255, 0, 0], [0, 0, 255]]
    read = pixels(saved(image, tmp_path / "b.png", transparency=1))
    assert read[0].tolist() == [[255, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize(
    ("image", "value"),
    [
        (Image.new("RGBA", (1, 1), (255, 0, 0, 0)), [255, 255, 255]),
        (Image.new("RGBA", (1, 1), (255, 0, 0, 255)), [255, 0, 0]),
        (Image.new("LA", (1, 1), (0, 0)), [255, 255, 255]),
        (Image.new("LA", (1, 1), (100, 255)), [100, 100, 100]),
        (Image.new("1", (1, 1), 1), [255, 255, 255]),
        (Image.new("L", (1, 1), 77), [77, 77, 77]),
    ],
)
def test_grey_one_bit_and_transparent_images(tmp_path: Path, image: Image.Image, value: list[int]) -> None:
    assert pixels(saved(image, tmp_path / "a.png"))[0, 0].tolist() == value


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_is_scaled_and_not_clipped(tmp_path: Path, suffix: str) -> None:
    image = Image.fromarray(np.array([[0, 257, 32768, 65535]], np.uint16))
    assert pixels(saved(image, tmp_path / f"a.{suffix}"))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("values", "read"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([0.0, 257.0, 65535.0], [0, 1, 255]),
        ([-100.0, 0.0, 155.0], [0, 100, 255]),
        ([0.0, np.nan, np.inf], [0, 0, 255]),
        ([70000.0, 70000.0, 70000.0], [0, 0, 0]),
    ],
)
def test_32_bit_is_scaled_from_the_range_it_fits(tmp_path: Path, values: list[float], read: list[int]) -> None:
    image = Image.fromarray(np.array([values], np.float32))
    assert pixels(saved(image, tmp_path / "a.tif"))[0, :, 0].tolist() == read
    if np.isfinite(values).all() and max(values) > 1:
        whole = Image.fromarray(np.array([values], np.int32))
        assert pixels(saved(whole, tmp_path / "b.tif"))[0, :, 0].tolist() == read


def test_an_animation_reads_as_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    path = saved(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert tuple(pixels(path)[0, 0]) == RED


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def bad_files(folder: Path) -> dict[str, Path]:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    files = {name: folder / name for name in ("missing.png", "empty.png", "text.png", "cut.jpg", "cut.png", "bomb.png")}
    files["empty.png"].touch()
    files["text.png"].write_text("not an image")
    for kind in ("JPEG", "PNG"):
        whole = io.BytesIO()
        noise.save(whole, kind)
        cut = files["cut.jpg" if kind == "JPEG" else "cut.png"]
        cut.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    files["bomb.png"].write_bytes(png_header(60_000, 60_000))
    files["folder.png"] = folder / "folder.png"
    files["folder.png"].mkdir()
    return files


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.png", "does not exist. Check the path"),
        ("empty.png", "is empty"),
        ("text.png", "is not an image in a known format"),
        ("cut.jpg", "is damaged or cut off"),
        ("cut.png", "is damaged or cut off"),
        ("bomb.png", "is too large"),
        ("folder.png", "is a folder"),
    ],
)
def test_a_bad_file_is_refused_in_one_sentence_that_names_it(tmp_path: Path, name: str, words: str) -> None:
    path = bad_files(tmp_path)[name]
    with pytest.raises(InputError) as error:
        ImageSource.open(path, CONFIG)
    assert words in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_random_damage_never_raises_anything_but_input_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (24, 24, 3), np.uint8))
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "ICO"):
        buffer = io.BytesIO()
        noise.save(buffer, kind)
        for trial in range(40):
            data = bytearray(buffer.getvalue())
            for place in rng.integers(0, min(len(data), 200), 6):
                data[place] = rng.integers(256)
            path = tmp_path / f"{kind}{trial}"
            path.write_bytes(data)
            try:
                source = ImageSource.open(path, ImageConfig(max_pixels=10**6))
            except InputError as error:
                assert "\n" not in str(error)
            else:
                assert source.pixels.dtype == np.uint8 and source.pixels.shape[2] == 3


@pytest.mark.filterwarnings("ignore:Metadata Warning")
@pytest.mark.parametrize("compression", ["group4", "tiff_lzw", "tiff_adobe_deflate", "jpeg"])
def test_a_damaged_tiff_writes_nothing_to_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], compression: str
) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "bad.tif"
    image = Image.fromarray(rng.integers(0, 256, (64, 80, 3), dtype=np.uint8))
    image.convert("1" if compression == "group4" else "RGB").save(path, compression=compression)
    whole, refused = path.read_bytes(), 0
    for _ in range(12):
        damaged = bytearray(whole)
        for place in rng.integers(8, len(whole), 12):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            ImageSource.open(path, ImageConfig())
        except InputError:
            refused += 1
        # An image that somebody else opened is decoded here too.
        with suppress(InputError, OSError, SyntaxError), Image.open(path) as opened:
            ImageSource.open(opened, ImageConfig())
    assert refused
    # libtiff writes to the file descriptor, and not through Python.
    assert capfd.readouterr() == ("", "")


def test_the_pixel_limit_is_a_setting(tmp_path: Path) -> None:
    image = Image.new("RGB", (100, 100))
    path = saved(image, tmp_path / "a.png")
    for original in (path, image, np.asarray(image)):
        with pytest.raises(InputError, match="too large"):
            ImageSource.open(original, ImageConfig(max_pixels=9_999))
        assert pixels(original, ImageConfig(max_pixels=10_000)).shape == (100, 100, 3)


def test_images_beyond_pillows_own_limit_can_be_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(Image.new("RGB", (100, 100)), tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixels(path).shape == (100, 100, 3)
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3)),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_an_array_of_another_kind_is_refused_by_its_shape(array: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"uint8 \[h, w, 3\]"):
        ImageSource.open(array, CONFIG)


def test_something_else_is_refused_by_its_type() -> None:
    with pytest.raises(InputError, match="not int"):
        ImageSource.open(3, CONFIG)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files through /proc")
def test_no_file_stays_open(tmp_path: Path) -> None:
    files = [*bad_files(tmp_path).values(), saved(corners(), tmp_path / "good.png")]
    before = len(os.listdir("/proc/self/fd"))
    for path in files:
        try:
            ImageSource.open(path, CONFIG)
        except InputError:
            continue
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_name_longer_than_the_system_allows_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x\.png cannot be read \(File name too long\). Check the path"):
        ImageSource.open(tmp_path / f"{'x' * 300}.png", CONFIG)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may enter every folder")
def test_a_folder_that_may_not_be_entered_is_one_sentence(tmp_path: Path) -> None:
    path = saved(corners(), tmp_path / "a.png")
    tmp_path.chmod(0)
    try:
        with pytest.raises(InputError, match=r"a\.png cannot be read: permission denied"):
            ImageSource.open(path, CONFIG)
    finally:
        tmp_path.chmod(0o700)


def test_a_source_is_named_after_its_file(tmp_path: Path) -> None:
    path = saved(corners(), tmp_path / "a.png")
    assert ImageSource.open(path, CONFIG).name == str(path)
    assert ImageSource.open(corners(), CONFIG).name == "the image in memory"


def test_crops_are_pixels_of_the_original() -> None:
    array = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    source = ImageSource.open(array, CONFIG)
    outer = source.read_box({"bbox_2d": [0, 0, 5, 5]}, source.extent, (10, 10))
    inner = source.read_box({"bbox_2d": [5, 5, 10, 10]}, outer, 10)
    crop = source.crop(inner)
    assert np.array_equal(crop.data, array[5:10, 7:15]) and not crop.overview
    assert np.array_equal(source.crop(source.extent, overview=True).data, array)


def test_a_box_may_have_fractions_of_pixels_and_none_of_units() -> None:
    source = ImageSource.open(np.zeros((20, 30, 3), np.uint8), CONFIG)
    half = source.read_box({"bbox_2d": [2.5, 0, 7.5, 10]}, source.extent, (10, 10))
    assert half == source.read_box({"bbox_2d": [25, 0, 75, 100]}, source.extent, 100)
    with pytest.raises(BoxError, match="must hold whole numbers from 0 to 10"):
        source.read_box({"bbox_2d": [2.5, 0, 7.5, 10]}, source.extent, 10)


def test_boxes_are_cut_outward_or_as_the_paper_cuts_them() -> None:
    array = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    box = {"bbox_2d": [1, 1, 6, 6]}
    for rounding, expected in (("outward", array[2:18, 4:26]), ("truncate", array[2:17, 4:25])):
        source = ImageSource.open(array, ImageConfig(rounding=rounding))
        assert np.array_equal(source.crop(source.read_box(box, source.extent, (7, 7))).data, expected)
        assert np.array_equal(source.crop(source.extent).data, array)


def test_a_box_cut_to_whole_pixels_has_a_pixel_at_least_and_is_no_smaller_than_half_of_one() -> None:
    array = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    source = ImageSource.open(array, ImageConfig(rounding="truncate"))
    small = source.read_box({"bbox_2d": [27, 18, 28, 19]}, source.extent, (45, 30))
    assert np.array_equal(source.crop(small).data, array[12:13, 18:19])
    with pytest.raises(BoxError, match="half a pixel"):
        source.read_box({"bbox_2d": [0, 0, 1, 100]}, source.extent, 100)


def test_a_tool_call_with_a_missing_or_foreign_key_is_told_so() -> None:
    source = ImageSource.open(corners(), CONFIG)
    with pytest.raises(BoxError, match=r'"bbox_2d": .* is missing'):
        source.read_box({"box": [0, 0, 1, 1]}, source.extent, 3)
    with pytest.raises(BoxError, match='"frame" does not belong'):
        source.read_box({"bbox_2d": [0, 0, 1, 1], "frame": 3}, source.extent, 3)
    assert source.write_box((0, 0, 1, 2), source.extent, (3, 2)) == {"bbox_2d": [0, 0, 1, 2]}


def test_drawn_boxes_are_where_they_belong() -> None:
    source = ImageSource.open(np.full((50, 100, 3), 128, np.uint8), CONFIG)
    picture = source.draw([(0, 0, 50, 50), (90, 40, 100, 50)], 640)
    assert picture.size == (640, 320)
    drawn = np.asarray(picture) != 128
    assert drawn[:, 0:4].any(axis=2).all(), "the left edge of the first box"
    assert drawn[-4:, 600:].any(axis=2).all(), "the lower edge of the second box, label inside the picture"
    assert not drawn[:, 330:560].any(), "nothing where no box is"


def test_the_same_box_drawn_often_keeps_its_numbers_apart() -> None:
    source = ImageSource.open(np.full((100, 100, 3), 128, np.uint8), CONFIG)
    one, many = (np.asarray(source.draw([(40, 40, 80, 80)] * n, 640)) for n in (1, 4))
    assert (one != many).any(axis=2).sum() > 3 * 200
