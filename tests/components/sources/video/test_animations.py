"""Animated images: times without decoding, a budget of pixels, cuts noticed; and the covers of songs."""

from __future__ import annotations

import io
import logging
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vilavt_components.sources.image import ImageConfig, ImageSource
from vilavt_components.sources.video.animation_times import read_timeline
from vilavt_components.sources.video.source import VideoConfig, VideoSource
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.utils.embedded import EmbeddedFile

KINDS = [kind for kind in ("GIF", "PNG", "WEBP", "AVIF") if kind in Image.registered_extensions().values()]
DURATIONS = [500, 20, 70, 130, 40]


def frame(index: int) -> Image.Image:
    pixels = np.random.default_rng(index).integers(0, 40, (32, 48, 1), dtype=np.uint8) + 40 * index
    return Image.fromarray(pixels.repeat(3, axis=2).astype(np.uint8))


def animation(kind: str, count: int = 5, **options: Any) -> bytes:
    buffer = io.BytesIO()
    others = [frame(index) for index in range(1, count)]
    frame(0).save(buffer, kind, save_all=True, append_images=others, duration=DURATIONS[:count], **options)
    return buffer.getvalue()


def opened(data: bytes, **settings: Any) -> VideoSource:
    return VideoSource.open(EmbeddedFile("the animation", data), VideoConfig(**settings))


def brightness(source: VideoSource, index: int) -> float:
    return float(source.crop((float(index), 0.0, 0.0, 48.0, 32.0)).data.mean())


@pytest.mark.parametrize("kind", KINDS)
def test_frames_and_times_are_those_that_pillow_decodes(kind: str) -> None:
    source = opened(animation(kind))
    assert np.allclose(source.times, np.cumsum([0, *DURATIONS[:-1]]) / 1000, atol=1e-6)
    for index in (3, 0, 4):
        assert abs(brightness(source, index) - np.asarray(frame(index)).mean()) < 3


@pytest.mark.parametrize("kind", KINDS)
def test_opening_decodes_the_first_frame_only(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, decoded = animation(kind), []
    real = Image.Image.crop  # once a frame, where its pixels are converted
    monkeypatch.setattr(Image.Image, "crop", lambda self, *box: decoded.append(self) or real(self, *box))
    source = opened(data, frames=2)
    assert len(decoded) == 1
    source.crop(source.extent, overview=True)
    assert len(decoded) == 3


def gif_of(width: int, height: int, count: int, screen: tuple[int, int] | None = None) -> bytes:
    """A GIF of `count` frames of one pixel's data each, 20 bytes a frame."""
    screen = screen or (width, height)
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    part = b"!\xf9\x04\0\x01\0\0\0" + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\0"
    return head + part * count + b";"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def apng_of(width: int, height: int, count: int) -> bytes:
    parts = [
        chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        chunk(b"acTL", struct.pack(">II", count, 0)),
    ]
    for number in range(count):
        parts.append(chunk(b"fcTL", struct.pack(">IIIIIHHBB", 2 * number, width, height, 0, 0, 1, 10, 0, 0)))
        data = zlib.compress(b"\0")
        parts.append(chunk(b"fdAT", struct.pack(">I", 2 * number + 1) + data) if number else chunk(b"IDAT", data))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def webp_of(count: int) -> bytes:
    whole = animation("WEBP", lossless=True)
    frames = whole.index(b"ANMF")
    length = 8 + int.from_bytes(whole[frames + 4 : frames + 8], "little")
    body = whole[8:frames] + whole[frames : frames + length + length % 2] * count
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(
    "data",
    [
        gif_of(9000, 9000, 1000),
        gif_of(9000, 9000, 1000, screen=(1, 1)),
        gif_of(9000, 9000, 2),
        gif_of(1, 1, 21_000),
        apng_of(9000, 9000, 100),
    ],
    ids=["gif", "gif of a small screen", "gif of two frames", "gif of many frames", "apng"],
)
def test_an_animation_of_too_many_pixels_is_refused_before_any_is_decoded(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("decoded")

    assert len(data) < 3_000_000
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    with pytest.raises(InputError, match=r"the animation is too large: .* frames of .* raise max_animation_pixels"):
        opened(data)


def test_the_budget_is_a_setting_and_a_still_image_has_none() -> None:
    for data in (animation("GIF"), animation("PNG"), webp_of(5)):
        with pytest.raises(InputError, match="5 frames of 48 x 32 pixels"):
            opened(data, max_animation_pixels=99_000)
        with pytest.raises(InputError, match="5 frames of 48 x 32 pixels"):
            opened(data, max_animation_pixels=10)
        assert len(opened(data, max_animation_pixels=100_000).times) == 5
    assert len(opened(animation("PNG", 1), max_animation_pixels=1).times) == 1


def test_more_frames_than_can_be_listed_are_refused() -> None:
    with pytest.raises(InputError, match="more than 100,000 frames"):
        opened(gif_of(1, 1, 100_001), max_animation_pixels=10**12)


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_an_animation_cut_anywhere_has_its_whole_frames(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    data = animation(kind)
    counts = []
    for end in range(len(data) - 13, 0, -97):
        caplog.clear()
        try:
            with caplog.at_level(logging.WARNING):
                source = opened(data[:end])
        except InputError as error:
            assert "the animation is" in str(error)
            counts.append(0)
            continue
        counts.append(len(source.times))
        assert f"the animation ends early: {counts[-1]} frames can be read" in caplog.text
        last = counts[-1] - 1
        assert abs(brightness(source, last) - np.asarray(frame(last)).mean()) < 3
    assert sorted(set(counts)) in ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5])
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind in ("WEBP", "AVIF")])
def test_a_cut_webp_or_avif_is_refused_and_never_one_frame(kind: str, tmp_path: Path) -> None:
    data = animation(kind)
    for share in (0.98, 0.6, 0.3):
        path = tmp_path / f"a.{kind.lower()}"
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(InputError, match="damaged or cut off"):
            VideoSource.open(path, VideoConfig())


