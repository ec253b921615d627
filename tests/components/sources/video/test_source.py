"""Videos of every kind: the right frames at the right times, any frame on demand, bad files in a sentence."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import tracemalloc
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vilavt_components.sources.video import decoding
from vilavt_components.sources.video.frame_selection import nearest_frame, select_frames, shortest_time
from vilavt_components.sources.video.source import VideoConfig, VideoSource
from vilavt_toolkit.config.parsing import parse_config
from vilavt_toolkit.contracts import Region
from vilavt_toolkit.errors import InputError, RecipeErrors
from vilavt_toolkit.vision.boxes import BoxError

av = pytest.importorskip("av")

WIDTH, HEIGHT, COUNT, STEP = 64, 48, 25, 9
CODEC = "libx264" if "libx264" in av.codecs_available else "mpeg4"


def grey(index: int) -> np.ndarray:
    """A frame that says which it is by its brightness, its left half darker."""
    frame = np.full((HEIGHT, WIDTH, 3), 20 + STEP * index, np.uint8)
    frame[:, : WIDTH // 2] -= 20
    return frame


def noisy(index: int) -> np.ndarray:
    """The same frame, of which a codec must keep many bytes."""
    noise = np.random.default_rng(index).integers(-15, 16, (HEIGHT, WIDTH, 1))
    return np.clip(grey(index).astype(int) + noise, 0, 255).astype(np.uint8)


def index_of(pixels: np.ndarray) -> int:
    """Which frame these pixels, of the right half, are of."""
    return round((float(pixels.mean()) - 20) / STEP)


def encoded(path, frames=None, milliseconds=None, codec=CODEC, rotated=0, form=None, **options) -> Path:
    """Write a real video; frame i stands at milliseconds[i]."""
    frames = [grey(index) for index in range(COUNT)] if frames is None else frames
    with av.open(str(path), "w", format=form, options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.gop_size = "yuv420p", 6
        stream.codec_context.time_base = Fraction(1, 1000)
        if rotated:
            stream.set_display_rotation(rotated)
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = milliseconds[index] if milliseconds else 40 * index, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def animated(path: Path, count: int = COUNT, **options) -> Path:
    frames = [Image.fromarray(grey(index)) for index in range(count)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=40, **options)
    return path


def folder_of(path: Path, count: int = COUNT) -> Path:
    path.mkdir()
    for index in range(count):
        Image.fromarray(grey(index)).save(path / f"frame{index}.png")
    return path


MAKERS = {
    "mp4": lambda folder: encoded(folder / "a.mp4"),
    "mkv": lambda folder: encoded(folder / "a.mkv"),
    "mpeg-ts": lambda folder: encoded(folder / "a.ts"),
    "avi": lambda folder: encoded(folder / "a.avi", codec="mpeg4"),
    "raw stream without times": lambda folder: encoded(folder / "a.m4v", codec="mpeg4", form="m4v"),
    "gif": lambda folder: animated(folder / "a.gif"),
    "animated png": lambda folder: animated(folder / "a.png"),
    "webp": lambda folder: animated(folder / "a.webp", lossless=True),
    "folder": lambda folder: folder_of(folder / "a"),
    "array": lambda folder: np.stack([grey(index) for index in range(COUNT)]),
}


def opened(original, **settings) -> VideoSource:
    return VideoSource.open(original, VideoConfig(**{"folder_fps": 25.0, **settings}))


def right_half(source: VideoSource, frame: int) -> np.ndarray:
    return source.crop((float(frame), WIDTH / 2 + 4, 0.0, float(WIDTH), float(HEIGHT))).data


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """A file of 24 frames, a key frame every 6."""
    return encoded(tmp_path_factory.mktemp("film") / "film.mp4")


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_every_kind_of_video_has_its_frames_at_their_times_on_demand_in_any_order(tmp_path, make):
    source = opened(make(tmp_path), frames=5)
    assert len(source.times) == COUNT
    assert np.allclose(source.times, [0.04 * index for index in range(COUNT)], atol=1e-3)
    assert [box[0] for box in source.overviews()] == [0, 6, 12, 18, 24]
    assert [index_of(Region(source, overview=k).crop().data[:, WIDTH // 2 + 4 :]) for k in range(5)] == [
        0, 6, 12, 18, 24,
    ]  # fmt: skip
    for frame in (22, 3, 13, 12, 0, 24, 13):
        assert index_of(right_half(source, frame)) == frame


def test_a_video_without_a_key_frame_where_its_index_says_so_is_decoded_from_the_start(film, monkeypatch):
    def lost(self, key, target):
        real(self, self._stamps[-1], target)

    real = decoding._Cursor._seek_key_frame
    monkeypatch.setattr(decoding._Cursor, "_seek_key_frame", lost)
    assert index_of(right_half(opened(film), 14)) == 14


def test_times_are_those_of_the_frames_where_their_rate_varies(tmp_path):
    moments = [0, 40, 500, 520, 1000, 3000, 3040]
    source = opened(encoded(tmp_path / "a.mkv", [grey(i) for i in range(7)], moments), fps=1.0)
    assert np.allclose(source.times, [moment / 1000 for moment in moments], atol=1e-3)
    assert [box[0] for box in source.overviews()] == [0, 4, 5], "nothing new at 2 s"
    assert [source.label(box) for box in source.overviews()] == ["0 s", "1 s", "3 s"]


def test_times_of_an_animation_are_the_sums_of_its_durations(tmp_path):
    frames = [Image.fromarray(grey(index)) for index in range(4)]
    for name, lasting in (("a.gif", [500, 20, 0, 70]), ("b.png", [500, 20, 30, 70])):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=lasting)
        last = 0.62 if name == "a.gif" else 0.55
        assert np.allclose(opened(tmp_path / name).times, [0, 0.5, 0.52, last]), "no duration is a tenth of a second"


def test_a_video_that_is_to_be_turned_is_turned(tmp_path):
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:8, :, 0] = 250  # red above
    path = encoded(tmp_path / "a.mp4", [picture] * 3, rotated=90)
    source = opened(path)
    data = source.crop(source.extent, overview=True).data
    assert source.extent == (0, 0, 0, 32, 64) and data.shape == (64, 32, 3)
    # A display matrix of 90 degrees turns against the clock: what was above is left.
    assert data[:, :6, 0].mean() > 150 and data[:, 12:, 0].mean() < 60


def without_its_first(path: Path, frames: int) -> Path:
    """Cut a film as an editor does without coding it anew: what is before the cut stays in the file, unseen."""
    with av.open(str(path)) as film, av.open(str(path.with_name("trimmed.mp4")), "w") as container:
        stream = container.add_stream_from_template(film.streams.video[0])
        for packet in film.demux(video=0):
            if packet.size:
                earlier = round(0.04 * frames / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - earlier, packet.dts - earlier, stream
                container.mux(packet)
    return path.with_name("trimmed.mp4")


def without_its_last(path: Path, frames: int) -> Path:
    """Cut a film's end off by its list of edits alone."""
    data = bytearray(path.read_bytes())
    place = data.index(b"elst") + 12
    data[place : place + 4] = (40 * (COUNT - frames)).to_bytes(4, "big")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("cut", "first"), [(without_its_first, 8), (without_its_last, 0)])
