"""Task `digit_scenes`: scenes whose objects carry handwritten digits, tiny at first sight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from vilavt_components.tasks.digit_scenes import box_answers as boxes
from vilavt_components.tasks.digit_scenes.items import Item
from vilavt_components.tasks.digit_scenes.layout import COLOURS, Rules, most_objects
from vilavt_components.tasks.digit_scenes.one_image import one_image
from vilavt_components.tasks.digit_scenes.referring import referring
from vilavt_components.tasks.digit_scenes.rendering import Draft, Pixels, Style, draft, draw, outline, written_anew
from vilavt_components.tasks.digit_scenes.two_images import two_images
from vilavt_components.tasks.digit_scenes.video import video
from vilavt_toolkit.contracts import Box, GivenTurn, Sample, Task
from vilavt_toolkit.errors import UsageError
from vilavt_toolkit.registry import tasks
from vilavt_toolkit.settings import setting

_SPLITS = ("train", "val", "test")
_CORPUS_ITEMS = 2000
_FAMILY_DRAW, _NEEDLESS_DRAW, _DEMANDED_DRAW = 1, 2, 3
"""Set these draws apart from those of a sample's scene, which are the same whatever else there is."""

Family = Literal["one_image", "two_images", "video", "referring"]
_FAMILIES: Mapping[str, Callable[[np.random.Generator, Rules], Item]] = {
    "one_image": one_image,
    "two_images": two_images,
    "video": video,
    "referring": referring,
}
Mode = Literal["tool", "needless", "forced", "blind"]
"""How a training sample is asked: with the tool, with the tool used for nothing, without it, without image."""


@dataclass(frozen=True)
class DigitScenesConfig:
    """Settings of task `digit_scenes`."""

    seed: int = setting(0, help="decides every scene; same seed, same bytes", minimum=0)
    families: list[Family] | dict[str, float] = setting(
        help="kinds of item, of equal shares or each with its share of 1: one_image, two_images, video, referring",
        factory=lambda: ["one_image"],
    )
    frames: int = setting(3, help="frames of a video", minimum=3, maximum=8)
    steps: int = setting(
        1000, help="units per side in which boxes are answered; those of the dialogue, its `steps`", minimum=2
    )
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
    needless: float = setting(
        0.0, help="share of training samples that need no zoom and are shown one; to be unlearned", minimum=0, maximum=1
    )
    demanded: float = setting(
        0.0, help="share of training samples whose answer is demanded with what a zoom shows", minimum=0, maximum=1
    )
    train_items: int = setting(20_000, help="training samples", minimum=1)
    val_items: int = setting(1_000, help="validation samples", minimum=1)
    test_items: int = setting(1_000, help="test samples", minimum=1)

    @property
    def shares(self) -> dict[str, float]:
        """The share of every family."""
        if isinstance(self.families, dict):
            return dict(self.families)
        return {family: 1 / len(self.families) for family in self.families}

    def __post_init__(self) -> None:
        self._check_families()
        self._check_scenes()
        if self.forced + self.blind > 1:
            raise ValueError(f"forced {self.forced} and blind {self.blind} together exceed 1; lower one.")

    def _check_families(self) -> None:
        known = ", ".join(get_args(Family))
        if not self.families:
            raise ValueError(f"families is empty; name at least one of {known}.")
        for family in self.families:
            if family not in _FAMILIES:
                raise ValueError(f"families: there is no family '{family}'; choose from {known}.")
        if isinstance(self.families, dict):
            for family, share in self.families.items():
                if not share > 0:
                    raise ValueError(f"families: the share {share} of {family} is not above 0; leave the family out.")
            if abs(sum(self.families.values()) - 1) > 1e-6:
                raise ValueError(f"families: the shares sum to {sum(self.families.values()):g}; make it 1.")
        elif len(set(self.families)) < len(self.families):
            raise ValueError("families names one twice; name each once, or give shares.")

    def _check_scenes(self) -> None:
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


