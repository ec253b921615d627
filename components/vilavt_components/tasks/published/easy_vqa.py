"""Task `easy_vqa`: the easy-VQA corpus as published, one coloured shape in each image."""

from __future__ import annotations

import functools
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vilavt_components.tasks.published.published import (
    chance,
    check_split,
    folder_of,
    held_out,
    mixed,
    names_in,
    read_text,
    select,
)
from vilavt_components.tasks.published.tiny_corpora import tiny_easy_vqa
from vilavt_toolkit.contracts import GivenTurn, Sample, Task
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.registry import tasks
from vilavt_toolkit.settings import setting

SHAPES = frozenset({"circle", "rectangle", "triangle"})
_YES_NO = frozenset({"yes", "no"})


@dataclass(frozen=True)
class EasyVQAConfig:
    """Settings of task `easy_vqa`."""

    root: str = setting(help="folder of the corpus as published, with train/, test/ and answers.txt")
    seed: int = setting(0, help="decides the order of samples and which images are held out for val", minimum=0)
    val: float = setting(0.05, help="share of the published train images held out as split val", minimum=0, maximum=0.5)
    thoughts: bool = setting(
        True, help="training thoughts say what the questions about the image give away of it; false: empty thoughts"
    )
    blind: float = setting(
        0.0, help="share of training samples without an image: the answer is a guess", minimum=0, maximum=1
    )
    tool: bool = setting(False, help="whether the model may look closer; no trace shows how")


@dataclass(frozen=True)
class Row:
    """A question of the corpus."""

    number: int
    """Its place in questions.json, counted from 0."""
    question: str
    answer: str
    image: int


@tasks.register("easy_vqa", EasyVQAConfig)
class EasyVQA(Task):
    """easy-VQA as published: 64 x 64 images of one coloured shape; its colour, its shape, and whether it is there.

    `test` is the published test split; `val` is cut from the published train split by image. Official metric: accuracy.
    """

    def __init__(self, config: EasyVQAConfig) -> None:
        self.config = config

    @classmethod
    def tiny(cls) -> EasyVQAConfig:
        """Return settings of a made-up corpus of a few images, in a temporary folder."""
        return EasyVQAConfig(root=tiny_easy_vqa(), val=0.2, blind=0.1)

    def length(self, split: str) -> int:
        """Number of samples of a split; raises UsageError for an unknown one, InputError for a damaged corpus."""
        check_split("easy_vqa", split, self.config.val)
        return len(self._splits[split])

    def sample(self, split: str, index: int) -> Sample:
        """The sample at `index`, its image a path; IndexError beyond the split's end."""
        check_split("easy_vqa", split, self.config.val)
        row, config = select(self._splits, "easy_vqa", split, index), self.config
        folder = "test" if split == "test" else "train"
        blind = split == "train" and chance(config.seed, "blind", row.number) < config.blind
        return Sample(
            id=f"easy_vqa/{folder}/{row.number}",
            question=row.question,
            answer=row.answer,
            originals=() if blind else (str(self._root / folder / "images" / f"{row.image}.png"),),
            trace=(GivenTurn(self._thought(row, blind), answer=row.answer),) if split == "train" else (),
            tool=config.tool and not blind,
            tags={
                "group": f"{folder}/{row.image}",
                "kind": _kind(row.answer),
                "answer_kind": "yes_no" if row.answer in _YES_NO else "text",
            },
        )

    def corpus(self) -> Iterator[str]:
        """Questions, thoughts and answers of the training split."""
        for row in self._splits["train"]:
            yield from (row.question, self._thought(row, False), row.answer)

    def score(self, sample: Sample, answer: str | None) -> float:
        """1 where the answer is the right one but for case and outer spaces, else 0."""
        return float(answer is not None and answer.strip().lower() == sample.answer.lower())

    def _thought(self, row: Row, blind: bool) -> str:
        if not self.config.thoughts:
            return ""
        return "no image" if blind else self._seen[row.image]

    @functools.cached_property
    def _root(self) -> Path:
        return folder_of(self.config.root, "easy_vqa")

    @functools.cached_property
    def _published(self) -> dict[str, list[Row]]:
        """The rows of the two published splits in the order of their files."""
        answers = frozenset(read_text(self._root / "answers.txt").split())
        return {folder: read_rows(self._root / folder, answers) for folder in ("train", "test")}

    @functools.cached_property
    def _splits(self) -> dict[str, list[Row]]:
        seed, rows = self.config.seed, self._published["train"]
        out = held_out((str(row.image) for row in rows), self.config.val, seed)
        cut = {
            "train": [row for row in rows if str(row.image) not in out],
            "val": [row for row in rows if str(row.image) in out],
            "test": self._published["test"],
        }
        return {split: mixed(found, lambda row: str(row.number), seed) for split, found in cut.items()}

    @functools.cached_property
    def _seen(self) -> Mapping[int, str]:
        return given_away(self._splits["train"])