def test_a_trimmed_film_has_the_frames_that_are_left_and_is_whole(tmp_path, caplog, cut, first):
    with caplog.at_level(logging.WARNING):
        source = opened(cut(encoded(tmp_path / "a.mp4"), 8))
    assert len(source.times) == pytest.approx(COUNT - 8, abs=1) and not caplog.text
    assert [index_of(right_half(source, frame)) for frame in (12, 0)] == [first + 12, first]


def test_previews_within_a_photo_are_no_frames(tmp_path):
    photo, preview = Image.fromarray(grey(3)), Image.fromarray(grey(7)[:12, :16])
    photo.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[preview])
    source = opened(tmp_path / "a.jpg")
    assert len(source.times) == 1 and index_of(right_half(source, 0)) == 3


def test_a_colon_in_a_path_is_a_colon(tmp_path, film, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("12:30.mp4", "http:film.mp4", "file:film.mp4"):
        Path(name).write_bytes(film.read_bytes())
        assert index_of(right_half(opened(name), 20)) == 20


# --- Which frames are shown ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "frames"),
    [
        ({}, (0, 3, 7, 10, 14, 17, 21, 24)),
        ({"frames": 3}, (0, 12, 24)),
        ({"frames": 1}, (12,)),
        ({"frames": 1000}, tuple(range(COUNT))),
        ({"fps": 5.0}, (0, 5, 10, 15, 20)),
        ({"fps": 1000.0}, tuple(range(COUNT))),
        ({"fps": 5.0, "frames": 2}, (0, 24)),
        ({"fps": 0.001}, (0,)),
        ({"frames": 9, "pixels": 3 * WIDTH * HEIGHT}, (0, 12, 24)),
        ({"frames": 9, "pixels": 1}, (12,)),
    ],
)
def test_frames_are_shown_by_number_or_rate_within_the_pixel_budget(settings, frames):
    assert opened(MAKERS["array"](None), **settings).overview_frames == frames


