"""Task `questions`: questions of one's own with their answers, from any kind of file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from vilavt_components.tasks.files.plain_rows import PlainRowsConfig, PlainRowsTask, read_plain_question
from vilavt_components.tasks.files.tiny_files import tiny_plain_rows
from vilavt_toolkit.contracts import Sample, TraceTurn
from vilavt_toolkit.data.fields import Fields
from vilavt_toolkit.registry import tasks
from vilavt_toolkit.settings import setting

# Fields by which the paper's formats are told apart.
_OTHER_FORMATS = frozenset({"question_type", "problem_type", "turns"})


@dataclass(frozen=True, kw_only=True)
class QuestionsConfig(PlainRowsConfig):
    """Settings of task `questions`."""

    forced: float = setting(
        0.5, help="share of training samples that answer at once, without the tool, as arm single_pass asks",
        minimum=0, maximum=1,
    )  # fmt: skip
    tool: bool = setting(True, help="let the model zoom; false: it must answer at once")


@tasks.register("questions", QuestionsConfig)
class Questions(PlainRowsTask):
    """Rows of a question and its answer: JSON lines, JSON, CSV, parquet, a folder of the library datasets, shards.

    Reinforcement and evaluation ask them. Supervised training learns to answer at once, since there is no trace.
    """

    name: ClassVar[str] = "questions"
    config: QuestionsConfig

    @classmethod
    def tiny(cls) -> QuestionsConfig:
        """Return settings of made-up files in a temporary folder."""
        folder = tiny_plain_rows()
        return QuestionsConfig(files=f"{folder}/questions.csv", test_files=f"{folder}/questions.jsonl", blind=0.1)

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """Return True if a row has a question and an answer, and no field of another format."""
        return "question" in row and "answer" in row and _OTHER_FORMATS.isdisjoint(row)

    def read_sample(self, fields: Fields, training: bool) -> Sample:
        """Read the sample of a row; adds what is wrong with it to `fields.problems`."""
        sample = replace(read_plain_question(fields), tool=self.config.tool)
        return replace(sample, trace=(TraceTurn("", answer=sample.answer),)) if training else sample
