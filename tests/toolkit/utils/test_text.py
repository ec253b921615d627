"""Text of users and models: no terminal obeys it, and no error prints much of it."""

from __future__ import annotations

import json
import logging

import pytest

from vilavt_toolkit.utils.text import MOST_QUOTED, PlainFormatter, escape_controls, format_value, shorten_text

EVIL = "a\x1b[2J\x9b31m\x07\r\u202eb\ud800"
SHOWN = r"a\x1b[2J\x9b31m\x07\r\u202eb\ud800"


def test_control_characters_are_shown_as_escapes_and_all_others_as_they_are():
    assert escape_controls(EVIL) == SHOWN
    assert escape_controls("ä 水 😀 a\tb\nc [red]") == "ä 水 😀 a\tb\nc [red]"


def test_logs_hold_no_control_characters():
    record = logging.LogRecord("x", logging.WARNING, "f", 1, "no %s", ("a\x1b[2J",), None)
    assert PlainFormatter("%(levelname)s: %(message)s").format(record) == r"WARNING: no a\x1b[2J"


def test_a_long_text_is_cut_and_its_length_told():
    assert shorten_text("short") == "short"
    cut = shorten_text("x" * 1_000_000)
    assert len(cut) == MOST_QUOTED and cut.endswith("x... (1,000,000 characters)")


@pytest.mark.parametrize(
    "value",
    ["x" * 10**6, ["y" * 10**6], 10**5000, {"deep": 10**5000}, json.loads("[" * 500 + "]" * 500), b"z" * 10**6],
    ids=["text", "list", "number", "number in it", "deep", "bytes"],
)
def test_no_value_takes_more_than_a_short_part_of_a_sentence(value):
    assert len(format_value(value)) < 80
