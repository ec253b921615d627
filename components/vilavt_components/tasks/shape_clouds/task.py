"""Task `shape_clouds`: point clouds of primitives whose surfaces carry marks too fine for the first view."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from vilavt_components.tasks.shape_clouds.layout import COLOURS, Item, Mark, Rules, draw_item
from vilavt_components.tasks.shape_clouds.points import Style, cloud
from vilavt_toolkit.contracts import Box, GivenTurn, Sample, Task
from vilavt_toolkit.errors import UsageError
from vilavt_toolkit.registry import tasks
from vilavt_toolkit.settings import setting

_SPLITS = ("train", "val", "test")
_CORPUS_ITEMS = 2000
_ROOF = 1.0
"""Above every object, in cells."""

Mode = Literal["tool", "forced", "blind"]
"""How a training sample is asked: with the tool, without it, without the cloud."""


@dataclass(frozen=True)
class ShapeCloudsConfig:
    """Settings of task `shape_clouds`."""

    seed: int = setting(0, help="decides every scene; same seed, same bytes", minimum=0)
    cells: int = setting(
        4, help="cells along each side of the floor that objects stand on; with the dialogue's `steps` the same, boxes "
        "are whole cells", minimum=2,
    )  # fmt: skip
    objects: int = setting(4, help="objects in a scene, each of its own colour", minimum=2, maximum=len(COLOURS))
    marks: list[Mark] = setting(
        help="marks that there are: bands, stripes, spirals, dots, checks", factory=lambda: list(get_args(Mark))
    )
    points: int = setting(1500, help="points of every object", minimum=50)
    difficulty: float = setting(
        0.3, help="noise, clutter on the floor, and how much places and colours vary", minimum=0, maximum=1
    )
    no_zoom: float = setting(1 / 3, help="share of questions that the first view answers", minimum=0, maximum=1)
    close: float = setting(
        1 / 3, help="share of these that show one object only, whose mark is asked for", minimum=0, maximum=1
    )
    nearest: float = setting(
        0.3, help="share of the other questions that name an object by what it stands next to", minimum=0, maximum=1
    )
    several: float = setting(
        0.35, help="share of the rest whose zoom shows two marks, of which the inquiry names one", minimum=0, maximum=1
    )
    forced: float = setting(
        0.08, help="share of training samples without the tool: the answer is a guess", minimum=0, maximum=1
    )
    blind: float = setting(
        0.04, help="share of training samples without a cloud: the answer is a guess", minimum=0, maximum=1
    )
    train_items: int = setting(20_000, help="training samples", minimum=1)
    val_items: int = setting(1_000, help="validation samples", minimum=1)
    test_items: int = setting(1_000, help="test samples", minimum=1)

    def __post_init__(self) -> None:
        if len(set(self.marks)) < max(2, len(self.marks)):
            raise ValueError("marks must name two different ones at least, and none twice.")
        if self.forced + self.blind > 1:
            raise ValueError(f"forced {self.forced} and blind {self.blind} together exceed 1; lower one.")
        # The asked object may stand where it has four cells around that stay empty.
        most = self.cells**2 - min(4, 2 * (self.cells - 1))
        if self.objects > most:
            raise ValueError(
                f"{self.objects} objects do not fit {self.cells} x {self.cells} cells; set {most} or fewer."
            )


@tasks.register("shape_clouds", ShapeCloudsConfig)
class ShapeClouds(Task):
    """Coloured primitives on a floor, as points; their surfaces carry bands, stripes, spirals, dots or checks.

    "what mark is on the red cube?" and "what mark is on the object nearest the cone?" need a zoom, unless the cube
    fills the cloud; "what shape is the red object?" and "which is taller, the cube or the cone?" need none. A trace
    names every object as "colour shape cell", cells numbered from 0 along x, then along y; it looks at the asked one's
    cell, and that of an object right beside it if it is asked for by name, and reads.
    """

    def __init__(self, config: ShapeCloudsConfig) -> None:
        self.config = config
        self._items = {"train": config.train_items, "val": config.val_items, "test": config.test_items}
        self._rules = Rules(
            config.cells,
            config.objects,
            tuple(config.marks),
            config.no_zoom,
            config.close,
            config.nearest,
            config.several,
        )

    @classmethod
    def tiny(cls) -> ShapeCloudsConfig:
        """Return settings of few small clouds of two objects."""
        return ShapeCloudsConfig(
            cells=2, objects=2, points=100, forced=0.2, blind=0.2, train_items=16, val_items=4, test_items=4
        )

    def length(self, split: str) -> int:
        """Number of samples of a split; raises UsageError for an unknown one."""
        if split not in self._items:
            raise UsageError(f"task 'shape_clouds' has no split '{split}'; choose one of {', '.join(_SPLITS)}.")
        return self._items[split]

    def sample(self, split: str, index: int) -> Sample:
        """The sample at `index`, its cloud float32 [N, 6] with colours; IndexError beyond the split's end."""
        item, rng, mode = self._item(split, index)
        style = Style(self.config.points, 1 if item.kind == "close" else self.config.cells, self.config.difficulty)
        return Sample(
            id=f"shape_clouds/{self.config.seed}/{split}/{index}",
            question=item.question,
            answer=item.answer,
            originals=() if mode == "blind" else (cloud(rng, item.things, style),),
            trace=_trace(item, mode),
            tool=mode == "tool",
            tags={
                "needs_zoom": item.look is not None,
                "several": item.several,
                "family": item.family,
                "kind": item.kind,
                "answer_kind": "text",
            },
        )

    def corpus(self) -> Iterator[str]:
        """Texts of training samples of every kind, whatever their shares; no point is sampled for them."""
        usual = ShapeClouds(replace(self.config, no_zoom=1 / 3, close=1 / 3))
        for index in range(min(self.length("train"), _CORPUS_ITEMS)):
            item, _, mode = usual._item("train", index)
            yield item.question
            for turn in _trace(item, mode):
                yield from (text for text in (turn.thought, turn.inquiry, turn.answer) if text)

    def score(self, sample: Sample, answer: str | None) -> float:
        """1 where the answer is right but for case and outer spaces, else 0."""
        return float(answer is not None and answer.strip().lower() == sample.answer.lower())

    def metrics(self, samples: Sequence[Sample], scores: Sequence[float]) -> Mapping[str, Sequence[float]]:
        """The scores of every kind of question."""
        kinds = ("mark", "nearest", "close", "shape", "taller")
        return {
            kind: [score for sample, score in zip(samples, scores, strict=True) if sample.tags["kind"] == kind]
            for kind in kinds
        }

    def _item(self, split: str, index: int) -> tuple[Item, np.random.Generator, Mode]:
        """What a sample asks; returns it, the generator to sample its cloud with, and how it is asked."""
        if not 0 <= index < self.length(split):
            raise IndexError(f"split '{split}' of 'shape_clouds' has {self.length(split)} samples; no {index}.")
        config = self.config
        rng = np.random.default_rng([config.seed, _SPLITS.index(split), index])
        item, drawn = draw_item(rng, self._rules), rng.random()
        if split != "train" or drawn >= config.forced + config.blind:
            return item, rng, "tool"
        return item, rng, "blind" if drawn < config.blind else "forced"


def _trace(item: Item, mode: Mode) -> tuple[GivenTurn, ...]:
    """The turns that lead to the answer."""
    if mode == "blind":
        return (GivenTurn("nothing shown", answer=item.answer),)
    if mode == "forced" or item.look is None:
        return (GivenTurn(item.thought, answer=item.answer),)
    x0, y0, x1, y1 = item.look
    box: Box = (float(x0), float(y0), 0.0, float(x1), float(y1), _ROOF)
    return (
        GivenTurn(item.thought, inquiry=item.inquiry, boxes=((0, box),)),
        GivenTurn(item.answer, answer=item.answer),
    )