def test_frames_are_made_smaller_before_there_are_fewer_of_them(film):
    area = WIDTH * HEIGHT
    source = opened(film, frames=4, pixels=area, frame_pixels=area // 4)
    shapes = [Region(source, overview=k).crop().data.shape for k in range(len(source.overviews()))]
    assert shapes == [(24, 32, 3)] * 4
    fewer = opened(film, frames=4, pixels=area, frame_pixels=area // 2)
    assert len(fewer.overviews()) == 2
    zoom = source.crop((6.0, 0.0, 0.0, 32.0, 16.0))
    assert zoom.data.shape == (16, 32, 3) and not zoom.overview, "a zoom has all its pixels"


rising = st.lists(st.floats(1e-3, 50), min_size=0, max_size=30).map(
    lambda gaps: tuple(float(t) for t in np.cumsum([0.0, *gaps]))
)


@given(rising, st.integers(1, 40), st.none() | st.floats(1e-3, 1e6))
def test_chosen_frames_are_of_the_video_in_order_and_no_more_than_asked(times, most, fps):
    frames = select_frames(times, fps, most)
    assert 1 <= len(frames) <= max(most, 1) and list(frames) == sorted(set(frames))
    assert frames[0] >= 0 and frames[-1] < len(times)


@given(rising)
def test_a_written_time_names_its_frame(times):
    for index in range(len(times)):
        assert nearest_frame(times, shortest_time(times, index)) == index


@given(rising, st.floats(-10, 2000))
def test_the_nearest_frame_is_nearest(times, moment):
    assert abs(times[nearest_frame(times, moment)] - moment) == min(abs(time - moment) for time in times)


# --- Boxes --------------------------------------------------------------------------------------------

SOURCE = VideoSource.open(np.zeros((40, 90, 160, 3), np.uint8), VideoConfig(folder_fps=29.97))
sides = st.tuples(st.integers(0, 999), st.integers(0, 999), st.integers(0, 999), st.integers(0, 999)).map(
    lambda s: (min(s[0], s[2]), min(s[1], s[3]), max(s[0], s[2]) + 1, max(s[1], s[3]) + 1)
)


@given(st.integers(0, 39), st.integers(0, 39), sides, sides)
def test_a_written_box_is_read_as_the_frame_and_the_box_up_to_a_step(shown, frame, outer, inner):
    def inside(within, part):
        x1, y1, x2, y2 = within
        across, down = (x2 - x1) / 1000, (y2 - y1) / 1000
        return x1 + part[0] * across, y1 + part[1] * down, x1 + part[2] * across, y1 + part[3] * down

    within = (float(shown), *inside((0.0, 0.0, 160.0, 90.0), outer))
    box = (float(frame), *inside(within[1:], inner))
    value = SOURCE.write_box(box, within, 1000)
    assert ("time" in value) == (frame != shown)
    try:
        found = SOURCE.read_box(value, within, 1000)
    except BoxError as error:
        assert "smaller than one pixel" in str(error)
        return
    step = max(within[3] - within[1], within[4] - within[2]) / 1000
    assert found[0] == frame and max(abs(a - b) for a, b in zip(found, box, strict=True)) <= step + 1e-6


def test_a_zoom_into_a_zoom_at_another_moment_cuts_the_originals_frame():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 40, 60, 3), dtype=np.uint8)
    source = VideoSource.open(pixels, VideoConfig(frames=2))
    first = source.read_box({"bbox_2d": [5, 5, 10, 10], "time": 3}, source.extent, 10)
    second = source.read_box({"bbox_2d": [0, 5, 5, 10]}, first, 10)
    third = source.read_box({"bbox_2d": [0, 0, 10, 10], "time": 4.4}, second, 10)
    assert (first, second, third) == ((3, 30, 20, 60, 40), (3, 30, 30, 45, 40), (4, 30, 30, 45, 40))
    assert np.array_equal(source.crop(third).data, pixels[4, 30:40, 30:45])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"time": 1}, r'"bbox_2d": .* is missing'),
        ({"bbox_2d": [0, 0, 5, 5], "frame": 3}, '"frame" does not belong to a region of a video'),
        ({"bbox_2d": [0, 0, 5, 5], "time": 9}, r'"time" 9 is out of range: the video runs from 0 to 1.3 seconds'),
        ({"bbox_2d": [0, 0, 5, 5], "time": -0.1}, "out of range"),
        ({"bbox_2d": [0, 0, 5, 5], "time": 10**400}, "out of range"),
        ({"bbox_2d": [0, 0, 5, 5], "time": float("nan")}, "out of range"),
        ({"bbox_2d": [0, 0, 5, 5], "time": "1"}, 'must be a number of seconds, not "1"'),
        ({"bbox_2d": [0, 0, 5, 5], "time": True}, "must be a number of seconds, not true"),
        ({"bbox_2d": [0, 0, 5, 5], "time": None}, "must be a number of seconds, not null"),
        ({"bbox_2d": [0, 0, 5, 50], "time": 1}, "bbox_2d .* is out of range"),
    ],
)
def test_a_region_that_cannot_be_is_told_why(value, words):
    with pytest.raises(BoxError, match=words):
        SOURCE.read_box(value, SOURCE.extent, 10)


