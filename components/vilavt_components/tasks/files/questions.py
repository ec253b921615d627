"""Questions in data files: from a row to a sample, with image tags, options, and the kind of the answer."""

from __future__ import annotations

import itertools
import re
import string
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vilavt_components.common.answers.reading import label_options, read_choice
from vilavt_components.common.answers.scoring import AnswerKind, answer_kind_of, score_answer
from vilavt_toolkit.contracts import Sample
from vilavt_toolkit.data.fields import Fields
from vilavt_toolkit.data.named_originals import NamedOriginal, read_by_kind
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.utils.text import format_value

TAG = re.compile(r"<(image|video|point_cloud)>")
"""Stands in a text where an original is shown."""
_LETTERS = string.ascii_uppercase
_LABEL = re.compile(r"\(?[A-Za-z][.:)]")
_OPTION = re.compile(r"(?:^|(?<=[\s(,;]))\(?([A-Z])[.:)]\s+")


@dataclass(frozen=True)
class QuestionFormat:
    """The keys and question types of a format of questions."""

    type_key: str
    """The key of the question type, which decides how answers are compared."""
    id_key: str
    kinds: Mapping[str, AnswerKind]
    """The kind of answer for each question type."""
    score: Callable[[Sample, str], float] = field(default=score_answer, kw_only=True)
    """The score of an answer, by which a right one is checked against itself."""
    tag_keys: Sequence[str]
    """Keys whose values evaluation can group by."""


def read_question(fields: Fields, form: QuestionFormat) -> Sample:
    """Read the question of a row as a sample; adds what is wrong with it to `fields.problems`."""
    question, answer = fields.read_text("question"), fields.read_plain_text("answer")
    options, originals = read_options(fields), read_row_originals(fields, question)
    tags: dict[str, Any] = {
        **_read_tags(fields.row, form.tag_keys),
        "answer_kind": read_kind(fields, form.type_key, form.kinds),
        "options": find_choices(options, question, answer),
    }
    if originals:
        # Questions about one image are no independent evidence, so intervals keep them together.
        tags["group"] = originals[0].identity
    sample = Sample(
        id=fields.read_name(form.id_key),
        question=append_options(replace_tags(question), options),
        answer=answer,
        originals=originals,
        tags=tags,
        max_pixels=fields.read_int("max_pixels", 1),
    )
    check_answer(fields, "answer", sample, form.score)
    return sample


# --- Tags and options ---------------------------------------------------------------------------------


def replace_tags(text: str, first: int = 0) -> str:
    """Remove the image tags before a question's words; a tag among the words becomes its image's index, "[image 1]".

    The first tag is that of image `first`.
    """
    # `split` alternates between texts and the kinds of the tags.
    start, *rest = TAG.split(text)
    pieces, has_words = [start], bool(start.strip())
    for number, (kind, words) in enumerate(zip(rest[::2], rest[1::2], strict=True), first):
        named = f"[{'point cloud' if kind == 'point_cloud' else 'image'} {number}]"
        pieces += [named if has_words else "", words]
        has_words = has_words or bool(words.strip())
    return "".join(pieces).strip()


def read_row_originals(fields: Fields, question: str) -> tuple[NamedOriginal, ...]:
    """Read the originals of all fields, in the order of the question's tags, else in that of the fields."""
    named = [original for those in read_by_kind(fields).values() for original in those]
    _check_tag_count(fields, "question", question, len(named))
    tags = TAG.findall(question)
    waiting = {kind: deque(each for each in named if each.kind == kind) for kind in tags}
    # Tags that name the kinds in another proportion only say where originals stand, as <image> for a cloud.
    if len(tags) != len(named) or any(tags.count(kind) != len(those) for kind, those in waiting.items()):
        return tuple(named)
    return tuple(waiting[kind].popleft() for kind in tags)


def _check_tag_count(fields: Fields, key: str, text: str, images: int) -> None:
    """Refuse a question that has image tags, but not one for every image."""
    tags = len(TAG.findall(text))
    if tags and tags != images:
        fields.add_problem(
            key,
            f"has {_count_noun(tags, '<image> tag')} for {_count_noun(images, 'image')}. Write one for each image or "
            "none.",
        )


