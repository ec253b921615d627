"""Task `easy_vqa`: the easy-VQA corpus as published, one coloured shape in each image."""

from __future__ import annotations

import functools
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from vilavt_components.tasks.published.corpus import (
    PublishedTask,
    cut_validation,
    hash_to_uniform,
    list_file_names,
    read_corpus_text,
    shuffle_by_hash,
)
from vilavt_components.tasks.published.tiny_corpora import tiny_easy_vqa
from vilavt_toolkit.contracts import Sample, TraceTurn
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.registry import tasks
from vilavt_toolkit.settings import setting

SHAPES = frozenset({"circle", "rectangle", "triangle"})
_YES_NO = frozenset({"yes", "no"})


@dataclass(frozen=True)
class EasyVQAConfig:
    """Settings of task `easy_vqa`."""

    root: str = setting(help="folder of the corpus as published, with train/, test/ and answers.txt", is_path=True)
    seed: int = setting(0, help="decides the order of samples and which images are held out for val", minimum=0)
    val: float = setting(0.05, help="share of the published train images held out as split val", minimum=0, maximum=0.5)
    thoughts: bool = setting(
        True, help="training thoughts describe the image by what its questions give away, or are empty if false"
    )
    blind: float = setting(
        0.0, help="share of training samples without an image: the answer is a guess", minimum=0, maximum=1
    )
    tool: bool = setting(False, help="the model may zoom, although no trace shows how, or must answer at once if false")


@dataclass(frozen=True)
class QuestionRow:
    """A question of the corpus."""

    number: int
    """Its index in questions.json, counted from 0."""
    question: str
    answer: str
    image: int


@tasks.register("easy_vqa", EasyVQAConfig)
class EasyVQA(PublishedTask[QuestionRow]):
    """easy-VQA as published: 64 x 64 images of one coloured shape; its colour, its shape, and whether it is there.

    `test` is the published test split; `val` is cut from the published train split by image. Official metric: accuracy.
    """

    name: ClassVar[str] = "easy_vqa"
    config: EasyVQAConfig

    @classmethod
    def tiny(cls) -> EasyVQAConfig:
        """Return settings of a made-up corpus of a few images, in a temporary folder."""
        return EasyVQAConfig(root=tiny_easy_vqa(), val=0.2, blind=0.1)

    def sample(self, split: str, index: int) -> Sample:
        """Return the sample at `index`, its image a path; raises IndexError beyond the split's end."""
        row, config = self._select_item(split, index), self.config
        folder = "test" if split == "test" else "train"
        # By the row's number, not its index: who is blind must not depend on which images are held out.
        blind = split == "train" and hash_to_uniform(config.seed, "blind", row.number) < config.blind
        return Sample(
            id=f"easy_vqa/{folder}/{row.number}",
            question=row.question,
            answer=row.answer,
            originals=() if blind else (str(self._root / folder / "images" / f"{row.image}.png"),),
            trace=(TraceTurn(self._training_thought(row, blind), answer=row.answer),) if split == "train" else (),
            tool=config.tool and not blind,
            tags={
                "group": f"{folder}/{row.image}",
                "kind": _question_kind(row.answer),
                "answer_kind": "yes_no" if row.answer in _YES_NO else "text",
            },
        )

    def corpus(self) -> Iterator[str]:
        """Yield questions, thoughts and answers of the training split."""
        for row in self._splits["train"]:
            yield from (row.question, self._training_thought(row, False), row.answer)

    def _training_thought(self, row: QuestionRow, blind: bool) -> str:
        if not self.config.thoughts:
            return ""
        return "no image" if blind else self._image_descriptions[row.image]

    @functools.cached_property
    def _published(self) -> dict[str, list[QuestionRow]]:
        """The rows of the two published splits in the order of their files."""
        answers = frozenset(read_corpus_text(self._root / "answers.txt").split())
        return {folder: read_rows(self._root / folder, answers) for folder in ("train", "test")}

    @functools.cached_property
    def _splits(self) -> dict[str, list[QuestionRow]]:
        """The rows of train, val and test, shuffled by the seed."""
        seed = self.config.seed
        train, test = self._published["train"], self._published["test"]
        splits = cut_validation(train, test, lambda row: str(row.image), self.config.val, seed)
        return {split: shuffle_by_hash(rows, lambda row: str(row.number), seed) for split, rows in splits.items()}

    @functools.cached_property
    def _image_descriptions(self) -> Mapping[int, str]:
        """A description of each image by what its training questions give away."""
        return describe_images(self._splits["train"])