def test_a_frame_that_is_not_there_cannot_be_taught_or_cut():
    with pytest.raises(BoxError, match="no frame 40: the video has frames 0 to 39"):
        SOURCE.write_box((40.0, 0, 0, 10, 10), SOURCE.extent, 10)
    with pytest.raises(InputError, match="the video in memory has no frame 40"):
        SOURCE.crop((40.0, 0, 0, 10, 10))


# --- What it costs ------------------------------------------------------------------------------------


def test_a_frame_is_sought_and_not_everything_before_it_decoded(film, monkeypatch):
    decoded = []
    real = decoding._Cursor._decode_forward

    def counted(self):
        for frame in real(self):
            decoded.append(frame.pts)
            yield frame

    source = opened(film, frames=1)
    monkeypatch.setattr(decoding._Cursor, "_decode_forward", counted)
    right_half(source, 20)
    assert len(decoded) <= 8, "the key frame is number 18"
    decoded.clear()
    many = opened(film, frames=COUNT)
    many.crop(many.extent, overview=True)
    assert len(decoded) <= COUNT + 2, "first views in one pass"


def test_a_long_video_never_lies_in_memory_whole(tmp_path):
    frames = [np.roll(grey(3), index, axis=1).repeat(4, 0).repeat(4, 1) for index in range(90)]
    whole = sum(frame.nbytes for frame in frames)
    path = encoded(tmp_path / "a.mp4", frames)
    tracemalloc.start()
    try:
        source = opened(path, frames=60, pixels=60 * 32 * 24, frame_pixels=32 * 24)
        for number in range(len(source.overviews())):
            Region(source, overview=number).crop()
        for frame in range(0, 90, 9):
            right_half(source, frame)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < whole / 6


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files through /proc")
def test_no_file_stays_open(tmp_path, film):
    paths = [film, animated(tmp_path / "a.gif"), folder_of(tmp_path / "frames"), tmp_path / "cut.mp4"]
    paths[3].write_bytes(film.read_bytes()[:-200])
    before = len(os.listdir("/proc/self/fd"))
    kept = []
    for path in paths:
        try:
            kept.append(opened(path))
            right_half(kept[-1], 5)
        except InputError:
            continue
    assert len(kept) >= 3 and len(os.listdir("/proc/self/fd")) == before