def _count_noun(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def read_options(fields: Fields) -> tuple[str, ...]:
    """Read the field `options`, a list or a mapping of letters to texts; () if it is missing or null."""
    value = fields.row.get("options")
    if isinstance(value, Mapping):
        return _read_lettered_options(fields, value)
    if value is None:
        return ()
    if not isinstance(value, list):
        fields.add_problem("options", f"is {format_value(value)}. It must be a list of texts.")
        return ()
    if len(value) > len(_LETTERS):
        fields.add_problem("options", f"has {len(value)} options. Each needs a letter, so give at most 26.")
        return ()
    # Numbers stand in files as options, and are texts to the model.
    plain = [str(each) if isinstance(each, int | float) else each for each in value]
    return tuple(fields.check_text(f"options[{number}]", each) for number, each in enumerate(plain))


def _read_lettered_options(fields: Fields, given: Mapping[str, Any]) -> tuple[str, ...]:
    """Return options of a mapping in the order of their letters, each behind its own."""
    wrong = [key for key in given if not re.fullmatch(r"[A-Za-z]", key)]
    if wrong or len({key.lower() for key in given}) < len(given):
        what = f"has the key {wrong[0][:60]!r}" if wrong else "has a letter in both cases"
        fields.add_problem("options", f"{what}. Its keys must be different letters, or give a list of texts.")
        return ()
    found = []
    for letter, value in sorted(given.items(), key=lambda item: item[0].lower()):
        text = fields.check_text(f"options.{letter}", str(value) if isinstance(value, int | float) else value)
        found.append(text if _begins_with(text, letter) else f"{letter}. {text}")
    return tuple(found)


def _begins_with(option: str, letter: str) -> bool:
    return re.match(rf"\(?{letter}[.:)]", option, re.IGNORECASE) is not None


def append_options(question: str, options: Sequence[str]) -> str:
    """Write a question with its options below it, one a line with its letter, unless it lists them already."""
    wanted = label_options(options)
    # The bare texts are no list: in "is it left or right of the plate?" they are the question's own words.
    listed = all(_LABEL.match(option) and option in question for option in options)
    if listed or wanted == label_options(find_options(question)):
        return question
    lines = [
        option if _begins_with(option, letter) else f"{letter.upper()}. {option}"
        for letter, option in zip(wanted, options, strict=True)
    ]
    return "\n".join([question, *lines])


def find_choices(options: tuple[str, ...], question: str, answer: str) -> tuple[str, ...]:
    """Return the options given, else those inside the question if the answer is one of them."""
    found = options or find_options(question)
    return found if options or read_choice(answer, found) is not None else ()


def find_options(question: str) -> tuple[str, ...]:
    """Find the options inside a question, with letters from A on; () if there are not two."""
    found = list(_OPTION.finditer(question))
    # From the last A on: the options end the question, and an earlier letter may belong to its words.
    for first in (number for number in reversed(range(len(found))) if found[number][1] == "A"):
        run = [found[first]]
        for match in found[first + 1 :]:
            if match[1] == chr(ord(run[-1][1]) + 1):
                run.append(match)
        if len(run) > 1:
            texts = [question[one.end() : other.start()] for one, other in itertools.pairwise(run)]
            # No letter follows the last option. If none before it has a full stop, it ends with its first sentence.
            texts.append(_last_option(question[run[-1].end() :], all("." not in text.strip()[:-1] for text in texts)))
            return tuple(text.strip(" \n,;(") for text in texts)
    return ()


def _last_option(text: str, sentence: bool) -> str:
    """Cut the last option from the text after it: the rest of its line, or its first sentence."""
    line = text.partition("\n")[0]
    first, stop, _ = line.partition(". ")
    return first + stop if sentence else line


def read_kind(fields: Fields, key: str, kinds: Mapping[str, AnswerKind]) -> AnswerKind:
    """Read the question type and return its kind of answer; an unknown type is a problem."""
    given = fields.read_text(key)
    try:
        return answer_kind_of(given, kinds, key) if given else "text"
    except InputError:
        fields.add_problem(key, f"is '{given[:60]}'. It must be one of {', '.join(kinds)}.")
        return "text"


def check_answer(
    fields: Fields, key: str, sample: Sample, score: Callable[[Sample, str], float] = score_answer
) -> None:
    """Refuse an answer that cannot be read as its kind, which would stop a run when it is compared with."""
    if not sample.answer.strip() or any(name == key for name, _ in fields.problems):
        return
    # The right answer must score 1 against itself, by the very reading that will be used on the model's.
    try:
        right = score(sample, sample.answer)
    except InputError:
        right = 0.0
    if right != 1:
        kind = sample.tags["answer_kind"]
        fields.add_problem(
            key,
            f"is {format_value(sample.answer)}, which cannot be read as kind '{kind}'. Correct the answer or the "
            "question type.",
        )


def _read_tags(row: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Read the fields that evaluation can group by, as far as a row has them."""
    return {key: row[key] for key in keys if isinstance(row.get(key), str | int | float | bool)}
