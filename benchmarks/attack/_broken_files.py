"""Sound files of every modality, and how they are broken."""

from __future__ import annotations

import io
import random
import re
import tempfile
import warnings
import wave
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Sample = tuple[str, bytes]
"""A file's suffix and content."""

_HOSTILE_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_HOSTILE_TEXTS = (
    "nan", "inf", "-1", "0", "1e400", "9" * 30, "9" * 5000, "", " ", ",", "\0", "\r", "\r\n", "#", "//", "(", "'", "{",
    "x", "é", "\ufeff", "end_header", "x,y,z", "list", "element vertex 99999999", "property float x", "OFF", "1_0",
    "0x10",
)  # fmt: skip


def break_file(data: bytes, chance: random.Random) -> bytes:
    """Return a file broken in one to three places."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        data = chance.choice(_BREAKS)(data, chance)
    return data


# --- Ways to break a file ------------------------------------------------------------------------------


def _cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def _flip(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 4, 30))):
        if changed:
            changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def _change_header(data: bytes, chance: random.Random) -> bytes:
    """Put a hostile number of 1 to 4 bytes into the first bytes, where sizes and counts stand."""
    if not data:
        return data
    size = chance.choice((1, 2, 4))
    place = chance.randrange(min(len(data), 120))
    number = chance.choice(_HOSTILE_NUMBERS) & (256**size - 1)
    return data[:place] + number.to_bytes(size, chance.choice(("little", "big"))) + data[place + size :]


def _change_text(data: bytes, chance: random.Random) -> bytes:
    """Put a hostile text in place of a word, or between two."""
    words = list(re.finditer(rb"[^\s,;]+", data[:4000]))
    word = chance.choice(words) if words else None
    start, end = word.span() if word is not None else (0, 0)
    text = chance.choice(_HOSTILE_TEXTS).encode()
    return data[:start] + text + data[start if chance.random() < 0.3 else end :]


def _change_count(data: bytes, chance: random.Random) -> bytes:
    """Change a number that is written in digits."""
    numbers = list(re.finditer(rb"\d+", data[:2000]))
    if not numbers:
        return data
    found = chance.choice(numbers)
    new = chance.choice((0, 1, 2, int(found[0][:9]) + 1, int(found[0][:9]) * 2, 10**6, 10**9, 10**12, 10**30, -1))
    return data[: found.start()] + str(new).encode() + data[found.end() :]


def _repeat_part(data: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(data) + 1)
    part = data[start : start + chance.choice((1, 8, 64, 1000))]
    return data[:start] + part * chance.choice((2, 3, 50)) + data[start + len(part) :]


def _drop_part(data: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(data) + 1)
    return data[:start] + data[start + chance.choice((1, 4, 40, 400)) :]


_BREAKS = (_cut, _flip, _flip, _change_header, _change_header, _change_text, _change_count, _repeat_part, _drop_part)


# --- Sound files ---------------------------------------------------------------------------------------


def collect_images() -> list[Sample]:
    """Return an image in every format and usual mode that the installed Pillow writes, without the animated ones."""
    Image.init()
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 4), np.uint8)
    images = [Image.fromarray(noise).convert(mode) for mode in ("RGB", "RGBA", "L", "P", "1", "LA", "CMYK")]
    images += [
        Image.fromarray(noise[..., 0].astype(np.uint16) * 200),
        Image.fromarray(noise[..., 0].astype(np.float32)),
    ]
    images += [Image.fromarray(noise[..., 0].astype(np.int32) * 70_000)]
    exif = Image.Exif()
    exif[0x0112] = 6
    found = []
    # Palm and PDF are written only, and EPS is not read.
    for kind in sorted(set(Image.SAVE) - {"PDF", "EPS", "PALM"}):
        for image in images:
            for options in ({}, {"exif": exif}):
                data = _save(image, kind, **options)
                if data is not None:
                    found.append((f".{kind.lower()}", data))
    return found


def collect_animations() -> list[Sample]:
    """Return animated images in every format that can hold some."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 32, 40, 3), np.uint8)
    frames = [Image.fromarray(each) for each in noise]
    found = []
    for kind in ("GIF", "PNG", "WEBP", "AVIF", "TIFF", "MPO"):
        for mode in ("RGB", "RGBA", "P"):
            first, *others = [frame.convert(mode) for frame in frames]
            data = _save(first, kind, save_all=True, append_images=others, duration=[40, 0, 70, 200, 10, 30])
            if data is not None:
                found.append((f".{kind.lower()}", data))
    return found


def _save(image: Image.Image, kind: str, **options: Any) -> bytes | None:
    """Return an image in a format, None if the format does not hold it."""
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.save(buffer, kind, **options)
    except Exception:  # what a format cannot hold, each says with an exception of its own
        return None
    return buffer.getvalue()