def _question_kind(answer: str) -> str:
    """Return what a question asks for: presence, shape or colour."""
    if answer in _YES_NO:
        return "presence"
    return "shape" if answer in SHAPES else "colour"


# --- Reading ----------------------------------------------------------------------------------------


def read_rows(folder: Path, answers: frozenset[str]) -> list[QuestionRow]:
    """Read FOLDER/questions.json; raises InputError naming the file, the row, and what is wrong with it."""
    file = folder / "questions.json"
    try:
        data = json.loads(read_corpus_text(file))
    except json.JSONDecodeError as error:
        raise InputError(f"{file}, line {error.lineno}: no valid JSON ({error.msg}). Get the corpus again.") from error
    except RecursionError as error:
        raise InputError(f"{file} is nested too deep to be a list of questions. Get the corpus again.") from error
    if not isinstance(data, list) or not data:
        raise InputError(f"{file} holds no list of questions. Get the corpus again.")
    # The folder is listed once, instead of asking the file system for every row.
    images, rows = list_file_names(folder / "images"), []
    for number, item in enumerate(data):
        problem = _find_problem(item, answers)
        if not problem and f"{item[2]}.png" not in images:
            problem = f"its image {folder / 'images' / f'{item[2]}.png'} does not exist"
        if problem:
            raise InputError(
                f"{file}, row {number} (counted from 0): {problem}. Correct the row or get the corpus again."
            )
        rows.append(QuestionRow(number, item[0].strip(), item[1], item[2]))
    return rows


def _find_problem(item: Any, answers: frozenset[str]) -> str:
    """Describe what is wrong with a row; empty if nothing is."""
    if not isinstance(item, list) or len(item) not in (2, 3):
        return "it is no [question, answer, image number]"
    if len(item) == 2:
        return "it has no answer" if isinstance(item[1], int) else "it has no image number"
    question, answer, image = item
    if not isinstance(question, str) or not question.strip():
        return "its question is empty or no text"
    if answer is None or answer == "":
        return "it has no answer"
    if not isinstance(answer, str) or answer not in answers:
        return f"its answer {str(answer)[:40]!r} is none of answers.txt"
    # Not `isinstance`, for which True is a whole number.
    if type(image) is not int or image < 0:
        return f"its image number {str(image)[:40]!r} is no whole number from 0"
    return ""


# --- What an image shows ----------------------------------------------------------------------------


def describe_images(rows: Iterable[QuestionRow]) -> Mapping[int, str]:
    """Describe each image by what its questions give away together, as in "a red circle"; unknown parts are left out.

    A question about the colour of "the circle" says that there is one, and so does a yes to "is there a circle?".
    """
    about: defaultdict[int, list[QuestionRow]] = defaultdict(list)
    for row in rows:
        about[row.image].append(row)
    # The corpus does not list its colours: they are the answers that are neither shapes nor yes or no.
    everything = {row.answer for found in about.values() for row in found} - _YES_NO
    colours = frozenset(everything - SHAPES)
    return {
        image: _shape_phrase(_only_possible(found, colours), _only_possible(found, SHAPES))
        for image, found in about.items()
    }


def _shape_phrase(colour: str, shape: str) -> str:
    return " ".join(word for word in ("a", colour, shape or "shape") if word)


def _only_possible(rows: Sequence[QuestionRow], words: frozenset[str]) -> str:
    """Return the one of `words` that is true of an image by its rows; empty if several are left, or none."""
    present: set[str] = set()
    absent: set[str] = set()
    for row in rows:
        mentioned = set(re.findall(r"[a-z]+", row.question.lower()))
        asked_for = row.answer not in _YES_NO
        # "is no circle present?" turns yes and no around.
        holds = asked_for or (row.answer == "yes") != bool(mentioned & {"not", "no"})
        (present if holds else absent).update((mentioned | {row.answer}) & words)
    # Without a direct mention a word is known if all others are ruled out.
    left = present or words - absent
    return next(iter(left)) if len(left) == 1 else ""
