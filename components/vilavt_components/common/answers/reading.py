"""Reads what an answer says: numbers, choices, yes or no, boxes, moves. Nothing is searched for in a longer text."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Collection, Sequence
from fractions import Fraction

PlacedBox = tuple[int, tuple[float, ...]]
"""(index of the region it is in, coordinates: all lower sides, then all upper sides)"""

_LONGEST = 1000
"""No number, choice or box is longer; regular expressions and fractions stay quick."""
_DECIMAL = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?) ?(?:(?P<whole>[0-9]+) (?=[0-9]+ ?/))?(?P<top>{_DECIMAL})(?:[eE](?P<exponent>[-+]?[0-9]{{1,3}}))?"
    rf"(?: ?/ ?(?P<bottom>{_DECIMAL}))? ?(?P<percent>%?)"
)
_FRACTION = re.compile(r"\\[dt]?frac ?(?:\{([^{}]*)\} ?\{([^{}]*)\}|([0-9]) ?([0-9]))")
_BOXED = re.compile(r"\\boxed\{(.*)\}", re.S)
_LETTER = re.compile(r"(?:\(([a-z])\)|([a-z])\)?)[.:]?")
_LABELLED = re.compile(r"(?:\(([a-z])\)[.:]?|([a-z])[.:)]) ?(.+)")
_TRUTH = {"yes": True, "true": True, "no": False, "false": False}


def normalised(text: str) -> str:
    """The text without case, width of letters, outer quotes, a closing full stop, and the frames of formulas."""
    plain = unicodedata.normalize("NFC", "".join(map(_plain, text)))
    plain = " ".join(plain.casefold().split())
    while True:
        bare = plain.strip(" \"'")
        boxed = _BOXED.fullmatch(bare)
        if boxed is not None:
            bare = boxed[1]
        elif len(bare) > 2 and bare[0] == bare[-1] == "$":
            bare = bare[1:-1]
        elif len(bare) > 1 and bare[-1] == "." and bare[-2] != ".":
            bare = bare[:-1]
        if bare == plain:
            return plain
        plain = bare


def _plain(character: str) -> str:
    """A character without its width or style; not an exponent, which would join the number before it."""
    kind = unicodedata.decomposition(character).partition(" ")[0]
    if kind in ("<super>", "<sub>"):
        return character
    plain = unicodedata.normalize("NFKC", character).replace("\u2212", "-").replace("\u2044", "/")
    return f" {plain} " if kind == "<fraction>" else plain


def same_text(truth: str, answer: str) -> bool:
    """Whether two texts are equal once normalised; where nothing is left of one, as they stand."""
    left, right = normalised(truth), normalised(answer)
    return left == right if left and right else truth.strip() == answer.strip()


def read_number(text: str) -> tuple[Fraction, bool] | None:
    """The exact value of a decimal, fraction or percentage, and whether it is a percentage; None for anything else.

    A whole number before a fraction is added to it: 1 1/2, and so 1\\frac{1}{2}, is 3/2.
    """
    if len(text) > _LONGEST:
        return None
    plain = _FRACTION.sub(lambda found: f" {found[1] or found[3]}/{found[2] or found[4]} ", normalised(text))
    match = _NUMBER.fullmatch(" ".join(plain.replace("\\%", "%").split()))
    if match is None:
        return None
    value = _decimal(match["top"]) * Fraction(10) ** int(match["exponent"] or 0)
    if match["bottom"]:
        bottom = _decimal(match["bottom"])
        if not bottom:
            return None
        value /= bottom
    value += int(match["whole"] or 0)
    percent = bool(match["percent"])
    return (-value if match["sign"] == "-" else value) / (100 if percent else 1), percent


def same_number(truth: tuple[Fraction, bool], found: tuple[Fraction, bool], tolerance: float = 0.0) -> bool:
    """Whether two numbers, as `read_number` gives them, are equal up to a relative error."""
    (wanted, percent), (value, found_percent) = truth, found
    # Asked for a percentage, "25" means 25%, and "0.25" is the same number.
    readings = [value, value / 100] if percent and not found_percent else [value]
    allowed = Fraction(str(tolerance)) * abs(wanted)
    return any(abs(reading - wanted) <= allowed for reading in readings)


def _decimal(figures: str) -> Fraction:
    return Fraction(figures.replace(",", ""))


def read_yes_no(text: str) -> bool | None:
    """True for yes and true, False for no and false, None for anything else."""
    return _TRUTH.get(normalised(text))


def read_choice(text: str, options: Sequence[str]) -> str | None:
    """The letter an answer names: alone, before its own option's text, or by the text of exactly one option.

    Without options any letter will do, and nothing may follow it.
    """
    if len(text) > _LONGEST:
        return None
    plain, texts = normalised(text), _option_texts(options)
    letter = _LETTER.fullmatch(plain)
    if letter is not None:
        named = letter[1] or letter[2]
        if not texts or ord(named) - ord("a") < len(texts):
            return named
    labelled = _LABELLED.fullmatch(plain)
    if labelled is not None:
        named = labelled[1] or labelled[2]
        index = ord(named) - ord("a")
        if index < len(texts) and texts[index] == normalised(labelled[3]):
            return named
    meant = [chr(ord("a") + index) for index, option in enumerate(texts) if option == plain]
    return meant[0] if len(meant) == 1 else None


def _option_texts(options: Sequence[str]) -> list[str]:
    """Options without the letters before them, where every one has its own."""
    texts = [normalised(option) for option in options]
    labels = [_LABELLED.fullmatch(text) for text in texts]
    own = [label is not None and (label[1] or label[2]) == chr(ord("a") + index) for index, label in enumerate(labels)]
    return [normalised(label[3]) for label in labels if label is not None] if all(own) else texts


def read_moves(text: str, names: Collection[str]) -> dict[str, Fraction] | None:
    """How far each named move goes, "move_right:1.0,rotate_up:20", each named once; None for anything else."""
    if len(text) > _LONGEST:
        return None
    moves: dict[str, Fraction] = {}
    for item in normalised(text).split(","):
        name, _, length = (each.strip() for each in item.partition(":"))
        number = read_number(length)
        if name not in names or name in moves or number is None or number[1]:
            return None
        moves[name] = number[0]
    return moves


def read_box(text: str) -> PlacedBox | None:
    """A box: [x1, y1, x2, y2], or as in a tool call, {"index": 0, "bbox_2d": [..]}; None for anything else.

    A box without an index is in region 0. Boxes of more axes have all lower sides first.
    """
    if len(text) > _LONGEST:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    index = 0
    if isinstance(value, dict):
        given = value.pop("index", 0)
        if isinstance(given, bool) or not isinstance(given, int) or len(value) != 1:
            return None
        index, value = given, next(iter(value.values()))
    if not isinstance(value, list) or len(value) < 4 or len(value) % 2 or not all(map(_is_coordinate, value)):
        return None
    box = tuple(float(side) for side in value)
    low, high = box[: len(box) // 2], box[len(box) // 2 :]
    return (index, box) if all(a < b for a, b in zip(low, high, strict=True)) else None


def _is_coordinate(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e9 and math.isfinite(value)


def overlap(first: PlacedBox, second: PlacedBox) -> float:
    """Intersection over union of two boxes; 0 where they are in different regions, or have different axes."""
    (region, a), (other, b) = first, second
    if region != other or len(a) != len(b):
        return 0.0
    axes = len(a) // 2
    shared = math.prod(max(0.0, min(a[axes + i], b[axes + i]) - max(a[i], b[i])) for i in range(axes))
    volumes = [math.prod(box[axes + i] - box[i] for i in range(axes)) for box in (a, b)]
    return shared / (sum(volumes) - shared)
