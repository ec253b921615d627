"""The base of tasks whose samples are generated from a seed: splits, how a sample is asked, and its trace."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from vilavt_components.tasks.exact_text import score_exact_text
from vilavt_toolkit.contracts import Box, Sample, Task, TraceTurn
from vilavt_toolkit.errors import UsageError

SPLITS = ("train", "val", "test")
_CORPUS_ITEMS = 2000
"""Training samples whose texts make the corpus: enough to contain every word."""

Mode = Literal["tool", "needless", "forced", "blind"]
"""The way a training sample is asked: with the tool, with a zoom without need, without the tool, with nothing shown."""


def check_mode_shares(forced: float, blind: float) -> None:
    """Refuse shares of forced and blind samples that exceed 1 together; raises ValueError."""
    if forced + blind > 1:
        raise ValueError(f"forced {forced} and blind {blind} together exceed 1. Lower one.")


class GeneratedTask(Task):
    """A task that draws every sample from (seed, split, index), so that any sample is made without the others.

    A subclass sets `name` and `config` and draws its questions; order and number of its random draws decide every
    sample's bytes, and with them the numbers that published recipes reach.
    """

    name: ClassVar[str]
    """The name it is registered under."""
    config: Any
    """Its settings: `seed`, `forced`, `blind`, and the numbers of samples `train_items`, `val_items`, `test_items`."""

    def length(self, split: str) -> int:
        """Return the number of samples of a split; raises UsageError for an unknown one."""
        if split not in SPLITS:
            raise UsageError(f"task '{self.name}' has no split '{split}'. Choose one of {', '.join(SPLITS)}.")
        return int(getattr(self.config, f"{split}_items"))

    def corpus(self) -> Iterator[str]:
        """Yield the texts of the first training samples; nothing is rendered for them."""
        for index in range(min(self.length("train"), _CORPUS_ITEMS)):
            question, trace = self.question_and_trace(index)
            yield question
            for turn in trace:
                yield from turn.texts()

    def score(self, sample: Sample, answer: str | None) -> float:
        """Return 1 if the answer is right but for case and outer spaces, else 0."""
        return score_exact_text(sample.answer, answer)

    @abstractmethod
    def question_and_trace(self, index: int) -> tuple[str, Sequence[TraceTurn]]:
        """Return the texts of a training sample for `corpus`, without its images or points."""

    def seed_of(self, split: str, index: int) -> list[int]:
        """Return the seed of a sample's random generator; raises IndexError beyond the split's end."""
        if not 0 <= index < self.length(split):
            raise IndexError(
                f"split '{split}' of '{self.name}' has {self.length(split)} samples, not one at index {index}."
            )
        # NumPy mixes all three numbers, so samples of neighbouring indices or seeds are independent.
        return [self.config.seed, SPLITS.index(split), index]

    def draw_mode(self, rng: np.random.Generator, split: str) -> Mode:
        """Draw how a sample is asked: with the tool outside of `train`, else by the shares of the settings."""
        # Drawn in every split: what is drawn after it must not depend on the split's shares.
        drawn = rng.random()
        if split != "train" or drawn >= self.config.forced + self.config.blind:
            return "tool"
        return "blind" if drawn < self.config.blind else "forced"


def build_trace(
    mode: Mode,
    answer: str,
    thought: str,
    inquiry: str = "",
    boxes: Sequence[tuple[int, Box]] = (),
    zoom_thought: str = "",
    *,
    blind_thought: str,
    demanded: bool = False,
) -> tuple[TraceTurn, ...]:
    """Build the turns that lead to an answer: at once, or after one zoom into `boxes`, (image, box) pairs.

    `demanded` marks a zoom whose observation demands the answer.
    """
    if mode == "blind":
        return (TraceTurn(blind_thought, answer=answer),)
    # Without the tool the thought about the overview stays: the model learns to guess from what it can see.
    if mode == "forced" or not boxes:
        return (TraceTurn(thought, answer=answer),)
    return (
        TraceTurn(thought, inquiry=inquiry, boxes=tuple(boxes), demanded=demanded),
        TraceTurn(zoom_thought, answer=answer),
    )
