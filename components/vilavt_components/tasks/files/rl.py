"""Task `vilavt_rl`: questions in the paper's format for reinforcement, each with its type and its own limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vilavt_components.common.answers.scoring import REINFORCEMENT_KINDS, score_answer
from vilavt_components.tasks.files.questions import (
    check_answer,
    choices,
    count_tags,
    read_kind,
    read_options,
    tags_of,
    with_options,
    without_tags,
)
from vilavt_components.tasks.files.tiny_files import tiny_questions
from vilavt_toolkit.contracts import Sample
from vilavt_toolkit.data.fields import Fields
from vilavt_toolkit.data.file_task import FilesConfig, FileTask
from vilavt_toolkit.data.originals import named
from vilavt_toolkit.registry import tasks


@dataclass(frozen=True, kw_only=True)
class VilavtRLConfig(FilesConfig):
    """Settings of task `vilavt_rl`."""


@tasks.register("vilavt_rl", VilavtRLConfig)
class VilavtRL(FileTask):
    """Questions for reinforcement, JSON lines: question, answer, image_path, question_type, max_pixels, max_num_steps.

    A sample's `max_num_steps` turns without an answer are the most it may take, whatever the recipe allows.
    """

    name: ClassVar[str] = "vilavt_rl"

    @classmethod
    def tiny(cls) -> VilavtRLConfig:
        """Return settings of made-up files in a temporary folder."""
        folder = tiny_questions()
        return VilavtRLConfig(files=f"{folder}/rl.jsonl", test_files=f"{folder}/rl_test.jsonl", val_share=0.2)

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """Whether a row names images as these do, or has a question type."""
        return "question" in row and ("image_path" in row or "question_type" in row)

    def read(self, fields: Fields, training: bool) -> Sample:
        """The sample of a row; complains of what is wrong with it."""
        question, answer = fields.text("question"), fields.plain("answer")
        originals = named("image_path", fields.texts("image_path"), isinstance(fields.row.get("image_path"), list))
        count_tags(fields, "question", question, len(originals))
        options = read_options(fields)
        tags: dict[str, Any] = {
            **tags_of(fields.row, ("data_type", "question_type")),
            "answer_kind": read_kind(fields, "question_type", REINFORCEMENT_KINDS),
            "options": choices(options, question, answer),
        }
        if originals:
            tags["group"] = originals[0].name
        sample = Sample(
            id=fields.name("id"),
            question=with_options(without_tags(question), options),
            answer=answer,
            originals=originals,
            tags=tags,
            max_pixels=fields.whole("max_pixels", 1),
            max_turns=fields.whole("max_num_steps", 1),
        )
        check_answer(fields, "answer", sample)
        return sample

    def score(self, sample: Sample, answer: str | None) -> float:
        """As reward `answer` compares, by the question's type."""
        return score_answer(sample, answer)