@pytest.mark.parametrize("kind", KINDS)
def test_a_timeline_of_damaged_bytes_is_read_or_refused(kind: str) -> None:
    data, rng = animation(kind), np.random.default_rng(0)
    for _ in range(60):
        hurt = bytearray(data)
        for place in rng.integers(0, len(data), 8):
            hurt[place] = rng.integers(256)
        try:
            found = read_timeline(EmbeddedFile("hurt", bytes(hurt)), kind)
        except InputError as error:
            assert "100,000 frames" in str(error)
            continue
        assert found is not None and all(seconds >= 0 for seconds in found.durations)


def test_an_image_of_any_kind_is_a_video_of_one_frame() -> None:
    for original in (frame(0), EmbeddedFile("a row's image", animation("PNG", 1))):
        source = VideoSource.open(original, VideoConfig())
        assert np.array_equal(source.crop(source.extent).data, np.asarray(frame(0)))
    assert ImageSource.open(EmbeddedFile("x", animation("GIF")), ImageConfig()).extent == (0, 0, 48, 32)


# --- Songs ------------------------------------------------------------------------------------------------


def with_cover(path: Path, codec: str) -> Path:
    """Write a song or a film with the picture of its cover."""
    av = pytest.importorskip("av")
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV does not write {codec}")
    with av.open(str(path), "w") as container:
        cover = container.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        stream = container.add_stream(codec, rate=25 if codec == "mpeg4" else 44100)
        if codec == "mpeg4":
            stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        container.start_encoding()
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(cover.encode())
        if codec == "mpeg4":
            for index in range(5):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(frame(index)), format="rgb24")))
        else:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 4410), np.int16), format="s16", layout="mono")
            silence.rate = 44100
            fit = av.AudioResampler(
                format=stream.format, layout="mono", rate=44100, frame_size=stream.codec_context.frame_size or 1024
            )
            for part in fit.resample(silence):
                container.mux(stream.encode(part))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(("name", "codec"), [("a.mp3", "libmp3lame"), ("a.flac", "flac")])
def test_a_song_with_a_cover_is_no_video(tmp_path: Path, name: str, codec: str) -> None:
    with pytest.raises(InputError, match="has no video in it"):
        VideoSource.open(with_cover(tmp_path / name, codec), VideoConfig())


def test_the_cover_of_a_film_is_none_of_its_frames(tmp_path: Path) -> None:
    source = VideoSource.open(with_cover(tmp_path / "a.mp4", "mpeg4"), VideoConfig())
    assert len(source.times) == 5 and source.extent == (0, 0, 0, 48, 32)
