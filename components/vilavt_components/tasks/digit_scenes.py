"""Task `digit_scenes`: scenes whose objects carry handwritten digits, tiny at first sight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vilavt_components.tasks._digit_drawing import draw_scene
from vilavt_components.tasks._digit_layout import COLOURS, Scene, Thing, lay_out, most_objects
from vilavt_toolkit.contracts import Box, GivenTurn, Sample, Task
from vilavt_toolkit.errors import UsageError
from vilavt_toolkit.registry import setting, tasks

_SPLITS = ("train", "val", "test")
_CORPUS_ITEMS = 2000


@dataclass(frozen=True)
class DigitScenesConfig:
    """Settings of task `digit_scenes`."""

    seed: int = setting(0, help="decides every scene; same seed, same bytes", minimum=0)
    size: int = setting(256, help="side of a scene in pixels; a multiple of `cells`", minimum=32)
    cells: int = setting(4, help="cells along each side of the grid that objects stand on", minimum=2)
    objects: int = setting(4, help="objects in a scene", minimum=2)
    difficulty: float = setting(
        0.3,
        help="noise, clutter, and how much sizes, places, colours and digits vary",
        minimum=0,
        maximum=1,
    )
    own_colours: bool = setting(False, help="no two objects of a scene have one colour")
    camouflage: float = setting(
        0.0, help="how far digits average out in a small view: 0 plain ink, 1 wholly", minimum=0, maximum=1
    )
    hands: float = setting(
        0.5, help="how far training digits are turned, slanted and stretched, as by other writers", minimum=0, maximum=1
    )
    no_zoom: float = setting(1 / 3, help="share of questions that the first view answers", minimum=0, maximum=1)
    several: float = setting(
        0.35, help="share of zooms that show two digits, of which the inquiry names one", minimum=0, maximum=1
    )
    forced: float = setting(
        0.12, help="share of training samples without the tool: the answer is a guess", minimum=0, maximum=1
    )
    blind: float = setting(
        0.04, help="share of training samples without an image: the answer is a guess", minimum=0, maximum=1
    )
    train_items: int = setting(20_000, help="training samples", minimum=1)
    val_items: int = setting(1_000, help="validation samples", minimum=1)
    test_items: int = setting(1_000, help="test samples", minimum=1)

    def __post_init__(self) -> None:
        if self.size % self.cells or self.size // self.cells < 16:
            raise ValueError(
                f"size {self.size} and cells {self.cells} do not fit; cells must divide size, into 16 pixels or more."
            )
        if self.objects > most_objects(self.cells):
            raise ValueError(
                f"{self.objects} objects do not fit {self.cells} x {self.cells} cells, where the asked one may "
                f"stand alone; set objects to {most_objects(self.cells)} or fewer, or cells higher."
            )
        if self.own_colours and self.objects > len(COLOURS):
            raise ValueError(f"{self.objects} objects cannot have {len(COLOURS)} colours to themselves; set fewer.")
        if self.forced + self.blind > 1:
            raise ValueError(f"forced {self.forced} and blind {self.blind} together exceed 1; lower one.")


@tasks.register("digit_scenes", DigitScenesConfig)
class DigitScenes(Task):
    """Coloured shapes that carry handwritten digits; needs scikit-learn (the `demo` extra) for the digits.

    The family `one_image`: "what digit is on the red square?" needs a zoom, unless the square fills the picture;
    "what shape is the red object?" needs none. A trace names every object as "cell colour shape", cells numbered from
    0 in reading order, then the asked one with its cell and that of an object right beside, above or below it; it
    looks at these cells, and reads. Digits of the splits are by different writers.
    """

    def __init__(self, config: DigitScenesConfig) -> None:
        self.config = config
        self._items = {"train": config.train_items, "val": config.val_items, "test": config.test_items}

    @classmethod
    def tiny(cls) -> DigitScenesConfig:
        """Return settings of few small scenes of two objects."""
        return DigitScenesConfig(
            size=64, cells=2, objects=2, forced=0.2, blind=0.2, train_items=16, val_items=4, test_items=4
        )

    def length(self, split: str) -> int:
        """Number of samples of a split; raises UsageError for an unknown one."""
        if split not in self._items:
            raise UsageError(f"task 'digit_scenes' has no split '{split}'; choose one of {', '.join(_SPLITS)}.")
        return self._items[split]

    def sample(self, split: str, index: int) -> Sample:
        """The sample at `index`, its scene uint8 [size, size, 3]; IndexError beyond the split's end."""
        scene, rng, mode = self._scene(split, index)
        question, answer = _question(scene)
        config = self.config
        hands = config.hands if split == "train" else 0.0
        cells = 1 if scene.kind == "close" else config.cells
        drawn = draw_scene(rng, scene, split, config.size, cells, config.difficulty, config.camouflage, hands)
        return Sample(
            id=f"digit_scenes/{self.config.seed}/{split}/{index}",
            question=question,
            answer=answer,
            originals=() if mode == "blind" else (drawn,),
            trace=self._trace(scene, answer, mode),
            tool=mode == "tool",
            tags={
                "needs_zoom": scene.kind == "digit",
                "several": scene.partner is not None,
                "family": "one_image",
                "kind": scene.kind,
            },
        )

    def corpus(self) -> Iterator[str]:
        """Texts of the first training samples; nothing is drawn for them."""
        for index in range(min(self.length("train"), _CORPUS_ITEMS)):
            scene, _, mode = self._scene("train", index)
            question, answer = _question(scene)
            yield question
            for turn in self._trace(scene, answer, mode):
                yield from (text for text in (turn.thought, turn.inquiry, turn.answer) if text)

    def score(self, sample: Sample, answer: str | None) -> float:
        """1 where the answer is the right one but for case and outer spaces, else 0."""
        return float(answer is not None and answer.strip().lower() == sample.answer.lower())

    def _scene(self, split: str, index: int) -> tuple[Scene, np.random.Generator, str]:
        """Lay a sample's scene out; returns it, the generator to draw it with, and how it is asked."""
        if not 0 <= index < self.length(split):
            raise IndexError(f"split '{split}' of 'digit_scenes' has {self.length(split)} samples; no {index}.")
        config = self.config
        rng = np.random.default_rng([config.seed, _SPLITS.index(split), index])
        scene = lay_out(rng, config.cells, config.objects, config.no_zoom, config.several, config.own_colours)
        draw = rng.random()
        if split != "train" or draw >= config.forced + config.blind:
            return scene, rng, "tool"
        return scene, rng, "blind" if draw < config.blind else "forced"

    def _trace(self, scene: Scene, answer: str, mode: str) -> tuple[GivenTurn, ...]:
        """The turns that lead to the answer."""
        if mode == "blind":
            return (GivenTurn("no image", answer=answer),)
        if scene.kind == "close":
            return (GivenTurn(answer, answer=answer),)
        cells = self.config.cells
        named = " ".join(f"{_number(thing, cells)} {thing.name}" for thing in scene.things)
        meant = [scene.asked] if scene.partner is None else [scene.asked, scene.partner]
        thought = f"see {named}; so {_restated(scene)} {' '.join(str(_number(thing, cells)) for thing in meant)}"
        if mode == "forced" or scene.kind != "digit":
            return (GivenTurn(thought, answer=answer),)
        cell = self.config.size // cells
        box: Box = tuple(float(side * cell) for side in scene.zoom)
        return (
            GivenTurn(thought, inquiry=scene.asked.name, boxes=((0, box),)),
            GivenTurn(answer, answer=answer),
        )


def _number(thing: Thing, cells: int) -> int:
    """The number of a thing's cell, counted from 0 in reading order."""
    return thing.cell[1] * cells + thing.cell[0]


def _restated(scene: Scene) -> str:
    """The asked object, what the question says of it first: the rest is looked up from there."""
    asked = scene.asked
    return f"{asked.shape} {asked.colour}" if scene.kind == "colour" else asked.name


def _question(scene: Scene) -> tuple[str, str]:
    """The question about a scene, and its answer."""
    asked = scene.asked
    if scene.kind == "shape":
        return f"what shape is the {asked.colour} object?", asked.shape
    if scene.kind == "colour":
        return f"what colour is the {asked.shape}?", asked.colour
    return f"what digit is on the {asked.name}?", str(asked.digit)
