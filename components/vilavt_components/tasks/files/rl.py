"""Task `vilavt_rl`: questions in the paper's format for reinforcement learning, each with its type and limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from vilavt_components.common.answers.official import score_official
from vilavt_components.common.answers.scoring import REINFORCEMENT_KINDS, score_answer
from vilavt_components.tasks.files.questions import QuestionFormat, read_question
from vilavt_components.tasks.files.tiny_files import tiny_questions
from vilavt_toolkit.contracts import Sample
from vilavt_toolkit.data.fields import Fields
from vilavt_toolkit.data.file_task import FilesConfig, FileTask
from vilavt_toolkit.data.named_originals import ORIGINAL_KEYS
from vilavt_toolkit.registry import tasks
from vilavt_toolkit.settings import setting

_FORMAT = QuestionFormat(
    type_key="question_type",
    id_key="id",
    kinds=REINFORCEMENT_KINDS,
    tag_keys=("data_type", "question_type"),
)


@dataclass(frozen=True, kw_only=True)
class VilavtRLConfig(FilesConfig):
    """Settings of task `vilavt_rl`."""

    scoring: Literal["strict", "official"] = setting(
        "strict",
        help="rule of an evaluation's scores, where strict is that of reward `answer` and official that of the paper's "
        "evaluation",
    )


@tasks.register("vilavt_rl", VilavtRLConfig)
class VilavtRL(FileTask):
    """Questions for reinforcement learning, JSON lines with question, answer, image_path and question_type.

    A row may have its own `max_pixels` and `max_num_steps`: most turns without an answer, whatever the recipe says.
    """

    name: ClassVar[str] = "vilavt_rl"
    has_traces: ClassVar[bool] = False
    known_fields: ClassVar[tuple[str, ...]] = (
        *("id", "question", "answer", *ORIGINAL_KEYS, "question_type", "max_pixels", "max_num_steps", "options"),
        "data_type",
    )
    config: VilavtRLConfig

    @classmethod
    def tiny(cls) -> VilavtRLConfig:
        """Return settings of made-up files in a temporary folder."""
        folder = tiny_questions()
        return VilavtRLConfig(files=f"{folder}/rl.jsonl", test_files=f"{folder}/rl_test.jsonl", val_share=0.2)

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """Return True if a row is a question with a question type."""
        return "question" in row and "question_type" in row

    def read_sample(self, fields: Fields, training: bool) -> Sample:
        """Read the sample of a row; adds what is wrong with it to `fields.problems`."""
        # A row that is trained on is scored by a reward, which refuses some answers that the paper's evaluation takes.
        form = _FORMAT if training else replace(_FORMAT, score=self.score)
        return replace(read_question(fields, form), max_turns=fields.read_int("max_num_steps", 1))

    def score(self, sample: Sample, answer: str | None) -> float:
        """Return the score of an answer by the question's type, as reward `answer` does unless `scoring` is official.

        Strict by default, unlike a benchmark: an evaluation then measures what reinforcement pays for.
        """
        return score_official(sample, answer) if self.config.scoring == "official" else score_answer(sample, answer)

    def score_turn(self, sample: Sample, text: str, answer: str | None) -> float:
        """Return the score of the last turn: officially of its first answer, even if the turn is malformed."""
        return score_official(sample, text) if self.config.scoring == "official" else self.score(sample, answer)
