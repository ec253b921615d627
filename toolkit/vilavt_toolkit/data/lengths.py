"""How long samples are for a recipe's model: tokens by its tokenizer, patches by its encoder, no weight loaded."""

from __future__ import annotations

import sys
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from vilavt_toolkit.contracts import Region, Sample, Source, Task, View
from vilavt_toolkit.data.fields import BadRow
from vilavt_toolkit.data.originals import Inspector
from vilavt_toolkit.dialogue.traces import GivenSession
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.models.assemble import assemble
from vilavt_toolkit.utils.progress import track

if TYPE_CHECKING:
    from vilavt_toolkit.config.recipe import CheckedRecipe
    from vilavt_toolkit.models.model import VisualChatModel


_TOLD = 20
"""Problems that are told one by one."""


@dataclass
class Lengths:
    """How long samples are, one number each of those that the model can take."""

    context: int
    """Tokens that the language model takes."""
    numbers: array[int] = field(default_factory=lambda: array("q"))
    """Which samples."""
    tokens: array[int] = field(default_factory=lambda: array("q"))
    patches: array[int] = field(default_factory=lambda: array("q"))
    """Tokens of the encoder."""
    smaller: int = 0
    """Images that the pixel budget makes smaller."""
    refused: list[tuple[int, str]] = field(default_factory=list)
    """(number of the sample, why the model cannot take it)"""

    def too_long(self) -> list[tuple[int, int]]:
        """The samples that the context does not hold, each with its tokens."""
        return [pair for pair in zip(self.numbers, self.tokens, strict=True) if pair[1] > self.context]

    def problems(self) -> list[tuple[int, str]]:
        """What cannot be learned from: (number of the sample, why)."""
        long = [
            (
                number,
                f"{length:,} tokens are more than the context of {self.context:,}; shorten the sample, show fewer or "
                "smaller images, or remove it.",
            )
            for number, length in self.too_long()
        ]
        return [*self.refused, *long]


class _Unbounded:
    """The language model, its context without an end, so that a dialogue that does not fit still has a length."""

    context_length = sys.maxsize

    def __init__(self, language_model: Any) -> None:
        self._own = language_model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)


class _Measured:
    """A model for sessions that are only counted: an image is its size, and each size is made ready once."""

    def __init__(self, model: VisualChatModel) -> None:
        self._own = model
        self.language_model = _Unbounded(model.language_model)
        self._views: dict[tuple[Any, ...], View] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def prepare(self, region: Region) -> View:
        """The view of a region of that size; what it shows is of no account."""
        key = (region.source.extent, region.box, region.overview, region.scale, region.among, region.max_pixels)
        if key not in self._views:
            self._views[key] = self._own.prepare(region)
        return self._views[key]


def weightless_model(recipe: CheckedRecipe) -> VisualChatModel:
    """A recipe's model as far as lengths are concerned: with its tokenizer, and without a weight."""
    section, task = recipe.recipe.model, recipe.recipe.task
    with torch.device("meta"):
        model = assemble(section, str(recipe.path))
    fixed = model.dialogue.fixed_strings(section.source.entry.cls.box_key)
    model.language_model.fit_tokenizer(task.entry.cls(task.config).corpus(), fixed)
    return model


def check_lengths(model: VisualChatModel, task: Task, split: str) -> None:
    """Raise InputError with the samples of a split of data files that the model cannot take; other tasks pass."""
    from vilavt_toolkit.data.file_task import FileTask

    if not isinstance(task, FileTask):
        return
    meter, size = Meter(model), task.length(split)
    for number in track(range(size), size, "measuring samples"):
        meter.add(number, task.sample(split, number))
    if problems := [f"{task.place(split, number)}: {why}" for number, why in meter.lengths.problems()]:
        more = f"\n  and {len(problems) - _TOLD:,} more" if len(problems) > _TOLD else ""
        told = "\n  ".join(problems[:_TOLD])
        raise InputError(f"{len(problems):,} of {size:,} samples cannot be learned from:\n  {told}{more}")


class Meter:
    """Measures samples as a model would take them."""

    def __init__(self, model: VisualChatModel) -> None:
        self.model = model
        self.lengths = Lengths(model.language_model.context_length)
        self._measured = cast("VisualChatModel", _Measured(model))
        self._inspector = Inspector()

    def add(self, number: int, sample: Sample) -> None:
        """Measure a sample; one that the model cannot take is noted with the reason."""
        try:
            session = self._session(sample)
        except InputError as error:
            self.lengths.refused.append((number, str(error)))
            return
        encoder = self.model.encoder.encoder
        self.lengths.numbers.append(number)
        self.lengths.tokens.append(len(session.trajectory.ids))
        self.lengths.patches.append(sum(encoder.tokens(view.size) for view in session.views))
        for view, region in zip(session.views, session.trajectory.regions, strict=True):
            extent, whole = encoder.extent(view), session.sources[region.source].extent
            if len(extent) == 2 and len(whole) == 4:
                self.lengths.smaller += extent[0] * extent[1] < 0.9 * whole[2] * whole[3]

    def _session(self, sample: Sample) -> GivenSession:
        sources = [self._source(original) for original in sample.originals]
        session = GivenSession(self._measured, sources, sample.max_pixels, sample.max_turns)
        if sample.conversation is not None:
            session.replay(sample.conversation)
        else:
            session.open(sample.question, sample.tool)
        return session

    def _source(self, original: Any) -> Source:
        """The original; of an image only its size, where that can be told from the header."""
        try:
            size = self._inspector.look(original, video=False)
        except BadRow:
            size = None
        if size is None or self.model.encoder.encoder.spec.modality != "image":
            return self.model.open_source(original)
        width, height = size
        return self.model.open_source(np.broadcast_to(np.uint8(0), (height, width, 3)))
