"""Tasks: data sets and benchmarks, with their samples and their official score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vilavt_toolkit.contracts.component import Box, Component


@dataclass(frozen=True)
class TraceTurn:
    """Holds a turn of a worked example; `boxes` are in the coordinates of their sources."""

    thought: str
    inquiry: str = ""
    boxes: tuple[tuple[int, Box], ...] = ()
    """Pairs (index of the region that is zoomed into, box); empty in the turn that answers."""
    answer: str | None = None
    demanded: bool = False
    """True if the regions of a turn that zooms are shown together with the demand for the answer.

    In a first turn that answers: True if the question demanded the answer at once, whatever `Sample.tool` says.
    """
    question: str = ""
    """A further question of the user, asked before this turn and after an answer; empty: there is none here."""

    def texts(self) -> Iterator[str]:
        """Yield its texts, without empty ones."""
        yield from (text for text in (self.question, self.thought, self.inquiry, self.answer) if text)


@dataclass(frozen=True)
class Message:
    """Holds a message of a conversation that is given word by word."""

    role: Literal["system", "user", "assistant"]
    content: tuple[str | int, ...]
    """Texts, and between them the numbers of the originals whose views stand there."""
    learned: bool = True
    """True if a message of the assistant counts in the loss, False if it is only read."""


@dataclass(frozen=True)
class Conversation:
    """Holds a dialogue word by word. Every view of it is an original of its own: the crops have been cut already."""

    messages: tuple[Message, ...]
    inquiries: tuple[str, ...] = ()
    """Inquiry of each group of originals, empty for none."""
    groups: tuple[int, ...] = ()
    """Index of the inquiry of every original. Empty: each original is encoded alone, without an inquiry."""
    led: bool = False
    """True if it is not word by word: the dialogue asks the user's questions, and writes the replies as its answers."""


@dataclass(frozen=True)
class Sample:
    """Holds a question about sources, its answer and, for supervised training, a trace."""

    id: str
    question: str
    answer: str
    originals: tuple[Any, ...]
    """Originals as `Source.open` takes them: paths, or data in memory."""
    trace: tuple[TraceTurn, ...] = ()
    tool: bool = True
    """True if the model may call the tool; False if the first user turn demands the answer."""
    tags: Mapping[str, Any] = field(default_factory=dict)
    """Facts by which an evaluation groups items: `needs_zoom`, `family`, `several` (the crop holds several readable
    things) and `group`. Items that share a `group` (an image, a sentence) are not independent, so confidence intervals
    resample whole groups.
    """
    conversation: Conversation | None = None
    """A conversation to learn from word by word, in place of a trace."""
    max_pixels: int | None = None
    """Most pixels of each of its views, in addition to the encoder's own budget; None: the encoder's budget alone."""
    max_turns: int | None = None
    """Turns without an answer after which it is demanded, in addition to the stopping policies; None: they alone."""

    def texts(self) -> Iterator[str]:
        """Yield the sample's texts: those of its conversation, or its question, its trace, and its answer."""
        if self.conversation is None:
            yield self.question
            yield from (text for turn in self.trace for text in turn.texts())
            if not any(turn.answer for turn in self.trace):
                yield self.answer
            return
        for message in self.conversation.messages:
            yield from (part for part in message.content if isinstance(part, str))


class Task(Component, ABC):
    """A data set or benchmark with its metric. `__init__(config)`."""

    @abstractmethod
    def length(self, split: str) -> int:
        """Return the number of samples of a split; raises UsageError for an unknown one."""

    # Pure, so that data workers, a resumed run and an evaluation all see the same sample at an index.
    @abstractmethod
    def sample(self, split: str, index: int) -> Sample:
        """Return the sample at `index`; a pure function of config, split and index."""

    def training_sample(self, split: str, index: int) -> Sample:
        """Return the sample at `index` as it is learned from, with its trace, also of a split that is asked elsewhere.

        A validation computes its loss on these. By default that of `sample`.
        """
        return self.sample(split, index)

    def parts(self) -> Sequence[Task]:
        """Return the tasks that it is mixed from; by default itself."""
        return (self,)

    def datasets(self) -> Sequence[str]:
        """Return the names of the data sets that it is mixed from, by which losses are logged; by default none."""
        return ()

    def dataset_of(self, split: str, index: int) -> int:
        """Return the place among `datasets` of that of the sample at `index`."""
        return 0

    @abstractmethod
    def corpus(self) -> Iterator[str]:
        """Return texts to train a tokenizer on: questions, thoughts, inquiries and answers."""

    def fingerprint(self, split: str) -> str:
        """Return a text that changes with the samples of a split; empty if its settings alone decide them.

        A run that is resumed compares it. A task that reads files returns their hashes.
        """
        return ""

    @abstractmethod
    def score(self, sample: Sample, answer: str | None) -> float:
        """Return the official score of an answer, in [0, 1]; a missing answer scores 0."""

    def score_turn(self, sample: Sample, text: str, answer: str | None) -> float:
        """Return the score of the last turn, from what the model wrote in it. By default that of `answer`.

        `answer` is what the dialogue read in `text`: None if the turn is malformed or does not answer. A benchmark
        whose own scorer reads texts differently does so here.
        """
        return self.score(sample, answer)

    def metrics(self, samples: Sequence[Sample], scores: Sequence[float]) -> Mapping[str, Sequence[float]]:
        """Return official metrics over groups of items, besides the mean score: name -> one score in [0, 1] per group.

        The metric is the mean over its groups, which are independent of each other. `samples` are all samples that
        were asked, without originals and trace, each with its score. A list is empty if no group was asked whole.
        """
        return {}