@tasks.register("digit_scenes", DigitScenesConfig)
class DigitScenes(Task):
    """Coloured shapes that carry handwritten digits; needs scikit-learn (the `demo` extra) for the digits.

    Family `one_image`: "what digit is on the red square?" needs a zoom, unless the square fills the picture;
    `two_images`: yes or no, comparing; `video`: what changed, where, when; `referring`: a box. A trace names every
    object as "cell colour shape", cells numbered from 0 in reading order, then the asked one with its cell and that of
    an object right beside, above or below it; it looks at these cells, and reads. Digits of the splits are by
    different writers.
    """

    def __init__(self, config: DigitScenesConfig) -> None:
        self.config = config
        self._items = {"train": config.train_items, "val": config.val_items, "test": config.test_items}
        self._shares = config.shares
        self._rules = Rules(
            config.cells, config.objects, config.no_zoom, config.several, config.own_colours, config.frames
        )

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
        """The sample at `index`, its images uint8 [size, size, 3]; IndexError beyond the split's end."""
        item, rng, mode = self._item(split, index)
        style = self._style(split, item)
        drafts = _drafts(rng, item, style)
        answer = self._answer(item, drafts, style)
        return Sample(
            id=f"digit_scenes/{self.config.seed}/{split}/{index}",
            question=item.question,
            answer=answer,
            originals=() if mode == "blind" else _drawn(rng, item, drafts, style),
            trace=self._trace(item, answer, mode, self._demands(split, index)),
            tool=mode in ("tool", "needless"),
            tags={
                "needs_zoom": bool(item.looks),
                "several": item.several,
                "family": item.family,
                "kind": item.kind,
                "answer_kind": item.answer_kind,
            },
        )

    def corpus(self) -> Iterator[str]:
        """Texts of the first training samples; nothing is drawn for them."""
        for index in range(min(self.length("train"), _CORPUS_ITEMS)):
            item, rng, mode = self._item("train", index)
            style = self._style("train", item)
            answer = self._answer(item, _drafts(rng, item, style), style)
            yield item.question
            for turn in self._trace(item, answer, mode):
                yield from (text for text in (turn.thought, turn.inquiry, turn.answer) if text)

    def score(self, sample: Sample, answer: str | None) -> float:
        """1 where the answer is right, else 0: text but for case and outer spaces, a box from half overlap on."""
        if answer is None:
            return 0.0
        if sample.tags.get("answer_kind") != "box":
            return float(answer.strip().lower() == sample.answer.lower())
        size, steps = self.config.size, self.config.steps
        given, right = boxes.read(answer, size, steps), boxes.read(sample.answer, size, steps)
        return float(given is not None and right is not None and boxes.overlap(given, right) >= boxes.ENOUGH)

    def metrics(self, samples: Sequence[Sample], scores: Sequence[float]) -> Mapping[str, Sequence[float]]:
        """The scores of every family, by its name in words; none where there is one family only."""
        if len(self._shares) == 1:
            return {}
        return {
            family.replace("_", " "): [
                score for sample, score in zip(samples, scores, strict=True) if sample.tags["family"] == family
            ]
            for family in self._shares
        }

    def _item(self, split: str, index: int) -> tuple[Item, np.random.Generator, Mode]:
        """What a sample asks; returns it, the generator to draw its scenes with, and how it is asked."""
        if not 0 <= index < self.length(split):
            raise IndexError(f"split '{split}' of 'digit_scenes' has {self.length(split)} samples; no {index}.")
        config = self.config
        place = [config.seed, _SPLITS.index(split), index]
        rng = np.random.default_rng(place)
        item = _FAMILIES[self._family(place)](rng, self._rules)
        drawn = rng.random()
        if split != "train":
            return item, rng, "tool"
        if drawn >= config.forced + config.blind:
            needless = _drawn_at(place, _NEEDLESS_DRAW) < config.needless
            return item, rng, "needless" if needless and item.spare and not item.looks else "tool"
        return item, rng, "blind" if drawn < config.blind else "forced"

    def _family(self, place: Sequence[int]) -> str:
        """The family of the sample at a place."""
        left = _drawn_at(place, _FAMILY_DRAW)
        for family, share in self._shares.items():
            left -= share
            if left < 0:
                return family
        return family

    def _demands(self, split: str, index: int) -> bool:
        """Whether the answer to a sample is demanded with what a zoom shows."""
        place = [self.config.seed, _SPLITS.index(split), index]
        return split == "train" and _drawn_at(place, _DEMANDED_DRAW) < self.config.demanded

    def _style(self, split: str, item: Item) -> Style:
        config = self.config
        return Style(
            split,
            config.size,
            1 if item.close else config.cells,
            config.difficulty,
            config.camouflage,
            config.hands if split == "train" else 0.0,
        )

    def _answer(self, item: Item, drafts: Sequence[Draft], style: Style) -> str:
        if item.target is None:
            return item.answer
        image, thing = item.target
        return boxes.written(outline(drafts[image], thing, style), style.size, self.config.steps)

    def _trace(self, item: Item, answer: str, mode: Mode, demanded: bool = False) -> tuple[GivenTurn, ...]:
        """The turns that lead to the answer."""
        if mode == "blind":
            return (GivenTurn("no image", answer=answer),)
        looks = (item.spare,) if mode == "needless" and item.spare else item.looks
        if mode == "forced" or not looks:
            return (GivenTurn(item.thought, answer=answer),)
        cell = self.config.size // self.config.cells
        regions: list[tuple[int, Box]] = [(image, tuple(float(side * cell) for side in span)) for image, span in looks]
        return (
            GivenTurn(item.thought, inquiry=item.inquiry, boxes=tuple(regions), demanded=demanded),
            GivenTurn(item.found, answer=answer),
        )


def _drawn_at(place: Sequence[int], number: int) -> float:
    """Draw from [0, 1) for the sample at a place, apart from its other draws."""
    return float(np.random.default_rng([*place, number]).random())


def _drafts(rng: np.random.Generator, item: Item, style: Style) -> list[Draft]:
    """The random numbers every image is drawn by; frames of one film share them, but for how digits are written."""
    if not item.film:
        return [draft(rng, [thing.name for thing in things], style) for things in item.scenes]
    names = list(dict.fromkeys(thing.name for things in item.scenes for thing in things))
    first = draft(rng, names, style)
    # Or a digit that changes would be seen to change, from afar and unread.
    return [first, *(written_anew(rng, first) for _ in item.scenes[1:])]


def _drawn(rng: np.random.Generator, item: Item, drafts: Sequence[Draft], style: Style) -> tuple[Pixels, ...]:
    return tuple(draw(rng, drafted, things, style) for drafted, things in zip(drafts, item.scenes, strict=True))
