"""Task `shape_clouds`: point clouds of primitives whose surfaces carry marks too fine for the overview."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, get_args

import numpy as np

from vilavt_components.tasks.generated.grid import max_separate_objects
from vilavt_components.tasks.generated.task import GeneratedTask, Mode, build_trace, check_mode_shares
from vilavt_components.tasks.shape_clouds.layout import (
    COLOURS,
    CloudKind,
    CloudQuestion,
    CloudRules,
    Mark,
    make_question,
)
from vilavt_components.tasks.shape_clouds.points import CloudStyle, sample_cloud
from vilavt_toolkit.contracts import Box, Sample, TraceTurn
from vilavt_toolkit.registry import tasks
from vilavt_toolkit.settings import setting

_ROOF = 1.0
"""Upper edge of every zoom, in cells: above all objects."""


@dataclass(frozen=True)
class ShapeCloudsConfig:
    """Settings of task `shape_clouds`."""

    seed: int = setting(0, help="decides every cloud: the same seed gives the same bytes", minimum=0)
    cells: int = setting(
        4,
        help="cells along each side of the floor (zooms are whole cells if the dialogue has as many `box_units`)",
        minimum=2,
        maximum=32,
    )  # fmt: skip
    objects: int = setting(4, help="objects in a scene, each of its own colour", minimum=2, maximum=len(COLOURS))
    marks: list[Mark] = setting(
        help="marks that objects can have: bands, stripes, spirals, dots, checks", factory=lambda: list(get_args(Mark))
    )
    points: int = setting(1500, help="points of every object", minimum=50)
    difficulty: float = setting(
        0.3,
        help="amount of noise, of clutter on the floor, and of variation in places and colours",
        minimum=0,
        maximum=1,
    )
    no_zoom: float = setting(1 / 3, help="share of questions that the overview answers", minimum=0, maximum=1)
    close: float = setting(
        1 / 3,
        help="share of the questions without a zoom that ask for the mark of the only object",
        minimum=0,
        maximum=1,
    )
    nearest: float = setting(
        0.3, help="share of the questions with a zoom that name an object by its neighbour", minimum=0, maximum=1
    )
    several: float = setting(
        0.35, help="share of the rest with two marks in the zoom, of which the inquiry names one", minimum=0, maximum=1
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
            raise ValueError("marks must name at least two different marks, none of them twice.")
        check_mode_shares(self.forced, self.blind)
        most = max_separate_objects(self.cells)
        if self.objects > most:
            raise ValueError(
                f"{self.objects} objects do not fit {self.cells} x {self.cells} cells. Set objects to {most} or fewer."
            )


@tasks.register("shape_clouds", ShapeCloudsConfig)
class ShapeClouds(GeneratedTask):
    """Coloured primitives on a floor, as points; their surfaces carry bands, stripes, spirals, dots or checks.

    "what mark is on the red cube?" and "what mark is on the object nearest the cone?" need a zoom, unless the cube
    fills the cloud; "what shape is the red object?" and "which is taller, the cube or the cone?" need none. A trace
    names every object as "colour shape cell", with cells numbered from 0 along x, then along y. It zooms into the cell
    of the asked object, and of its neighbour if the object was asked for by name, and reads.
    """

    name: ClassVar[str] = "shape_clouds"
    config: ShapeCloudsConfig

    def __init__(self, config: ShapeCloudsConfig) -> None:
        self.config = config
        self._rules = CloudRules(
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

    def sample(self, split: str, index: int) -> Sample:
        """Return the sample at `index`, its cloud float32 [N, 6] with colours; raises IndexError beyond the end."""
        question, rng, mode = self._make_question(split, index)
        # The only object of a close-up fills a floor of one cell.
        cells = 1 if question.kind == "close" else self.config.cells
        style = CloudStyle(self.config.points, cells, self.config.difficulty)
        return Sample(
            id=f"shape_clouds/{self.config.seed}/{split}/{index}",
            question=question.question,
            answer=question.answer,
            originals=() if mode == "blind" else (sample_cloud(rng, question.objects, style),),
            trace=_build_trace(question, mode),
            tool=mode == "tool",
            tags={
                "needs_zoom": question.zoom is not None,
                "several": question.shows_several,
                "family": question.family,
                "kind": question.kind,
                "answer_kind": "text",
            },
        )

    def question_and_trace(self, index: int) -> tuple[str, Sequence[TraceTurn]]:
        """Return the texts of a training sample for `corpus`; no point is sampled."""
        # With the usual shares, so that a recipe with a share of 0 still has all words in its tokenizer.
        usual = ShapeClouds(replace(self.config, no_zoom=1 / 3, close=1 / 3))
        question, _, mode = usual._make_question("train", index)
        return question.question, _build_trace(question, mode)

    def metrics(self, samples: Sequence[Sample], scores: Sequence[float]) -> Mapping[str, Sequence[float]]:
        """Return the scores of every kind of question."""
        return {
            kind: [score for sample, score in zip(samples, scores, strict=True) if sample.tags["kind"] == kind]
            for kind in get_args(CloudKind)
        }

    def _make_question(self, split: str, index: int) -> tuple[CloudQuestion, np.random.Generator, Mode]:
        """Make the question of a sample; returns it, the generator to sample its cloud with, and how it is asked."""
        rng = np.random.default_rng(self.seed_of(split, index))
        question = make_question(rng, self._rules)
        return question, rng, self.draw_mode(rng, split)


def _build_trace(question: CloudQuestion, mode: Mode) -> tuple[TraceTurn, ...]:
    """Build the turns that lead to the answer, with the zoom as a box from the floor to above all objects."""
    boxes: list[tuple[int, Box]] = []
    if question.zoom is not None:
        x1, y1, x2, y2 = question.zoom
        # Always the whole height: objects stand beside each other, never on top.
        boxes.append((0, (float(x1), float(y1), 0.0, float(x2), float(y2), _ROOF)))
    return build_trace(
        mode,
        question.answer,
        question.thought,
        question.inquiry,
        boxes,
        question.answer,
        blind_thought="nothing shown",
    )
