"""Lengths of samples for a recipe's model: tokens by its tokenizer, patches by its encoder, without any weights."""

from __future__ import annotations

import logging
import sys
import warnings
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from vilavt_toolkit.contracts import Region, Sample, Source, Task, View
from vilavt_toolkit.data.fields import BadRow
from vilavt_toolkit.data.file_task import MOST_LISTED, FileTask
from vilavt_toolkit.data.originals import Inspector
from vilavt_toolkit.data.splits import has_split
from vilavt_toolkit.dialogue.traces import TraceSession
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.models.assemble import assemble_model
from vilavt_toolkit.utils.progress import track_progress

if TYPE_CHECKING:
    from vilavt_toolkit.config.recipe import CheckedRecipe
    from vilavt_toolkit.data.row_budget import RowBudget
    from vilavt_toolkit.models.model import VisualChatModel


log = logging.getLogger(__name__)


@dataclass
class Lengths:
    """Lengths of the samples that the model can take, one number for each, and why it cannot take the others."""

    context: int
    """Tokens that the language model takes."""
    numbers: array[int] = field(default_factory=lambda: array("q"))
    """Index of each sample in its split."""
    tokens: array[int] = field(default_factory=lambda: array("q"))
    features: array[int] = field(default_factory=lambda: array("q"))
    """Those of the tokens that are features of views."""
    patches: array[int] = field(default_factory=lambda: array("q"))
    """Tokens of the encoder."""
    smaller: int = 0
    """Images that the pixel budget makes smaller."""
    refused: list[tuple[int, str]] = field(default_factory=list)
    """Pairs (index of the sample, why the model cannot take it)."""
    unreadable: int = 0
    """Conversations whose last reply holds no answer in the dialogue's form."""
    framing: int = 0
    """Samples whose texts hold the name of a token that frames turns, such as <|im_end|>."""

    def list_too_long(self) -> list[tuple[int, int, int]]:
        """Return (index, tokens, features among them) of the samples that are longer than the context."""
        triples = zip(self.numbers, self.tokens, self.features, strict=True)
        return [triple for triple in triples if triple[1] > self.context]

    def list_problems(self) -> list[tuple[int, str]]:
        """Return pairs (index, reason) of the samples that cannot be learned from."""
        problems = list(self.refused)
        for number, length, features in self.list_too_long():
            reason = (
                f"{length:,} tokens, {features:,} of them features, are more than the context of {self.context:,}. "
                "Shorten the sample, show fewer or smaller images, remove it, or set train.long_samples=cut."
            )
            problems.append((number, reason))
        return problems


class _EndlessContext:
    """The language model with an endless context: a session refuses what does not fit, and then has no length."""

    context_length = sys.maxsize

    def __init__(self, language_model: Any) -> None:
        self._language_model = language_model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._language_model, name)


class _NamedSource:
    """A source under the name of the file that it stands for, which errors tell."""

    def __init__(self, source: Source, name: str) -> None:
        self._source, self.name = source, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


class _SizeOnlyModel:
    """A stand-in for the model in sessions that only count tokens. All but two things go to the model itself.

    Why a stand-in: lengths must come out as in training, so they are counted by the session that training uses. But
    that session refuses what is too long, and prepares the pixels of every image, which would take hours for a large
    data set. Tokens depend on sizes alone, so here views of equal size are one.
    """

    def __init__(self, model: VisualChatModel) -> None:
        self._model = model
        self.language_model = _EndlessContext(model.language_model)
        self._views: dict[tuple[Any, ...], View] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def prepare(self, region: Region) -> View:
        """Return a view of the region's size; its pixels may be those of another image."""
        key = (region.source.extent, region.box, region.overview, region.shown, region.max_pixels)
        if key not in self._views:
            self._views[key] = self._model.prepare(region)
        return self._views[key]


def build_meta_model(recipe: CheckedRecipe) -> VisualChatModel:
    """Build a recipe's model with its tokenizer, its weights on the meta device: enough to count lengths."""
    section, task = recipe.recipe.model, recipe.recipe.task
    with torch.device("meta"):
        model = assemble_model(section, recipe.where)
    fixed = model.dialogue.fixed_strings(section.source.entry.cls.box_key)
    # A tokenizer that is trained on the corpus cuts texts as it will in the run.
    model.language_model.fit_tokenizer(task.build().corpus(), fixed)
    return model


