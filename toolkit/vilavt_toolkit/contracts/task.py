"""Tasks: data sets and benchmarks, their samples and their official score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vilavt_toolkit.contracts.component import Box, Component


@dataclass(frozen=True)
class GivenTurn:
    """A turn of a reasoning trace; `boxes` are in the coordinates of their sources."""

    thought: str
    inquiry: str = ""
    boxes: tuple[tuple[int, Box], ...] = ()
    """(index of the region zoomed into, box) pairs; empty in the turn that answers."""
    answer: str | None = None
    demanded: bool = False
    """Of a turn that zooms: whether the answer is demanded with what it shows."""


@dataclass(frozen=True)
class Message:
    """A message of a dialogue that is given word by word."""

    role: Literal["system", "user", "assistant"]
    content: tuple[str | int, ...]
    """Text, and the numbers of the originals whose views stand between."""
    learned: bool = True
    """Of the assistant's: whether it is learned from, or only read."""


@dataclass(frozen=True)
class Conversation:
    """A dialogue word by word, every view of it a ready original: crops have been cut, and are shown as they are."""

    messages: tuple[Message, ...]
    inquiries: tuple[str, ...] = ()
    """What each group of originals is encoded under; empty texts for none."""
    groups: tuple[int, ...] = ()
    """The inquiry of every original, by its number; none given: each is encoded alone, under none."""


@dataclass(frozen=True)
class Sample:
    """A question about sources, with its answer and, for supervised training, a trace."""

    id: str
    question: str
    answer: str
    originals: tuple[Any, ...]
    """What `Source.open` takes: paths, or data in memory."""
    trace: tuple[GivenTurn, ...] = ()
    tool: bool = True
    """False: the opening demands the answer at once."""
    tags: Mapping[str, Any] = field(default_factory=dict)
    """What evaluation groups by: `needs_zoom`, `family`, `several` (the crop holds several readable things), and
    `group`: items that share it (an image, a sentence) are no independent evidence, and intervals keep them together.
    """
    conversation: Conversation | None = None
    """In place of a trace, what is learned from, word by word."""
    max_pixels: int | None = None
    """Most pixels of each of its views, beside the encoder's own budget; None: that alone."""
    max_turns: int | None = None
    """Turns without an answer after which it is demanded, beside what stopping policies say; None: that alone."""


class Task(Component, ABC):
    """A data set or benchmark with its metric. `__init__(config)`."""

    @abstractmethod
    def length(self, split: str) -> int:
        """Number of samples of a split; raises UsageError for an unknown one."""

    @abstractmethod
    def sample(self, split: str, index: int) -> Sample:
        """The sample at `index`; a pure function of settings, split and index."""

    @abstractmethod
    def corpus(self) -> Iterator[str]:
        """Texts a tokenizer can be trained on: questions, thoughts, inquiries and answers."""

    @abstractmethod
    def score(self, sample: Sample, answer: str | None) -> float:
        """The official score of an answer in [0, 1]; a missing answer scores 0."""

    def metrics(self, samples: Sequence[Sample], scores: Sequence[float]) -> Mapping[str, Sequence[float]]:
        """Official metrics over groups of items: name -> a score in [0, 1] of every group, whose mean the metric is.

        `samples`, without originals and trace, are all that were asked, each with its score. The mean score is no
        metric of its own. Groups are independent of each other; where none was asked whole, its list is empty.
        """
        return {}
