"""What questions in files have in common: image tags, options, and answers that can be compared with."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vilavt_components.common.answers.reading import read_choice
from vilavt_components.common.answers.scoring import Kind, kind_of, score_answer
from vilavt_toolkit.contracts import Sample
from vilavt_toolkit.data.fields import Fields, shown
from vilavt_toolkit.errors import InputError

TAG = re.compile(r"<(image|video)>")
_OPTION = re.compile(r"(?:^|(?<=[\s(,;]))\(?([A-Z])[.:)]\s+")


def without_tags(text: str) -> str:
    """A question without its image tags: those before its words go, others become the index the image is shown by."""
    number = 0

    def named(match: re.Match[str]) -> str:
        nonlocal number
        number += 1
        leading = not TAG.sub("", text[: match.start()]).strip()
        return "" if leading else f"[image {number - 1}]"

    return TAG.sub(named, text).strip()


def count_tags(fields: Fields, key: str, text: str, images: int) -> None:
    """Complain where a question has image tags, but not one for every image."""
    tags = len(TAG.findall(text))
    if tags and tags != images:
        fields.complain(key, f"has {_many(tags, '<image> tag')} for {_many(images, 'image')}; make them as many.")


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def read_options(fields: Fields) -> tuple[str, ...]:
    """The field `options`: a list, or a mapping of letters to texts; () where it is missing or null."""
    value = fields.row.get("options")
    if isinstance(value, Mapping):
        value = [f"{letter}. {text}" for letter, text in value.items()]
    if value is None:
        return ()
    if not isinstance(value, list):
        fields.complain("options", f"is {shown(value)}; it must be a list of texts.")
        return ()
    plain = [str(each) if isinstance(each, int | float) else each for each in value]
    return tuple(fields.checked_text(f"options[{number}]", each) for number, each in enumerate(plain))


def with_options(question: str, options: Sequence[str]) -> str:
    """The question with its options below, one a line with its letter, unless they stand in it."""
    if not options or all(option in question for option in options):
        return question
    lines = [
        option if re.match(rf"\(?{letter}[.:)]", option) else f"{letter}. {option}"
        for letter, option in zip(_letters(len(options)), options, strict=True)
    ]
    return "\n".join([question, *lines])


def choices(options: tuple[str, ...], question: str, answer: str) -> tuple[str, ...]:
    """What may be chosen from: the options given, else those inside the question where the answer is one of them."""
    found = options or options_in(question)
    return found if options or read_choice(answer, found) is not None else ()


def options_in(question: str) -> tuple[str, ...]:
    """The options that stand inside a question, in the order of their letters from A; () where there are not two."""
    found = list(_OPTION.finditer(question))
    for first in (number for number in reversed(range(len(found))) if found[number][1] == "A"):
        run = [found[first]]
        for match in found[first + 1 :]:
            if match[1] == chr(ord(run[-1][1]) + 1):
                run.append(match)
        if len(run) > 1:
            texts = [question[one.end() : other.start()] for one, other in itertools.pairwise(run)]
            texts.append(_first_line(question[run[-1].end() :], all("." not in text.strip()[:-1] for text in texts)))
            return tuple(text.strip(" \n,;(") for text in texts)
    return ()


def _first_line(text: str, sentence: bool) -> str:
    """The last option, without what is asked behind it: its line, or its first `sentence`."""
    line = text.partition("\n")[0]
    first, stop, _ = line.partition(". ")
    return first + stop if sentence else line


def _letters(count: int) -> list[str]:
    return [chr(ord("A") + number) for number in range(count)]


def read_kind(fields: Fields, key: str, kinds: Mapping[str, Kind]) -> Kind:
    """The kind of answer that a question type asks for; complains of one that is none."""
    given = fields.text(key)
    try:
        return kind_of(given, kinds, key) if given else "text"
    except InputError:
        fields.complain(key, f"is '{given[:60]}'; it must be one of {', '.join(kinds)}.")
        return "text"


def check_answer(fields: Fields, key: str, sample: Sample) -> None:
    """Complain of an answer that cannot be read as its kind: it would stop a run when it is compared with."""
    if not sample.answer.strip() or any(name == key for name, _ in fields.problems):
        return
    try:
        right = score_answer(sample, sample.answer)
    except InputError:
        right = 0.0
    if right != 1:
        kind = sample.tags["answer_kind"]
        fields.complain(key, f"is {shown(sample.answer)}, which cannot be read as kind '{kind}'; mend either.")


def tags_of(row: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """The fields that evaluation can group by, those that are there."""
    return {key: row[key] for key in keys if isinstance(row.get(key), str | int | float | bool)}