def _kind(answer: str) -> str:
    """What a question asks for."""
    if answer in _YES_NO:
        return "presence"
    return "shape" if answer in SHAPES else "colour"


# --- Reading ----------------------------------------------------------------------------------------


def read_rows(folder: Path, answers: frozenset[str]) -> list[Row]:
    """Read FOLDER/questions.json; raises InputError naming the file, the row, and what is wrong with it."""
    file = folder / "questions.json"
    try:
        data = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise InputError(f"{file}, line {error.lineno}: no valid JSON ({error.msg}); get the corpus again.") from error
    except RecursionError as error:
        raise InputError(f"{file} is nested too deep to be a list of questions; get the corpus again.") from error
    if not isinstance(data, list) or not data:
        raise InputError(f"{file} holds no list of questions; get the corpus again.")
    images, rows = names_in(folder / "images"), []
    for number, item in enumerate(data):
        problem = _problem(item, answers)
        if not problem and f"{item[2]}.png" not in images:
            problem = f"its image {folder / 'images' / f'{item[2]}.png'} does not exist"
        if problem:
            raise InputError(f"{file}, row {number} (counted from 0): {problem}; mend the row or get the corpus again.")
        rows.append(Row(number, item[0].strip(), item[1], item[2]))
    return rows


def _problem(item: Any, answers: frozenset[str]) -> str:
    """What is wrong with a row; empty where nothing is."""
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
    if type(image) is not int or image < 0:
        return f"its image number {str(image)[:40]!r} is no whole number from 0"
    return ""


# --- What an image shows ----------------------------------------------------------------------------


def given_away(rows: Iterable[Row]) -> Mapping[int, str]:
    """What the questions about each image say of it together, as in "a red circle"; a part that none says is left out.

    A question about the colour of "the circle" says that there is one, and so does a yes to "is there a circle?".
    """
    about: defaultdict[int, list[Row]] = defaultdict(list)
    for row in rows:
        about[row.image].append(row)
    everything = {row.answer for found in about.values() for row in found} - _YES_NO
    colours = frozenset(everything - SHAPES)
    return {image: _phrase(_only(found, colours), _only(found, SHAPES)) for image, found in about.items()}


def _phrase(colour: str, shape: str) -> str:
    return " ".join(word for word in ("a", colour, shape or "shape") if word)


def _only(rows: Sequence[Row], words: frozenset[str]) -> str:
    """The one of `words` that holds of what the rows are about; empty where they leave several, or contradict."""
    there: set[str] = set()
    absent: set[str] = set()
    for row in rows:
        said = set(re.findall(r"[a-z]+", row.question.lower()))
        asked_for = row.answer not in _YES_NO
        holds = asked_for or (row.answer == "yes") != bool(said & {"not", "no"})
        (there if holds else absent).update((said | {row.answer}) & words)
    left = there or words - absent
    return next(iter(left)) if len(left) == 1 else ""