def collect_videos() -> list[Sample]:
    """Return short videos in the usual containers, and sound alone; nothing without PyAV."""
    try:
        import av
    except ImportError:
        return []
    noise = np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), np.uint8)
    found = []
    # Through files, since some containers are finished by going back in them.
    with tempfile.TemporaryDirectory() as folder:
        for suffix, codec in _CONTAINERS:
            path = Path(folder) / f"a{suffix}"
            with av.open(str(path), "w") as container:
                stream = container.add_stream(codec, rate=25)
                stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 48, "yuv420p", 5
                for frame in noise:
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
                container.mux(stream.encode())
            found.append((suffix, path.read_bytes()))
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(1600))
    return [*found, (".wav", sound.getvalue())]


_CONTAINERS = (
    (".mp4", "mpeg4"), (".mkv", "mpeg4"), (".avi", "mpeg4"), (".ts", "mpeg2video"), (".mpg", "mpeg2video"),
    (".flv", "flv"), (".mov", "mpeg4"), (".m4v", "mpeg4"),
)  # fmt: skip


def _cloud(count: int = 40) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(size=(count, 3)) * 3, rng.integers(0, 256, (count, 3))], axis=1).round(4)


def _write_ply(order: str, lists: bool) -> bytes:
    table = _cloud()
    kind = {"": "ascii", "<": "binary_little_endian", ">": "binary_big_endian"}[order]
    lines = ["ply", f"format {kind} 1.0", "comment made for an attack", "element strip 2"]
    lines += ["property list uchar short ends", f"element vertex {len(table)}", "property float x"]
    lines += [*(["property list uchar uchar tags"] if lists else []), "property double y", "property float z"]
    lines += [f"property uchar {name}" for name in ("red", "green", "blue")]
    lines += ["element face 3", "property list uchar int vertex_indices", "end_header", ""]
    # (type, value) pairs, from which text and both byte orders are written alike.
    rows: list[list[tuple[str, float]]] = [[("u1", 1), ("i2", 3)], [("u1", 2), ("i2", 3), ("i2", 4)]]
    for number, (x, y, z, *rgb) in enumerate(table.tolist()):
        tags = [("u1", number % 3), *[("u1", 5)] * (number % 3)] if lists else []
        rows.append([("f4", x), *tags, ("f8", y), ("f4", z), *(("u1", value) for value in rgb)])
    rows += [[("u1", 3), ("i4", 0), ("i4", 1), ("i4", 2)], [("u1", 4), *[("i4", 1)] * 4], [("u1", 3), *[("i4", 2)] * 3]]
    if not order:
        text = [" ".join(f"{value:g}" for _, value in row) for row in rows]
        return "\n".join([*lines[:-1], *text, ""]).encode()
    packed = (np.array(value).astype(f"{order}{dtype}").tobytes() for row in rows for dtype, value in row)
    return "\n".join(lines).encode() + b"".join(packed)


def collect_ply(orders: str) -> list[Sample]:
    """Return PLY files with and without lists in their vertices; each of `orders` is a byte order, and t for text."""
    return [(".ply", _write_ply(order.replace("t", ""), lists)) for order in orders for lists in (False, True)]


def collect_npy() -> list[Sample]:
    """Return arrays of every usual type, and a structured one."""
    found = []
    fields = [("x", "f8"), ("y", "f8"), ("z", "f8"), ("red", "u1"), ("green", "u1"), ("blue", "u1")]
    named = np.zeros(40, dtype=fields)
    for (name, _), column in zip(fields, _cloud().T, strict=True):
        named[name] = column
    tables = [_cloud().astype(kind) for kind in ("f8", "f4", ">f8", "i4")]
    for array in (*tables, np.asfortranarray(_cloud()), named):
        buffer = io.BytesIO()
        np.save(buffer, array)
        found.append((".npy", buffer.getvalue()))
    return found


def collect_tables(suffix: str, mark: str, header: str) -> list[Sample]:
    """Return tables of points as text, with and without a line before them."""
    rows = [mark.join(f"{value:g}" for value in row) for row in _cloud()]
    starts = ([], [header], ["# a comment"], [str(len(rows))])
    return [(suffix, "\n".join([*start, *rows, ""]).encode()) for start in starts]


def collect_off() -> list[Sample]:
    """Return a mesh in OFF, with and without colours."""
    found = []
    for word, width in (("OFF", 3), ("COFF", 6)):
        rows = [" ".join(f"{value:g}" for value in row[:width]) for row in _cloud()]
        found.append((".off", "\n".join([word, f"{len(rows)} 2 0", *rows, "3 0 1 2", "3 1 2 3", ""]).encode()))
    return found


MODALITIES: Mapping[str, tuple[str, Callable[[], list[Sample]]]] = {
    "images": ("image", collect_images),
    "animations": ("video", collect_animations),
    "videos": ("video", collect_videos),
    "ply text": ("point_cloud", partial(collect_ply, "t")),
    "ply binary": ("point_cloud", partial(collect_ply, "<>")),
    "npy": ("point_cloud", collect_npy),
    "csv": ("point_cloud", partial(collect_tables, ".csv", ",", "x,y,z,r,g,b")),
    "xyz": ("point_cloud", partial(collect_tables, ".xyz", " ", "x y z red green blue")),
    "off": ("point_cloud", collect_off),
}
"""The source that opens each modality, and what collects sound files of it."""
