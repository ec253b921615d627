"""Task `vilavt_benchmark`: the paper's eight benchmarks, in the one format that they were brought into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from vilavt_components.common.answers.reading import read_number
from vilavt_components.common.answers.scoring import BENCHMARK_KINDS, Kind, score_answer
from vilavt_components.tasks.files.benchmark_tables import TABLES, by_category, table_of
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
from vilavt_toolkit.settings import setting

_KINDS: Mapping[str, Kind] = {**BENCHMARK_KINDS, "free-form": "text"}
_TAGS = ("problem_type", "original_question_type", "category", "cycle_category", "task", "data_type", "dataset")


@dataclass(frozen=True, kw_only=True)
class VilavtBenchmarkConfig(FilesConfig):
    """Settings of task `vilavt_benchmark`; `files` are the benchmark, and split test."""

    train_files: list[str] | str = setting(help="files of split train, which a benchmark has none of", factory=list)
    table: Literal["auto", "vsibench", "sparbench", "category"] = setting(
        "auto", help="how scores are put together; auto: as the question types say, else one number a category"
    )
    rel_direction: Literal["mean", "pooled"] = setting(
        "mean",
        help="vsibench: relative directions as the mean of easy, medium and hard, as published; pooled: over all, as "
        "the paper's scorer does",
    )


@tasks.register("vilavt_benchmark", VilavtBenchmarkConfig)
class VilavtBenchmark(FileTask):
    """VSI-Bench, SPAR-Bench, HRBench, EmbSpatial, SpatialEval-Real, ERQA, MMSI-Bench, ViewSpatial: one JSON format.

    Official metrics: VSI-Bench's and SPAR-Bench's tables, of the others the accuracy of every category. Numbers of
    problem type `numerical` are right where they agree to two decimals, of `regression` by mean relative accuracy.
    """

    name: ClassVar[str] = "vilavt_benchmark"
    id_key: ClassVar[str] = "question_id"
    trains: ClassVar[bool] = False
    config: VilavtBenchmarkConfig

    @classmethod
    def tiny(cls) -> VilavtBenchmarkConfig:
        """Return settings of made-up files in a temporary folder."""
        folder = tiny_questions()
        return VilavtBenchmarkConfig(files=f"{folder}/benchmark.json", train_files=f"{folder}/benchmark_train.json")

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """Whether a row is a question with a problem type or a question's id."""
        other = "image_path" in row or "question_type" in row
        return "question" in row and not other and ("problem_type" in row or "question_id" in row)

    def read(self, fields: Fields, training: bool) -> Sample:
        """The sample of a row; complains of what is wrong with it."""
        question, answer, options = fields.text("question"), fields.plain("answer"), read_options(fields)
        originals = named("images", fields.texts("images"), isinstance(fields.row.get("images"), list))
        count_tags(fields, "question", question, len(originals))
        tags = {
            **tags_of(fields.row, _TAGS),
            "answer_kind": read_kind(fields, "problem_type", _KINDS),
            "options": choices(options, question, answer),
        }
        if originals:
            tags["group"] = originals[0].name
        sample = Sample(
            id=fields.name("question_id"),
            question=with_options(without_tags(question), options),
            answer=answer,
            originals=originals,
            tags=tags,
            max_pixels=fields.whole("max_pixels", 1),
        )
        check_answer(fields, "answer", sample)
        return sample

    def score(self, sample: Sample, answer: str | None) -> float:
        """By the problem's type; one that cannot be read scores 0."""
        if sample.tags.get("answer_kind") == "number" and answer is not None:
            truth, found = read_number(sample.answer), read_number(answer)
            if truth is not None and found is not None and round(float(truth[0]), 2) == round(float(found[0]), 2):
                return 1.0
        return score_answer(sample, answer)

    def metrics(self, samples: Sequence[Sample], scores: Sequence[float]) -> Mapping[str, Sequence[float]]:
        """The benchmark's table, name by name."""
        types = [str(sample.tags.get("original_question_type", "")) for sample in samples]
        name = table_of(types) if self.config.table == "auto" else self.config.table
        if name in TABLES:
            return TABLES[name](types, scores, self.config.rel_direction == "pooled")
        return by_category([_category(sample) for sample in samples], scores)

    def _source(self, split: str) -> tuple[str, bool]:
        if split == "test":
            return "files", False
        return ("train_files", True) if split == "train" else super()._source(split)


def _category(sample: Sample) -> str:
    for key in ("category", "original_question_type", "task", "problem_type"):
        if sample.tags.get(key) not in (None, ""):
            return str(sample.tags[key])
    return ""
