"""Task `vilavt_benchmark`: the paper's eight benchmarks, converted to one JSON format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from vilavt_components.common.answers.official import score_official
from vilavt_components.common.answers.reading import read_number
from vilavt_components.common.answers.scoring import BENCHMARK_KINDS, score_answer
from vilavt_components.tasks.files.benchmark_tables import TABLES, detect_table, score_by_category
from vilavt_components.tasks.files.questions import QuestionFormat, read_question
from vilavt_components.tasks.files.tiny_files import tiny_questions
from vilavt_toolkit.contracts import Sample
from vilavt_toolkit.data.fields import Fields
from vilavt_toolkit.data.file_task import FilesConfig, FileTask
from vilavt_toolkit.data.named_originals import ORIGINAL_KEYS
from vilavt_toolkit.registry import tasks
from vilavt_toolkit.settings import setting

_FORMAT = QuestionFormat(
    type_key="problem_type",
    id_key="question_id",
    kinds={**BENCHMARK_KINDS, "free-form": "text"},
    tag_keys=("problem_type", "original_question_type", "category", "cycle_category", "task", "data_type", "dataset"),
)


@dataclass(frozen=True, kw_only=True)
class VilavtBenchmarkConfig(FilesConfig):
    """Settings of task `vilavt_benchmark`; `files` are the benchmark, and split test."""

    train_files: list[str] | str = setting(
        help="data files of split train, of which benchmarks usually have none", factory=list, is_path=True
    )
    scoring: Literal["official", "strict"] = setting(
        "official",
        help="rule of scores, where official is that of the paper's evaluation and strict accepts an answer only if it "
        "is one, as in reinforcement",
    )
    table: Literal["auto", "vsibench", "sparbench", "category"] = setting(
        "auto", help="table of scores, where auto goes by the question types, or else shows one number a category"
    )
    rel_direction: Literal["mean", "pooled"] = setting(
        "mean",
        help="relative directions of vsibench, where mean is that of easy, medium and hard, as published, and pooled "
        "is over all items, as in the paper's scorer",
    )


@tasks.register("vilavt_benchmark", VilavtBenchmarkConfig)
class VilavtBenchmark(FileTask):
    """VSI-Bench, SPAR-Bench, HRBench, EmbSpatial, SpatialEval-Real, ERQA, MMSI-Bench, ViewSpatial: one JSON format.

    Official metrics: VSI-Bench's and SPAR-Bench's tables, of the others the accuracy of every category. Numbers of
    problem type `numerical` are right where they agree to two decimals, of `regression` by mean relative accuracy.
    Answers are read as the paper's evaluation reads them; `scoring: strict` reads them as reinforcement does.
    """

    name: ClassVar[str] = "vilavt_benchmark"
    id_key: ClassVar[str] = "question_id"
    known_fields: ClassVar[tuple[str, ...]] = (
        *("question_id", "question", "answer", *ORIGINAL_KEYS, "options", "max_pixels"),
        *_FORMAT.tag_keys,
    )
    trains: ClassVar[bool] = False
    config: VilavtBenchmarkConfig

    @classmethod
    def tiny(cls) -> VilavtBenchmarkConfig:
        """Return settings of made-up files in a temporary folder."""
        folder = tiny_questions()
        return VilavtBenchmarkConfig(files=f"{folder}/benchmark.json", train_files=f"{folder}/benchmark_train.json")

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """Return True if a row is a question with a problem type."""
        return "question" in row and "problem_type" in row and "question_type" not in row

    def read_sample(self, fields: Fields, training: bool) -> Sample:
        """Read the sample of a row; adds what is wrong with it to `fields.problems`."""
        return read_question(fields, replace(_FORMAT, score=self.score))

    def score(self, sample: Sample, answer: str | None) -> float:
        """Return the score of an answer by the problem's type; 0 if it cannot be read."""
        if self.config.scoring == "official":
            return score_official(sample, answer)
        # The benchmarks round numbers to two decimals, which `score_answer`, exact, does not.
        if sample.tags.get("answer_kind") == "number" and answer is not None:
            truth, found = read_number(sample.answer), read_number(answer)
            if truth is not None and found is not None and round(float(truth[0]), 2) == round(float(found[0]), 2):
                return 1.0
        return score_answer(sample, answer)

    def score_turn(self, sample: Sample, text: str, answer: str | None) -> float:
        """Return the score of the last turn: officially of its first answer, even if the turn is malformed."""
        return score_official(sample, text) if self.config.scoring == "official" else self.score(sample, answer)

    def metrics(self, samples: Sequence[Sample], scores: Sequence[float]) -> Mapping[str, Sequence[float]]:
        """Return the rows of the benchmark's table, from name to scores."""
        types = [str(sample.tags.get("original_question_type", "")) for sample in samples]
        name = detect_table(types) if self.config.table == "auto" else self.config.table
        if name in TABLES:
            return TABLES[name](types, scores, self.config.rel_direction == "pooled")
        return score_by_category([_category_of(sample) for sample in samples], scores)

    def _split_source(self, split: str) -> tuple[str, bool]:
        # A benchmark is asked, not learned from: its `files` are split test.
        if split == "test":
            return "files", False
        return ("train_files", True) if split == "train" else super()._split_source(split)


def _category_of(sample: Sample) -> str:
    for key in ("category", "original_question_type", "task", "problem_type"):
        if sample.tags.get(key) not in (None, ""):
            return str(sample.tags[key])
    return ""
