"""The task 'my_part': a small square of fine lines, and the question which way they run.

Use it in a recipe that stands beside this file:

    plugins: [./my_part.py]
    task: {name: my_part, train_items: 2000}
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vilavt_toolkit.contracts import Sample, Task, TraceTurn
from vilavt_toolkit.errors import UsageError
from vilavt_toolkit.registry import setting, tasks

_QUESTION = "which way do the lines run?"
_ANSWERS = ("horizontal", "vertical")
_GUESS, _THOUGHT, _INQUIRY = "a guess", "the square is too small", "lines of the square"
_SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class MyPartConfig:
    """The keys that a recipe may set, each with its type, default and help."""

    seed: int = setting(0, help="seed of all samples", minimum=0)
    size: int = setting(128, help="side of a picture in pixels", minimum=8)
    forced: float = setting(0.1, help="share of training samples without the tool", minimum=0, maximum=0.5)
    blind: float = setting(0.1, help="share of training samples without an image", minimum=0, maximum=0.5)
    train_items: int = setting(2000, help="training samples", minimum=1)
    test_items: int = setting(200, help="samples of val, and of test", minimum=1)


@tasks.register("my_part", MyPartConfig)
class MyPart(Task):
    """Say which way the lines of a small square run."""

    def __init__(self, config: MyPartConfig) -> None:
        self.config = config

    def length(self, split: str) -> int:
        """Return the number of samples of a split; raises UsageError for an unknown one."""
        if split not in _SPLITS:
            raise UsageError(f"task 'my_part' has no split '{split}'. Write one of: {', '.join(_SPLITS)}.")
        return self.config.train_items if split == "train" else self.config.test_items

    def sample(self, split: str, index: int) -> Sample:
        """Return the sample at `index`: a picture, the question, the answer and a trace to learn from."""
        # The same bytes for the same settings, split and index: workers and resumed runs draw samples in any order.
        rng = np.random.default_rng([self.config.seed, _SPLITS.index(split), index])
        size, side = self.config.size, self.config.size // 4
        x, y = rng.integers(size - side, size=2).tolist()
        answer = str(rng.choice(_ANSWERS))
        picture = np.full((size, size, 3), 64, np.uint8)
        lines = picture[y : y + side, x : x + side]
        lines[:] = 0
        (lines if answer == "horizontal" else lines.swapaxes(0, 1))[::2] = 255
        # The arms `single_pass` and `blind` ask without the tool and without an image: a model must have learned to
        # answer then. So a share of the training samples has no tool (`Sample.tool`), and another no image either.
        drawn = rng.random() if split == "train" else 1.0
        blind, tool = drawn < self.config.blind, drawn >= self.config.blind + self.config.forced
        # A turn zooms (inquiry and boxes) or answers, and the last one answers. A box is a pair:
        # (index of a region already shown, box in pixels of the original).
        zoom = TraceTurn(_THOUGHT, inquiry=_INQUIRY, boxes=((0, (x, y, x + side, y + side)),))
        trace = (zoom, TraceTurn(f"{answer} lines", answer=answer)) if tool else (TraceTurn(_GUESS, answer=answer),)
        # `needs_zoom` sorts the items into columns of an evaluation; items of one image share a value of `group`.
        tags = {"needs_zoom": True}
        originals = () if blind else (picture,)
        return Sample(f"my_part/{split}/{index}", _QUESTION, answer, originals, trace, tool, tags)

    def corpus(self) -> Iterator[str]:
        """Yield the texts that a tokenizer is trained on: questions, thoughts, inquiries and answers."""
        # All words of the traces must be among them. A tokenizer trained without a word splits it into single bytes.
        yield from (_QUESTION, _GUESS, _THOUGHT, _INQUIRY)
        yield from (text for answer in _ANSWERS for text in (f"{answer} lines", answer))

    def score(self, sample: Sample, answer: str | None) -> float:
        """Return the official score of an answer in [0, 1]; a missing answer scores 0."""
        return float(answer is not None and answer.strip().lower() == sample.answer)

    @classmethod
    def tiny(cls) -> MyPartConfig:
        """Return the settings of a small instance, which the contract tests build."""
        return MyPartConfig(size=16, train_items=16, test_items=4)