# --- Bad input ----------------------------------------------------------------------------------------


def without_frames(folder: Path) -> Path:
    path = folder / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def of_no_frames(kind: str):
    def make(folder: Path) -> Path:
        path = folder / f"none.{kind}"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            container.start_encoding()
        return path

    return make


def of_tables_only(folder: Path) -> Path:
    path = encoded(folder / "none.ts")
    path.write_bytes(path.read_bytes()[: 3 * 188])
    return path


def cut_before_its_first_frame(folder: Path) -> Path:
    path = encoded(folder / "cut.mkv")
    with av.open(str(path)) as container:
        first = next(container.demux(video=0)).pos
    path.write_bytes(path.read_bytes()[:first])
    return path


def with_a_large_page(folder: Path) -> Path:
    small, large = Image.fromarray(grey(0)), Image.fromarray(grey(0).repeat(3, 0).repeat(3, 1))
    small.save(folder / "a.tif", save_all=True, append_images=[small, large])
    return folder / "a.tif"


def cut_off(folder: Path) -> Path:
    path = encoded(folder / "cut.mp4")  # its index stands at its end
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def of_two_sizes(folder: Path) -> Path:
    path = folder_of(folder / "frames", 3)
    Image.fromarray(grey(3)[:20]).save(path / "frame2.png")
    return path


def with_a_bad_image(folder: Path) -> Path:
    path = folder_of(folder / "frames", 3)
    (path / "frame1.png").write_bytes((path / "frame1.png").read_bytes()[:60])
    return path


def holding(name: str, data: bytes):
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def empty_folder(folder: Path) -> Path:
    (folder / "none").mkdir()
    (folder / "none" / "readme.txt").write_text("no frames here")
    return folder / "none"


BAD = {
    "missing": (lambda folder: folder / "gone.mp4", r"gone\.mp4 does not exist. Check the path"),
    "empty file": (holding("a.mp4", b""), r"a\.mp4 is empty \(0 bytes\)"),
    "text": (holding("a.mp4", b"what is this?\n" * 40), r"a\.mp4 is no video in a known format, or cut off"),
    "text as such": (holding("a.txt", b"what is this?\n" * 40), r"a\.txt is (no video|text)"),
    "noise": (holding("a.mp4", np.random.default_rng(0).bytes(4000)), r"a\.mp4 is no video in a known format"),
    "no frames": (of_no_frames("mp4"), r"none\.mp4 holds no frames. Give a video that has some"),
    "no frames in avi": (of_no_frames("avi"), r"none\.avi holds no frames. Give a video that has some"),
    "no frames in mkv": (of_no_frames("mkv"), r"none\.mkv holds no frames, or is cut off before the first"),
    "no frames in ts": (of_tables_only, r"none\.ts holds no frames. Give a video that has some"),
    "cut off before its first": (cut_before_its_first_frame, r"cut\.mkv ends before its first frame \(of 1\.0 s"),
    "only sound": (without_frames, r"sound\.wav has no video in it"),
    "cut off before its index": (cut_off, r"cut\.mp4 is no video in a known format, or cut off"),
    "empty folder": (empty_folder, r"none holds no frames. Put images into it"),
    "frames of two sizes": (of_two_sizes, r"frame2\.png is 64 x 20 pixels, but .*frame0\.png is 64 x 48\. .* one size"),
    "a damaged image": (with_a_bad_image, r"frame1\.png is damaged or cut off"),
    "a gif of a header": (holding("a.gif", b"GIF89a\x04\0\x04\0\0\0\0"), r"a\.gif (is|cannot be)"),
}


