"""Rows in the toolkit's own words: a question about originals of any kind, its answer, options and kind of answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, get_args

from vilavt_components.common.answers.scoring import AnswerKind, score_answer
from vilavt_components.tasks.files.questions import (
    append_options,
    check_answer,
    find_choices,
    read_options,
    read_row_originals,
    replace_tags,
)
from vilavt_components.tasks.published.corpus import hash_to_uniform
from vilavt_toolkit.contracts import Sample, TraceTurn
from vilavt_toolkit.data.fields import Fields
from vilavt_toolkit.data.file_task import FilesConfig, FileTask
from vilavt_toolkit.data.named_originals import ORIGINAL_KEYS
from vilavt_toolkit.settings import setting
from vilavt_toolkit.utils.text import format_value

ROW_FIELDS = ("id", "question", "answer", *ORIGINAL_KEYS, "options", "kind", "max_pixels", "max_turns")
"""The fields that rows of `questions` and `traces` have in common."""
_KINDS: Sequence[AnswerKind] = get_args(AnswerKind)


@dataclass(frozen=True, kw_only=True)
class PlainRowsConfig(FilesConfig):
    """Settings of tasks on plain rows."""

    forced: float = setting(
        0.0, help="share of training samples that answer at once, without the tool, as arm single_pass asks",
        minimum=0, maximum=1,
    )  # fmt: skip
    blind: float = setting(
        0.0, help="share of training samples without what they show, as arm blind asks", minimum=0, maximum=1
    )


class PlainRowsTask(FileTask):
    """A task whose rows are questions in the toolkit's own words. A subclass reads how they are answered."""

    config: PlainRowsConfig
    known_fields: ClassVar[tuple[str, ...]] = ROW_FIELDS

    def vary_sample(self, sample: Sample) -> Sample:
        """Let a share of the training samples answer without looking, or without the tool."""
        draw = hash_to_uniform(self.config.seed, "plain", sample.id)
        if not sample.trace or draw >= self.config.blind + self.config.forced:
            return sample
        # One draw for both, so that no sample is taken twice and each share is what its setting says.
        sample = replace(sample, trace=(TraceTurn("", answer=sample.answer, demanded=True),))
        return replace(sample, originals=(), tool=False) if draw < self.config.blind else sample

    def score(self, sample: Sample, answer: str | None) -> float:
        """Return the score of an answer by the row's kind, as reward `answer` does."""
        return score_answer(sample, answer)


def read_plain_question(fields: Fields) -> Sample:
    """Read the question of a row as a sample without a trace; adds what is wrong with it to `fields.problems`."""
    question, answer, options = fields.read_text("question"), fields.read_plain_text("answer"), read_options(fields)
    originals = read_row_originals(fields, question)
    tags: dict[str, Any] = {"answer_kind": _read_kind(fields, "choice" if options else "text")}
    if tags["answer_kind"] == "choice":
        tags["options"] = find_choices(options, question, answer)
    if originals:
        # Questions about one original are no independent evidence, so intervals keep them together.
        tags["group"] = originals[0].identity
    sample = Sample(
        id=fields.read_name("id"),
        question=append_options(replace_tags(question), options),
        answer=answer,
        originals=originals,
        tags=tags,
        max_pixels=fields.read_int("max_pixels", 1),
        max_turns=fields.read_int("max_turns", 1),
    )
    check_answer(fields, "answer", sample)
    return sample


def _read_kind(fields: Fields, default: AnswerKind) -> AnswerKind:
    """Read how answers are compared; an unknown kind is a problem."""
    given = fields.row.get("kind")
    for kind in _KINDS:
        if given == kind:
            return kind
    if given is not None:
        fields.add_problem("kind", f"is {format_value(given)}. It must be one of {', '.join(_KINDS)}.")
    return default
