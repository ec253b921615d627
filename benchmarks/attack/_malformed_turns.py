"""Turns as a broken model might write them: well-formed ones, changed in one to four places."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable

_TAGS = ("<think>", "</think>", "<tool>", "</tool>", "<answer>", "</answer>", "<", "</", "<tool", "<think", "answer>")
_NUMBERS = (
    "-1", "0", "1.5", "1e3", "1e400", "-0", "NaN", "Infinity", "-Infinity", "true", "null", "[]", "{}", '"5"', "0x10",
    "007", "1_000", "9" * 30, "9" * 5000, "0.1" + "0" * 400, "1" + "0" * 308,
)  # fmt: skip
_PIECES = (
    *_TAGS, "{", "}", "[", "]", '"', "\\", ",", ":", '{"region": []}', '{"query": "q"}', '"index": 0, ', '"bbox_2d": ',
    "\x00", "\x1b[2J", "\x9b31m", "\u202e", "\ufeff", "\ufffd", "\n\n\n", " " * 50, "é", "中", "😀",
    "\\ud800", "\\u0000",
    "x" * 3000, "[" * 2000, '{"a":' * 500, "<think>" * 200, "<answer>7</answer>" * 60, "</tool><tool>" * 60,
    " \n" * 500,
)  # fmt: skip


def write_malformed_turn(chance: random.Random) -> str:
    """Return the text of a turn that is most probably not in the right form."""
    if chance.random() < 0.1:
        return "".join(chance.choice(_PIECES) for _ in range(chance.randrange(12)))
    text = _write_turn(chance)
    for _ in range(chance.choice((1, 1, 2, 4))):
        text = chance.choice(_CHANGES)(text, chance)
    return text


def _write_turn(chance: random.Random) -> str:
    """Return a turn that is in the right form, though its boxes may not be."""
    thought = f"<think>{chance.choice(('', 'look', 'the red square is at 1 2'))}</think>"
    if chance.random() < 0.3:
        return f"{thought}<answer>{chance.choice(('7', 'a red square', ' '))}</answer>"
    boxes = [sorted(chance.choices(range(-2, 260), k=4)) for _ in range(chance.choice((1, 1, 2, 20)))]
    regions = [{"index": chance.choice((0, 0, 0, 1, 9)), "bbox_2d": [box[0], box[1], box[2], box[3]]} for box in boxes]
    call = {"region": regions, "query": chance.choice(("what digit?", "", "<tool>", 'a "quoted" one'))}
    return f"{thought}<tool>{json.dumps(call)}</tool>"


# --- Changes -------------------------------------------------------------------------------------------


def _pick_span(text: str, chance: random.Random) -> tuple[int, int]:
    start = chance.randrange(len(text) + 1)
    return start, min(len(text), start + chance.choice((1, 1, 3, 10, 40)))


def _delete_span(text: str, chance: random.Random) -> str:
    start, end = _pick_span(text, chance)
    return text[:start] + text[end:]


def _repeat_span(text: str, chance: random.Random) -> str:
    start, end = _pick_span(text, chance)
    return text[:end] + text[start:end] * chance.choice((1, 2, 50)) + text[end:]


def _insert_piece(text: str, chance: random.Random) -> str:
    place = chance.randrange(len(text) + 1)
    return text[:place] + chance.choice(_PIECES) + text[place:]


def _replace_number(text: str, chance: random.Random) -> str:
    found = list(re.finditer(r"-?\d+", text))
    if not found:
        return _insert_piece(text, chance)
    number = chance.choice(found)
    return text[: number.start()] + chance.choice(_NUMBERS) + text[number.end() :]


def _remove_tag(text: str, chance: random.Random) -> str:
    return text.replace(chance.choice(_TAGS[:6]), chance.choice(("", *_TAGS)))


def _cut(text: str, chance: random.Random) -> str:
    return text[: chance.randrange(len(text) + 1)]


def _double(text: str, chance: random.Random) -> str:
    return text + _write_turn(chance)


_CHANGES: tuple[Callable[[str, random.Random], str], ...] = (
    _delete_span,
    _repeat_span,
    _insert_piece,
    _replace_number,
    _replace_number,
    _remove_tag,
    _cut,
    _double,
)