@pytest.mark.parametrize(("make", "words"), BAD.values(), ids=BAD.keys())
def test_what_is_no_video_is_said_in_one_sentence(tmp_path, make, words):
    path = make(tmp_path)
    with pytest.raises(InputError, match=words) as error:
        source = opened(path)
        source.crop(source.extent, overview=True)
    assert "\n" not in str(error.value)


def test_a_page_that_is_too_large_is_not_decoded(tmp_path):
    source = opened(with_a_large_page(tmp_path), max_pixels=2 * WIDTH * HEIGHT)
    with pytest.raises(InputError, match=r"frame 2 \(0\.2 s\) of .*a\.tif is too large: 192 x 144 pixels"):
        right_half(source, 2)


CUT = {
    "mp4": lambda path, frames: encoded(path, frames, movflags="faststart"),
    "mkv": encoded,
    "avi": lambda path, frames: encoded(path, frames, codec="mpeg4"),
    "ts": encoded,
    "gif": lambda path, frames: saved(path, frames),
    "png": lambda path, frames: saved(path, frames),
}


def saved(path: Path, frames: list[np.ndarray]) -> Path:
    first, *others = [Image.fromarray(frame) for frame in frames]
    first.save(path, save_all=True, append_images=others, duration=40)
    return path


@pytest.mark.parametrize("kind", CUT)
def test_a_file_that_ends_early_has_the_frames_that_are_there_and_says_so(tmp_path, caplog, kind):
    path = CUT[kind](tmp_path / f"a.{kind}", [noisy(index) for index in range(COUNT)])
    share = 0.4 if kind == "avi" else 0.6  # most of that is its index
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share) | 1])
    with caplog.at_level(logging.WARNING):
        source = opened(path, frames=4)
    last = len(source.times) - 1
    assert 4 < last < COUNT - 1 and source.overview_frames[-1] == last
    assert [index_of(Region(source, overview=k).crop().data[:, WIDTH // 2 + 4 :]) for k in (0, 3)] == [0, last]
    assert f"a.{kind} ends early: {last + 1} frames" in caplog.text


def test_a_film_cut_off_between_two_frames_is_measured_by_the_time_it_was_to_last(tmp_path, caplog):
    path = encoded(tmp_path / "a.flv", codec="flv")
    with av.open(str(path)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    path.write_bytes(path.read_bytes()[: places[12]])
    assert len(opened(path).times) == 12 and "(of 1.0 s that were promised)" in caplog.text


@pytest.mark.parametrize(("form", "codec"), [("mkv", "mpeg4"), ("flv", "flv"), ("avi", "mpeg4"), ("avi", "ffv1")])
def test_a_film_that_lost_its_last_frames_only_says_so_too(tmp_path, caplog, form, codec):
    path = encoded(tmp_path / f"a.{form}", [grey(index % COUNT) for index in range(4 * COUNT)], codec=codec)
    assert len(opened(path).times) == 4 * COUNT and not caplog.text, "a whole one says nothing"
    with av.open(str(path)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    path.write_bytes(path.read_bytes()[: places[-4]])
    assert len(opened(path).times) == 4 * COUNT - 4 and f"a.{form} ends early: {4 * COUNT - 4} frames" in caplog.text


def test_a_gif_that_is_cut_between_two_frames_says_so(tmp_path, caplog):
    path = animated(tmp_path / "a.gif")
    assert len(opened(path).times) == COUNT and not caplog.text
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"!\xf9\x04")])
    assert len(opened(path).times) == COUNT - 1 and f"a.gif ends early: {COUNT - 1} frames" in caplog.text


def test_a_cut_program_stream_loses_the_frames_that_were_cut_through(tmp_path, caplog):
    path = tmp_path / "a.mpg"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, "yuv420p", 6
        for index in range(4 * COUNT):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noisy(index // 4), format="rgb24")))
        container.mux(stream.encode())
    path.write_bytes(path.read_bytes()[: int(0.6 * path.stat().st_size)])
    source = opened(path)
    last = len(source.times) - 1
    assert f"a.mpg ends early: {last + 1} frames" in caplog.text and index_of(right_half(source, last)) == last // 4


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads its own size from /proc")
def test_too_little_memory_for_a_frame_is_called_that(tmp_path):
    path = encoded(tmp_path / "large.mp4", [np.zeros((2800, 2800, 3), np.uint8)], codec="mpeg4")
    script = (
        "import re, resource\n"
        "from vilavt_components.sources.video.source import VideoConfig, VideoSource\n"
        "from vilavt_toolkit.errors import InputError\n"
        f"VideoSource.open({str(tmp_path / 'small.mp4')!r}, VideoConfig())\n"
        "size = 1024 * int(re.search(r'VmSize:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size + 20_000_000, -1))\n"
        "try:\n"
        f"    VideoSource.open({str(path)!r}, VideoConfig())\n"
        "except InputError as error:\n"
        "    print(error)\n"
    )
    encoded(tmp_path / "small.mp4")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "large.mp4 needs more memory than is free. Scale it down" in done.stdout, done.stdout + done.stderr


def test_a_damaged_frame_in_the_middle_is_named_and_the_others_can_be_seen(tmp_path, film):
    with av.open(str(film)) as container:
        packets = [(p.pos, p.size, p.pts) for p in container.demux(video=0) if p.size]
    position, size, _ = packets[12]
    data = bytearray(film.read_bytes())
    data[position : position + size] = b"\xff" * size
    path = tmp_path / "hurt.mp4"
    path.write_bytes(data)
    source = opened(path, frames=2)
    assert [index_of(right_half(source, frame)) for frame in (0, 5, 20)] == [0, 5, 20]
    with pytest.raises(InputError, match=r"frame 12 \(0.48 s\) of .*hurt\.mp4 cannot be decoded"):
        right_half(source, 12)


def test_files_without_pyav_say_what_to_install_and_the_rest_works(tmp_path, film, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"film\.mp4 cannot be read without PyAV: install it \(pip install"):
        opened(film)
    assert len(opened(animated(tmp_path / "a.gif")).times) == COUNT


def test_one_frame_is_a_video_too(tmp_path):
    still = tmp_path / "a.jpg"
    Image.fromarray(grey(2)).save(still)
    originals = [animated(tmp_path / "a.gif", 1), still, grey(2), encoded(tmp_path / "a.mp4", [grey(2)])]
    for original in originals:
        source = opened(original, fps=2.0)
        assert source.overviews() == [(0, 0, 0, WIDTH, HEIGHT)] and source.label(source.extent) == "0 s"
        assert source.read_box({"bbox_2d": [0, 0, 1, 1], "time": 0}, source.extent, 2)[0] == 0


def test_frames_of_a_folder_are_in_natural_order_and_other_files_are_passed_over(tmp_path):
    folder = folder_of(tmp_path / "frames", 12)
    (folder / "notes.txt").write_text("x")
    (folder / "._frame0.png").write_bytes(b"x")
    source = VideoSource.open(folder, VideoConfig(frames=12))
    assert [index_of(right_half(source, frame)) for frame in range(12)] == list(range(12))
    assert source.times == tuple(range(12)), "one a second, where nothing else is said"


@pytest.mark.parametrize(
    ("original", "words"),
    [
        (np.zeros((2, 4, 4), np.uint8), r"uint8 \[n, h, w, 3\]"),
        (np.zeros((2, 4, 4, 3)), "float64"),
        (np.zeros((0, 4, 4, 3), np.uint8), "has no frames"),
        (7, "not int"),
    ],
)
def test_something_else_is_refused(original, words):
    with pytest.raises(InputError, match=words):
        opened(original)


def test_settings_that_show_nothing_or_too_much_are_refused(film):
    with pytest.raises(RecipeErrors, match="fps 0 would show nothing"):
        parse_config(VideoConfig, {"fps": 0.0})
    for bad in ({"fps": -1.0}, {"fps": float("nan")}, {"frames": 0}, {"pixels": 0}, {"folder_fps": 0.0}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} .* is below the least"):
            VideoConfig(**bad)
    for original in (film, grey(0)):
        with pytest.raises(InputError, match="too large: frames of 64 x 48 pixels"):
            opened(original, max_pixels=3000)


# --- Pictures -----------------------------------------------------------------------------------------


def test_frames_with_boxes_stand_side_by_side_and_hold_their_boxes():
    source = VideoSource.open(np.full((9, 60, 80, 3), 128, np.uint8), VideoConfig())
    picture = source.draw([(2.0, 0, 0, 40, 30), (7.0, 40, 30, 80, 60), (2.0, 60, 40, 80, 60)], 640)
    assert picture.size[0] == 640 and 240 < picture.size[1] < 320, "two frames, no third"
    pixels = np.asarray(picture).astype(int)
    colourful = (pixels.max(2) - pixels.min(2)) > 60
    assert colourful[:, :320].any() and colourful[:, 330:].any()
    assert source.draw([(2.0, 0, 0, 40, 30)] * 3, 200).size[0] == 200


@pytest.mark.parametrize("size", [40, 200, 641, None])
def test_a_drawing_has_the_size_that_was_asked(size):
    for shape in ((3, 60, 80, 3), (12, 200, 20, 3), (1, 10, 300, 3)):
        source = VideoSource.open(np.zeros(shape, np.uint8), VideoConfig(frames=12))
        picture = source.draw([], size)
        assert size is None or max(picture.size) == size


def test_a_saved_video_opens_again_with_what_was_shown(tmp_path, film):
    source = opened(film, frames=3)
    source.save(tmp_path / "scene.png")
    again = opened(tmp_path / "scene.png", frames=3)
    assert np.allclose(again.times, [0, 0.48, 0.96], atol=2e-3)
    assert [index_of(right_half(again, frame)) for frame in range(3)] == [0, 12, 24]


def test_frames_that_are_alike_are_saved_as_many(tmp_path):
    source = opened(np.stack([grey(0), grey(0), grey(0), grey(5), grey(5)]), frames=5)
    source.save(tmp_path / "scene.png")
    again = opened(tmp_path / "scene.png", frames=5)
    assert [index_of(right_half(again, frame)) for frame in range(5)] == [0, 0, 0, 5, 5]
    assert np.allclose(again.times, source.times)


@pytest.mark.parametrize("seconds", [75.431, 700.123, 30_000.123])
def test_first_views_far_apart_are_saved_with_their_times(tmp_path, seconds):
    source = opened(np.stack([grey(0), grey(1), grey(2)]), folder_fps=1 / seconds)
    source.save(tmp_path / "scene.png")
    assert np.allclose(opened(tmp_path / "scene.png").times, source.times, rtol=1e-4)


def test_forks_in_several_threads_cut_out_of_one_video_at_once():
    frames = np.stack([np.full((4, 4, 3), number, dtype=np.uint8) for number in range(24)])
    source, wrong = opened(frames), []

    def cut(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(24, size=3000):
            try:
                if (source.crop((float(number), 0.0, 0.0, 4.0, 4.0)).data != number).any():
                    wrong.append("another frame")
            except Exception as error:
                wrong.append(repr(error))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=cut, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong
