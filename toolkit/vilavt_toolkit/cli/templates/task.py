"""The task 'my_part': two grey squares, and the question which is brighter.

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

_QUESTION = "which half is brighter, left or right?"
_SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class MyPartConfig:
    """The keys that a recipe may set, each with its type, default and help."""

    seed: int = setting(0, help="seed of all samples", minimum=0)
    size: int = setting(64, help="side of a picture in pixels", minimum=8)
    train_items: int = setting(2000, help="training samples", minimum=1)
    test_items: int = setting(200, help="samples of val, and of test", minimum=1)


@tasks.register("my_part", MyPartConfig)
class MyPart(Task):
    """Say which half of a picture is brighter."""

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
        dark, bright = sorted(rng.choice(256, size=2, replace=False).tolist())
        answer = str(rng.choice(["left", "right"]))
        size = self.config.size
        picture = np.full((size, size, 3), dark, np.uint8)
        half = slice(0, size // 2) if answer == "left" else slice(size // 2, size)
        picture[:, half] = bright
        # A trace that zooms has a turn with `inquiry` and `boxes` before the one that answers.
        trace = (TraceTurn(f"the {answer} half", answer=answer),)
        return Sample(f"my_part/{split}/{index}", _QUESTION, answer, (picture,), trace, tags={"needs_zoom": False})

    def corpus(self) -> Iterator[str]:
        """Yield the texts that a tokenizer is trained on: questions, thoughts, inquiries and answers."""
        yield from (_QUESTION, "the left half", "the right half", "left", "right")

    def score(self, sample: Sample, answer: str | None) -> float:
        """Return the official score of an answer in [0, 1]; a missing answer scores 0."""
        return float(answer is not None and answer.strip().lower() == sample.answer)

    @classmethod
    def tiny(cls) -> MyPartConfig:
        """Return the settings of a small instance, which the contract tests build."""
        return MyPartConfig(size=16, train_items=16, test_items=4)
