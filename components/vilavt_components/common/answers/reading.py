"""Readers of answers: numbers, choices, yes or no, moves. The whole text must be the answer.

No reader searches a longer text: a model that is rewarded would learn to write down every possible answer.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence
from fractions import Fraction
from itertools import pairwise

_MAX_LENGTH = 1000
"""A longer text is not read, so that regular expressions and fractions stay quick."""
_MAX_FRAMES = 100
"""Frames, quotes and full stops around an answer that are removed."""
_DECIMAL = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?) ?(?:(?P<whole>[0-9]+) (?=[0-9]+ ?/))?(?P<top>{_DECIMAL})(?:[eE](?P<exponent>[-+]?[0-9]{{1,3}}))?"
    rf"(?: ?/ ?(?P<bottom>{_DECIMAL}))? ?(?P<percent>%?)"
)
_CURRENCY = re.compile(r"^([-+]?) ?\\?\$ ?(?=[-+.0-9])")
_SCIENTIFIC = re.compile(
    rf"(?P<sign>[-+]?) ?(?:(?P<factor>{_DECIMAL}) ?(?:\\times|\\cdot|[*x\u00d7\u00b7]) ?)?"
    r"10 ?(?:\^|\*\*) ?(?:\{ ?(?P<braced>[-+]?[0-9]{1,4}) ?\}|(?P<bare>[-+]?[0-9]{1,4}))"
)
_SUPERSCRIPT = re.compile("10([\u207a\u207b]?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+)")
_FRACTION = re.compile(r"\\[dt]?frac ?(?:\{([^{}]*)\} ?\{([^{}]*)\}|([0-9]) ?([0-9]))")
_BOXED = re.compile(r"\\boxed\{(.*)\}", re.S)
_LETTER = re.compile(r"(?:\(([a-z])\)|([a-z])\)?)[.:]?")
_LABELLED = re.compile(r"(?:\(([a-z])\)[.:]?|([a-z])[.:)]) ?(.+)")
_TRUTH = {"yes": True, "true": True, "no": False, "false": False}


def normalise_text(text: str) -> str:
    """Return the text without case, width of letters, outer quotes, a final full stop and the frames of formulas.

    Frames are `$...$` and `\\boxed{...}`, in any nesting.
    """
    # Plain letters have no style, and a long text of them is read a letter at a time for nothing.
    plain = text if text.isascii() else unicodedata.normalize("NFC", "".join(map(_strip_style, text)))
    plain = " ".join(plain.casefold().split())
    # Until nothing changes: quotes, full stop and frames stand in any order, as in "\boxed{B}." in quotes. Only so
    # often, since each round copies the text and a text of frames alone would take time with its square.
    for _ in range(_MAX_FRAMES):
        bare = plain.strip(" \"'")
        boxed = _BOXED.fullmatch(bare)
        if boxed is not None:
            bare = boxed[1]
        elif len(bare) > 2 and bare[0] == bare[-1] == "$":
            bare = bare[1:-1]
        # An ellipsis stays: it says that something is left out.
        elif len(bare) > 1 and bare[-1] == "." and bare[-2] != ".":
            bare = bare[:-1]
        if bare == plain:
            break
        plain = bare
    return plain


def _strip_style(character: str) -> str:
    """Return a character without its width or style, such as a full-width or bold letter."""
    kind = unicodedata.decomposition(character).partition(" ")[0]
    # An exponent stays one: as a plain digit it would join the number before it, and 10² would be 102.
    if kind in ("<super>", "<sub>"):
        return character
    plain = unicodedata.normalize("NFKC", character).replace("\u2212", "-").replace("\u2044", "/")
    return f" {plain} " if kind == "<fraction>" else plain


def is_same_text(truth: str, answer: str) -> bool:
    """Return True if two texts are equal once normalised, or as they are if nothing is left of one of them."""
    left, right = normalise_text(truth), normalise_text(answer)
    return left == right if left and right else truth.strip() == answer.strip()


def read_number(text: str) -> tuple[Fraction, bool] | None:
    """Return the exact value of a decimal, fraction or percentage, and True if it is a percentage; None otherwise.

    A whole number before a fraction is added to it: 1 1/2, like 1\\frac{1}{2}, is 3/2. A power of ten is read too, as
    in 1.6\\times 10^{-19}. A dollar sign before a number is left out.
    """
    if len(text) > _MAX_LENGTH:
        return None
    plain = _CURRENCY.sub(r"\1", normalise_text(text), count=1)
    power = _SCIENTIFIC.fullmatch(_SUPERSCRIPT.sub(_write_exponent, plain))
    if power is not None:
        value = _parse_decimal(power["factor"] or "1") * Fraction(10) ** int(power["braced"] or power["bare"])
        return -value if power["sign"] == "-" else value, False
    plain = _FRACTION.sub(_write_fraction, plain)
    match = _NUMBER.fullmatch(" ".join(plain.replace("\\%", "%").split()))
    if match is None:
        return None
    value = _parse_decimal(match["top"]) * Fraction(10) ** int(match["exponent"] or 0)
    if match["bottom"]:
        # Fractions, not floats: 1/3 and 0.1 keep their exact values, so a tolerance of 0 means equal.
        bottom = _parse_decimal(match["bottom"])
        if not bottom:
            return None
        value /= bottom
    value += int(match["whole"] or 0)
    percent = bool(match["percent"])
    return (-value if match["sign"] == "-" else value) / (100 if percent else 1), percent


def is_same_number(truth: tuple[Fraction, bool], found: tuple[Fraction, bool], tolerance: float = 0.0) -> bool:
    """Return True if two numbers, as `read_number` gives them, are equal up to a relative error."""
    (wanted, percent), (value, found_percent) = truth, found
    # If the truth is 25%, the answer "25" means 25%, and "0.25" is the same number.
    readings = [value, value / 100] if percent and not found_percent else [value]
    # By way of its text: Fraction(0.1) is not 1/10 but the nearest double.
    allowed = Fraction(str(tolerance)) * abs(wanted)
    return any(abs(reading - wanted) <= allowed for reading in readings)


def _write_exponent(match: re.Match[str]) -> str:
    """Return 10 and a raised exponent as 10^{exponent}."""
    return f"10^{{{unicodedata.normalize('NFKC', match[1]).replace(chr(0x2212), '-')}}}"


def _write_fraction(match: re.Match[str]) -> str:
    """Return a fraction on one line, with the sign of its lower number before it."""
    top, bottom = (match[1], match[2]) if match[3] is None else (match[3], match[4])
    top, bottom = top.strip(), bottom.strip()
    return f" -{top}/{bottom[1:]} " if bottom.startswith("-") and not top.startswith("-") else f" {top}/{bottom} "


def _parse_decimal(figures: str) -> Fraction:
    return Fraction(figures.replace(",", ""))


def read_yes_no(text: str) -> bool | None:
    """Return True for yes and true, False for no and false, None for anything else."""
    return _TRUTH.get(normalise_text(text))


def read_choice(text: str, options: Sequence[str]) -> str | None:
    """Return the letter that an answer names: alone, with its own option's text, or by the text of exactly one option.

    Options have the letters that are written before them, else a, b, c and so on. Without `options` any letter counts,
    and nothing may follow it. None for anything else.
    """
    if len(text) > _MAX_LENGTH:
        return None
    plain, texts = normalise_text(text), label_options(options)
    letter = _LETTER.fullmatch(plain)
    if letter is not None:
        named = letter[1] or letter[2]
        # A letter that no option has is not an answer to this question.
        if not texts or named in texts:
            return named
    labelled = _LABELLED.fullmatch(plain)
    if labelled is not None:
        named = labelled[1] or labelled[2]
        if named in texts and texts[named] == normalise_text(labelled[3]):
            return named
    # Two options of the same text: naming it names neither.
    meant = [label for label, option in texts.items() if option == plain]
    return meant[0] if len(meant) == 1 else None


def label_options(options: Sequence[str]) -> dict[str, str]:
    """Return the normalised text of each option by its letter, in lower case.

    The letters are those before the options if every option has one and they ascend, or are a, b, c and so on in
    another order, else a, b, c and so on by place.
    """
    texts = [normalise_text(option) for option in options]
    labels = [_LABELLED.fullmatch(text) for text in texts]
    found = [(label[1] or label[2], normalise_text(label[3])) for label in labels if label is not None]
    letters = [letter for letter, _ in found]
    # Initials of names look like letters too, but seldom all of them, and in order or without a gap.
    ascend = all(first < second for first, second in pairwise(letters))
    if len(found) == len(texts) and (ascend or sorted(letters) == [chr(ord("a") + n) for n in range(len(letters))]):
        return dict(found)
    return {chr(ord("a") + place): text for place, text in enumerate(texts)}


def read_moves(text: str, names: Collection[str]) -> dict[str, Fraction] | None:
    """Return how far each move goes, as in "move_right:1.0,rotate_up:20", each named once; None otherwise."""
    if len(text) > _MAX_LENGTH:
        return None
    moves: dict[str, Fraction] = {}
    for item in normalise_text(text).split(","):
        name, _, length = (each.strip() for each in item.partition(":"))
        number = read_number(length)
        if name not in names or name in moves or number is None or number[1]:
            return None
        moves[name] = number[0]
    return moves
