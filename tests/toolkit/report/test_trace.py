"""Trace pictures show the regions, the crops and the words, and are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vilavt_components.sources.image import ImageConfig, ImageSource
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.report.trace import DrawnTurn, Trace, TraceRegion, draw_trace, render_trace, wrap_text
from vilavt_toolkit.utils.files import atomic_write, write_json, write_text

GREY = (128, 128, 128)
MARKS = [(255, 0, 255), (0, 255, 255), (255, 255, 0), (0, 0, 128), (128, 0, 0), (0, 128, 0)]


def source(height: int = 100, width: int = 100) -> ImageSource:
    return ImageSource.open(np.full((height, width, 3), 128, np.uint8), ImageConfig())


def trace(crops: int, sources: int = 1, thought: str = "red square 1 2") -> Trace:
    images = tuple(source() for _ in range(sources))
    regions = tuple(
        TraceRegion(
            i + sources, i % sources, images[i % sources], (10, 10, 50, 50), np.full((8, 8, 3), MARKS[i], np.uint8)
        )
        for i in range(crops)
    )
    turns = (DrawnTurn(thought, "red square", regions), DrawnTurn("read 7", answer="7"))
    return Trace(
        "what digit is on the red square?", images, turns, "the model answered", {"tokens": 61, "seconds": 0.5}
    )


@pytest.mark.parametrize(("crops", "sources"), [(1, 1), (3, 1), (6, 1), (6, 2), (2, 0), (0, 1), (0, 0)])
def test_every_crop_is_shown_whole_and_large(crops: int, sources: int) -> None:
    if not sources:
        crops = 0
    pixels = np.asarray(render_trace(trace(crops, sources)))
    for mark in MARKS[:crops]:
        assert (pixels == mark).all(axis=2).sum() >= 256 * 256
    assert (pixels == GREY).all(axis=2).sum() > sources * 640 * 640 * 0.8


def test_longer_thoughts_make_a_taller_picture_and_endless_ones_do_not() -> None:
    short, long, endless = (render_trace(trace(1, thought="word " * n)).height for n in (1, 300, 30_000))
    assert short < long < endless < 3000


def test_odd_shapes_of_sources_and_views_are_drawn(tmp_path: Path) -> None:
    wide = source(4, 700)
    region = TraceRegion(1, 0, wide, (0, 0, 700, 4), np.zeros((2, 300, 3), np.uint8))
    turn = DrawnTurn("", "anything?", (region,), feedback="bbox_2d [5, 2, 3, 4] is inverted.")
    draw_trace(Trace("q\n\x00\t\u4f60", (wide,), (turn,)), tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").size[0] >= 960


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_writing_makes_folders_and_names_what_it_cannot_write(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "a.json", {"a": "ä"})
    assert (tmp_path / "new" / "a.json").read_text(encoding="utf-8") == '{\n  "a": "ä"\n}\n'
    with pytest.raises(InputError, match=r"a\.json.b cannot be written"):
        write_text(tmp_path / "new" / "a.json" / "b", "x")
    with pytest.raises(InputError, match=r"Name it \.png"):
        draw_trace(trace(0), tmp_path / "trace.what")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@given(st.text(), st.integers(1, 40))
def test_wrapping_keeps_every_visible_character_and_the_width(text: str, width: int) -> None:
    lines = wrap_text(text[:400], width, len)
    if not lines or lines[-1] != "...":
        assert "".join("".join(lines).split()) == "".join(
            "".join(c if c.isprintable() else " " for c in text[:400]).split()
        )
        assert all(len(line) <= width for line in lines)


@pytest.mark.parametrize(("is_right", "colour"), [(None, (17, 17, 17)), (True, (11, 107, 43)), (False, (163, 21, 21))])
def test_an_answer_is_green_only_if_it_is_known_to_be_right(is_right: bool | None, colour: tuple[int, ...]) -> None:
    answered = Trace("", (), (DrawnTurn("", answer="7777"),), is_right=is_right)
    pixels = np.asarray(render_trace(answered))
    inked = {tuple(pixel) for pixel in pixels.reshape(-1, 3).tolist()} & {(17, 17, 17), (11, 107, 43), (163, 21, 21)}
    assert inked == {colour}