def check_lengths(
    model: VisualChatModel, task: Task, split: str, traces: bool = True, budget: RowBudget | None = None
) -> None:
    """Raise InputError with the samples of a split of data files that the model cannot take; other tasks pass.

    With `traces`, the traces of samples count too. `budget` is that of the rows which samples share, if they do.
    """
    for each in task.parts():
        # A part of a mixture may lack a split that the others have.
        if each is not task and has_split(each, split):
            check_lengths(model, each, split, traces, budget)
    # Other tasks make their samples themselves: there is no file that a user could correct.
    if not isinstance(task, FileTask):
        return
    meter, size = LengthMeter(model, traces, budget), task.length(split)
    for number in track_progress(range(size), size, "measuring samples"):
        meter.measure(number, task.sample(split, number))
    problems = meter.lengths.list_problems()
    if traces and 2 * meter.lengths.unreadable > size:
        log.warning(
            "%s of %s samples have replies without an answer in the dialogue's form, and an evaluation will read none. "
            "If they are plain answers, set task.replies=answer.", f"{meter.lengths.unreadable:,}", f"{size:,}",
        )  # fmt: skip
    if meter.lengths.framing:
        log.warning(
            "%s of %s samples hold names of tokens that frame turns, such as <|im_end|>. They are read as plain text.",
            f"{meter.lengths.framing:,}", f"{size:,}",
        )  # fmt: skip
    if problems:
        lines = [f"{task.locate_sample(split, number)}: {why}" for number, why in problems[:MOST_LISTED]]
        more = f"\n  and {len(problems) - MOST_LISTED:,} more" if len(problems) > MOST_LISTED else ""
        raise InputError(
            f"{len(problems):,} of {size:,} samples cannot be learned from:\n  " + "\n  ".join(lines) + more
        )


class LengthMeter:
    """Measures samples as the model would take them; `lengths` grows with every sample."""

    def __init__(self, model: VisualChatModel, traces: bool = True, budget: RowBudget | None = None) -> None:
        self.model = model
        self.budget = budget
        """Budget of the rows which samples share, if they do: one that is larger may be refused or cut."""
        self.traces = traces
        """True if the traces of samples are learned from and so count, False if only questions are asked."""
        self.lengths = Lengths(model.language_model.context_length)
        self._size_only = cast("VisualChatModel", _SizeOnlyModel(model))
        self._inspector = Inspector()

    def measure(self, number: int, sample: Sample) -> None:
        """Measure a sample, or note why the model cannot take it."""
        try:
            with warnings.catch_warnings():
                # Black images of one byte cannot be written to, and nothing does.
                warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
                session = self.build_session(sample)
            trajectory, views = session.trajectory, session.views
            # Where samples are not cut, one that is longer than the context is refused for that.
            cuts = self.budget is not None and self.budget.context is not None
            if self.budget is not None and (cuts or len(trajectory.ids) <= self.lengths.context):
                trajectory, views = self.budget.fit(trajectory, views)
        except InputError as error:
            self.lengths.refused.append((number, str(error)))
            return
        # Answers that the dialogue cannot read are right in training, and count as none in an evaluation.
        is_conversation = sample.conversation is not None
        self.lengths.unreadable += is_conversation and session.trajectory.turns[-1].answer is None
        self.lengths.framing += any(session.protect(text) != text for text in sample.texts())
        encoder = self.model.vision.backbone
        self.lengths.numbers.append(number)
        self.lengths.tokens.append(len(trajectory.ids))
        self.lengths.features.append(sum(region.count for region in trajectory.regions))
        self.lengths.patches.append(sum(encoder.token_count(view.size) for view in views))
        for view, region in zip(views, trajectory.regions, strict=True):
            extent, whole = encoder.extent(view), session.sources[region.source].extent
            # Only images have sizes to compare: two numbers of a view, four of a source. Sizes are rounded to whole
            # patches, so a tenth less is no budget at work.
            if len(extent) == 2 and len(whole) == 4:
                self.lengths.smaller += extent[0] * extent[1] < 0.9 * whole[2] * whole[3]

    def build_session(self, sample: Sample) -> TraceSession:
        """Return the session of a sample as in training, its views right but for their pixels; raises InputError."""
        sources = [self._open_source(original) for original in sample.originals]
        session = TraceSession(self._size_only, sources, sample.max_pixels, sample.max_turns)
        if sample.conversation is not None:
            session.write_conversation(sample.conversation)
        elif sample.trace and self.traces:
            session.ask_for_trace(sample)
        else:
            session.ask(sample.question, sample.tool)
        return session

    def _open_source(self, original: Any) -> Source:
        """Open an original; an image whose header gives its size is not decoded."""
        try:
            size = self._inspector.inspect(original, video=False)
        except BadRow:
            size = None
        if size is None or self.model.vision.backbone.spec.modality != "image":
            return self.model.open_source(original)
        width, height = size
        try:
            # One byte, seen as a black image of any size: nothing is allocated.
            source = self.model.open_source(np.broadcast_to(np.uint8(0), (height, width, 3)))
        except InputError:
            return self.model.open_source(original)  # whose error names the file, and decodes no more
        return cast("Source", _NamedSource(source, str(original)))
