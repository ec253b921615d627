"""Task `digit_scenes`: scenes whose objects carry handwritten digits, too small to read in the overview."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import numpy as np

from vilavt_components.tasks.digit_scenes.box_answers import is_right_box, write_answer
from vilavt_components.tasks.digit_scenes.follow_ups import make_follow_ups
from vilavt_components.tasks.digit_scenes.layout import COLOURS, SceneRules, max_objects
from vilavt_components.tasks.digit_scenes.one_image import make_one_image
from vilavt_components.tasks.digit_scenes.question import SceneQuestion
from vilavt_components.tasks.digit_scenes.referring import make_referring
from vilavt_components.tasks.digit_scenes.rendering import (
    Pixels,
    SceneRandomness,
    SceneStyle,
    object_box,
    render_scene,
    rewrite_digits,
    sample_randomness,
)
from vilavt_components.tasks.digit_scenes.two_images import make_two_images
from vilavt_components.tasks.digit_scenes.video import make_video
from vilavt_components.tasks.generated.task import GeneratedTask, Mode, build_trace, check_mode_shares
from vilavt_toolkit.contracts import Box, Sample, TraceTurn
from vilavt_toolkit.registry import tasks
from vilavt_toolkit.settings import setting

_FAMILY_DRAW, _NEEDLESS_DRAW, _DEMANDED_DRAW, _FOLLOW_UP_DRAW = 1, 2, 3, 4
"""Streams of random numbers apart from the scenes, which these settings must leave as they are."""

Family = Literal["one_image", "two_images", "video", "referring"]
_FAMILIES: Mapping[str, Callable[[np.random.Generator, SceneRules], SceneQuestion]] = {
    "one_image": make_one_image,
    "two_images": make_two_images,
    "video": make_video,
    "referring": make_referring,
}


@dataclass(frozen=True)
class DigitScenesConfig:
    """Settings of task `digit_scenes`."""

    seed: int = setting(0, help="decides every scene: the same seed gives the same bytes", minimum=0)
    families: list[Family] | dict[str, float] = setting(
        help="families of questions, with equal shares or a share for each: one_image, two_images, video, referring",
        factory=lambda: ["one_image"],
    )
    frames: int = setting(3, help="frames of a video", minimum=3, maximum=8)
    box_units: int = setting(
        1000,
        help="units per side in which boxes are answered: the dialogue's `box_units`",
        minimum=2,
        formerly=("steps",),
    )
    size: int = setting(256, help="side of a scene in pixels, a multiple of `cells`", minimum=32)
    cells: int = setting(4, help="cells along each side of the grid that objects stand on", minimum=2, maximum=32)
    objects: int = setting(4, help="objects in a scene", minimum=2)
    difficulty: float = setting(
        0.3,
        help="amount of noise and clutter, and of variation in sizes, places, colours and digits",
        minimum=0,
        maximum=1,
    )
    own_colours: bool = setting(False, help="every object of a scene has a colour of its own")
    camouflage: float = setting(
        0.0,
        help="how far digits average out in a small view, from 0, plain ink, to 1, completely",
        minimum=0,
        maximum=1,
    )
    hands: float = setting(
        0.5,
        help="how far training digits are turned, slanted and stretched, as if by more writers",
        minimum=0,
        maximum=1,
    )
    no_zoom: float = setting(1 / 3, help="share of questions that the overview answers", minimum=0, maximum=1)
    several: float = setting(
        0.35, help="share of zooms that show two digits, of which the inquiry names one", minimum=0, maximum=1
    )
    forced: float = setting(
        0.12, help="share of training samples without the tool: the answer is a guess", minimum=0, maximum=1
    )
    blind: float = setting(
        0.04, help="share of training samples without an image: the answer is a guess", minimum=0, maximum=1
    )
    needless: float = setting(
        0.0,
        help="share of training samples without need of a zoom whose trace has one, for reinforcement to unlearn",
        minimum=0,
        maximum=1,
    )
    demanded: float = setting(
        0.0,
        help="share of training samples whose answer is demanded together with the zoom's views",
        minimum=0,
        maximum=1,
    )
    follow_ups: float = setting(
        0.0,
        help="share of training samples of family one_image that ask one or two more questions about their scene",
        minimum=0,
        maximum=1,
    )
    train_items: int = setting(20_000, help="training samples", minimum=1)
    val_items: int = setting(1_000, help="validation samples", minimum=1)
    test_items: int = setting(1_000, help="test samples", minimum=1)

    @property
    def shares(self) -> dict[str, float]:
        """The share of every family of questions."""
        if isinstance(self.families, dict):
            return dict(self.families)
        return {family: 1 / len(self.families) for family in self.families}

    def __post_init__(self) -> None:
        self._check_families()
        self._check_scenes()
        check_mode_shares(self.forced, self.blind)

    def _check_families(self) -> None:
        known = ", ".join(get_args(Family))
        if not self.families:
            raise ValueError(f"families is empty. Name at least one of {known}.")
        for family in self.families:
            if family not in _FAMILIES:
                raise ValueError(f"families: there is no family '{family}'. Choose from {known}.")
        if isinstance(self.families, dict):
            for family, share in self.families.items():
                if not share > 0:
                    raise ValueError(f"families: the share {share} of {family} is not above 0. Leave the family out.")
            # Not exactly 1, since decimal shares sum to 1 only up to rounding.
            if abs(sum(self.families.values()) - 1) > 1e-6:
                raise ValueError(
                    f"families: the shares sum to {sum(self.families.values()):g}. Change them to sum to 1."
                )
        elif len(set(self.families)) < len(self.families):
            raise ValueError("families names one twice. Name each once, or give shares.")

    def _check_scenes(self) -> None:
        # A digit is half as high as its cell. Below 16 pixels it would have fewer pixels than scikit-learn's image.
        if self.size % self.cells or self.size // self.cells < 16:
            raise ValueError(
                f"size {self.size} and cells {self.cells} do not fit. Cells must divide size into parts of 16 or more "
                "pixels."
            )
        if self.objects > max_objects(self.cells):
            raise ValueError(
                f"{self.objects} objects do not fit {self.cells} x {self.cells} cells, where the asked one may "
                f"stand alone. Set objects to {max_objects(self.cells)} or fewer, or cells higher."
            )
        if self.own_colours and self.objects > len(COLOURS):
            raise ValueError(
                f"{self.objects} objects cannot have {len(COLOURS)} colours to themselves. Set objects to "
                f"{len(COLOURS)} or fewer."
            )


@tasks.register("digit_scenes", DigitScenesConfig)
class DigitScenes(GeneratedTask):
    """Coloured shapes that carry handwritten digits; needs scikit-learn (the `demo` extra) for the digits.

    Family `one_image`: "what digit is on the red square?" needs a zoom, unless the square fills the picture;
    `two_images` compares, yes or no; `video` asks what changed, where and when; `referring` asks for a box. A trace
    names every object as "cell colour shape", with cells numbered from 0 in reading order, then the asked one with its
    cell and that of a neighbour if it has one. It zooms into these cells and reads. Every split has digits of its own
    writers.
    """

    name: ClassVar[str] = "digit_scenes"
    config: DigitScenesConfig

    def __init__(self, config: DigitScenesConfig) -> None:
        self.config = config
        self._shares = config.shares
        self._rules = SceneRules(
            config.cells, config.objects, config.no_zoom, config.several, config.own_colours, config.frames
        )

    @classmethod
    def tiny(cls) -> DigitScenesConfig:
        """Return settings of few small scenes of two objects."""
        return DigitScenesConfig(
            size=64, cells=2, objects=2, forced=0.2, blind=0.2, train_items=16, val_items=4, test_items=4
        )

    def sample(self, split: str, index: int) -> Sample:
        """Return the sample at `index`, its images uint8 [size, size, 3]; raises IndexError beyond the split's end."""
        question, rng, mode = self._make_question(split, index)
        style = self._scene_style(split, question)
        # Before the images, since the answer may be a box, which depends on how its object is drawn.
        randomness = _sample_randomness(rng, question, style)
        answer = self._answer_text(question, randomness, style)
        return Sample(
            id=f"digit_scenes/{self.config.seed}/{split}/{index}",
            question=question.question,
            answer=answer,
            originals=() if mode == "blind" else _render_images(rng, question, randomness, style),
            trace=(
                *self._build_trace(question, answer, mode, self._is_demanded(split, index)),
                *self._build_follow_ups(split, index, question, mode),
            ),
            tool=mode in ("tool", "needless"),
            tags={
                "needs_zoom": bool(question.zooms),
                "several": question.shows_several,
                "family": question.family,
                "kind": question.kind,
                "answer_kind": question.answer_kind,
            },
        )

    def question_and_trace(self, index: int) -> tuple[str, Sequence[TraceTurn]]:
        """Return the texts of a training sample for `corpus`; no image is rendered."""
        question, rng, mode = self._make_question("train", index)
        style = self._scene_style("train", question)
        answer = self._answer_text(question, _sample_randomness(rng, question, style), style)
        follow_ups = self._build_follow_ups("train", index, question, mode)
        return question.question, [*self._build_trace(question, answer, mode), *follow_ups]

    def score(self, sample: Sample, answer: str | None) -> float:
        """Return 1 if the answer is right, else 0: text but for case and outer spaces, a box from an IoU of 0.5 on."""
        if answer is None or sample.tags.get("answer_kind") != "box":
            return super().score(sample, answer)
        return float(is_right_box(answer, sample.answer, self.config.size, self.config.box_units))

    def metrics(self, samples: Sequence[Sample], scores: Sequence[float]) -> Mapping[str, Sequence[float]]:
        """Return the scores of every family, by its name in words; nothing if there is one family only."""
        # One family alone would only repeat the accuracy.
        if len(self._shares) == 1:
            return {}
        return {
            family.replace("_", " "): [
                score for sample, score in zip(samples, scores, strict=True) if sample.tags["family"] == family
            ]
            for family in self._shares
        }

    def _make_question(self, split: str, index: int) -> tuple[SceneQuestion, np.random.Generator, Mode]:
        """Make the question of a sample; returns it, the generator to draw its scenes with, and how it is asked."""
        seed = self.seed_of(split, index)
        rng = np.random.default_rng(seed)
        question = _FAMILIES[self._choose_family(seed)](rng, self._rules)
        mode = self.draw_mode(rng, split)
        can_waste_zoom = split == "train" and mode == "tool" and question.needless_zoom and not question.zooms
        if can_waste_zoom and _uniform_draw(seed, _NEEDLESS_DRAW) < self.config.needless:
            mode = "needless"
        return question, rng, mode

    def _choose_family(self, seed: Sequence[int]) -> str:
        """Draw the family of the sample of a seed, by the shares."""
        left = _uniform_draw(seed, _FAMILY_DRAW)
        for family, share in self._shares.items():
            left -= share
            if left < 0:
                return family
        # Shares that sum to a little less than 1 by rounding: the last family takes the rest.
        return family

    def _is_demanded(self, split: str, index: int) -> bool:
        """Return True if the answer to a sample is demanded together with the zoom's views."""
        return split == "train" and _uniform_draw(self.seed_of(split, index), _DEMANDED_DRAW) < self.config.demanded

    def _scene_style(self, split: str, question: SceneQuestion) -> SceneStyle:
        config = self.config
        return SceneStyle(
            split,
            config.size,
            1 if question.is_close_up else config.cells,
            config.difficulty,
            config.camouflage,
            config.hands if split == "train" else 0.0,
        )

    def _answer_text(self, question: SceneQuestion, randomness: Sequence[SceneRandomness], style: SceneStyle) -> str:
        """Return the answer, which is the box of an object as it is drawn if the question asks for one."""
        if question.answer_object is None:
            return question.answer
        image, item = question.answer_object
        return write_answer(object_box(randomness[image], item, style), style.size, self.config.box_units)

    def _build_trace(
        self, question: SceneQuestion, answer: str, mode: Mode, demanded: bool = False
    ) -> tuple[TraceTurn, ...]:
        """Build the turns that lead to the answer, with regions in pixels of the scenes."""
        # Questions count in cells, traces in pixels of the scene.
        cell = self.config.size // self.config.cells
        zooms = (question.needless_zoom,) if mode == "needless" and question.needless_zoom else question.zooms
        boxes: list[tuple[int, Box]] = [(image, tuple(float(side * cell) for side in span)) for image, span in zooms]
        return build_trace(
            mode,
            answer,
            question.thought,
            question.inquiry,
            boxes,
            question.zoom_thought,
            blind_thought="no image",
            demanded=demanded,
        )

    def _build_follow_ups(self, split: str, index: int, question: SceneQuestion, mode: Mode) -> list[TraceTurn]:
        """Build the turns of further questions, for the share of the training samples that has some."""
        can_have = split == "train" and mode in ("tool", "needless") and question.family == "one_image"
        if not can_have or question.is_close_up or not self.config.follow_ups:
            return []
        # A generator of its own, so that samples without follow-ups stay what they were.
        rng = np.random.default_rng([*self.seed_of(split, index), _FOLLOW_UP_DRAW])
        if rng.random() >= self.config.follow_ups:
            return []
        turns: list[TraceTurn] = []
        cell = self.config.size // self.config.cells
        for asked in make_follow_ups(rng, question, self.config.cells, self.config.own_colours):
            boxes = [(0, tuple(float(side * cell) for side in asked.zoom))] if asked.zoom is not None else []
            first, *rest = build_trace(
                "tool", asked.answer, asked.thought, asked.inquiry, boxes, asked.answer, blind_thought=""
            )
            turns += [replace(first, question=asked.question), *rest]
        return turns


def _uniform_draw(seed: Sequence[int], stream: int) -> float:
    """Draw from [0, 1) for the sample of a seed, from a stream apart from its other draws."""
    return float(np.random.default_rng([*seed, stream]).random())


def _sample_randomness(rng: np.random.Generator, question: SceneQuestion, style: SceneStyle) -> list[SceneRandomness]:
    """Draw the random numbers that every image is rendered by, all before the first is rendered."""
    if not question.is_film:
        return [sample_randomness(rng, [item.name for item in objects], style) for objects in question.scenes]
    names = list(dict.fromkeys(item.name for objects in question.scenes for item in objects))
    first = sample_randomness(rng, names, style)
    # In frames of one video only the handwriting is drawn again. If it stayed, a digit that changes would be
    # the only thing that looks different, and the change could be seen without reading.
    return [first, *(rewrite_digits(rng, first) for _ in question.scenes[1:])]


def _render_images(
    rng: np.random.Generator, question: SceneQuestion, randomness: Sequence[SceneRandomness], style: SceneStyle
) -> tuple[Pixels, ...]:
    pairs = zip(randomness, question.scenes, strict=True)
    return tuple(render_scene(rng, numbers, objects, style) for numbers, objects in pairs)
