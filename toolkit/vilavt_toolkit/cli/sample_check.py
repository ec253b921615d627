"""The part of `vilavt check` that builds samples of the task, as training, reinforcement and evaluation would."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass

from vilavt_toolkit.config.schema import Recipe
from vilavt_toolkit.contracts import Sample, Task
from vilavt_toolkit.data.file_task import FileTask
from vilavt_toolkit.data.lengths import LengthMeter
from vilavt_toolkit.data.row_budget import RowBudget, build_sample_budget
from vilavt_toolkit.dialogue.session import Session, session_for
from vilavt_toolkit.dialogue.traces import build_trace_session
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.models.assemble import ErrorCollector
from vilavt_toolkit.models.model import VisualChatModel

_MEASURED = 16
"""Samples of a split that are measured, spread evenly over it."""


@dataclass(frozen=True)
class SampleReport:
    """The longest of some samples of a split, as the model reads it."""

    split: str
    name: str
    views: dict[tuple[int, int], int]
    """Number of its views by (tokens of the encoder, features for the language model)."""
    tokens: int
    """Tokens that the language model reads, features included."""
    features: int
    measured: int
    """Number of samples that it is the longest of."""


def check_samples(
    collect: ErrorCollector, sections: Recipe, model: VisualChatModel, task: Task, splits: dict[str, str]
) -> list[SampleReport]:
    """Build a sample of every split, given with the key that names it, and measure some more; collect what fails."""
    fixed = model.dialogue.fixed_strings(sections.model.source.entry.cls.box_key)
    # A tokenizer that is trained on the corpus cuts texts as it will in the run.
    if not collect.check_fits("model.language_model", lambda: model.language_model.fit_tokenizer(task.corpus(), fixed)):
        return []
    found = []
    for split, key in splits.items():
        # Reinforcement and evaluation ask questions. The first stage learns from traces, if the recipe is for it.
        learns = split == "train" and not (isinstance(task, FileTask) and not task.trains)
        asks = sections.rl is not None
        budget = build_sample_budget(sections.train, model) if split == "train" else None
        report = collect.try_build(key, functools.partial(_check_split, model, task, split, learns, asks, budget))
        if report is not None:
            found.append(report)
    return found


def _check_split(
    model: VisualChatModel, task: Task, split: str, learns: bool, asks: bool, budget: RowBudget | None
) -> SampleReport:
    """Return a report of the longest of some samples; raises InputError for one that the model cannot take."""
    size = task.length(split)
    numbers = sorted({index * size // _MEASURED for index in range(_MEASURED)})
    # A recipe of both stages may have data for the second one only.
    learns = learns and (_has_trace(task.sample(split, numbers[0])) or not asks)
    meter = LengthMeter(model, traces=learns, budget=budget if learns else None)
    for number in numbers:
        meter.measure(number, task.sample(split, number))
    if problems := meter.lengths.list_problems():
        number, why = problems[0]
        more = f" ({len(problems)} of {len(numbers)} samples are like this)" if len(problems) > 1 else ""
        raise InputError(f"{_name_sample(task, split, number)}: {why}{more}")
    # Sizes are measured without pixels. One sample is built with them, as the stage will.
    longest, number = max(zip(meter.lengths.tokens, meter.lengths.numbers, strict=True))
    sample = task.sample(split, number)
    cuts = budget is not None and budget.context is not None
    session = _build_session(model, sample, learns, has_context=not cuts)
    views = Counter(
        (model.vision.backbone.token_count(view.size), model.feature_count(view.size)) for view in session.views
    )
    features = sum(region.count for region in session.trajectory.regions)
    return SampleReport(split, sample.id, dict(views), longest, features, len(numbers))


def _build_session(model: VisualChatModel, sample: Sample, learns: bool, has_context: bool) -> Session:
    """Return the session of a sample with its originals opened and its views cut. Raises InputError naming it."""
    if learns:
        return build_trace_session(model, sample, has_context)
    try:
        session = session_for(model, sample)
        session.ask(sample.question, sample.tool)
    except InputError as error:
        raise InputError(f"sample {sample.id}: {error}") from None
    return session


def _has_trace(sample: Sample) -> bool:
    return bool(sample.trace) or sample.conversation is not None


def _name_sample(task: Task, split: str, number: int) -> str:
    if isinstance(task, FileTask):
        return task.locate_sample(split, number)
    return f"sample {task.sample(split, number).id}"
