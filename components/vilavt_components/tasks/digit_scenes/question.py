"""A question of task `digit_scenes` before anything is rendered, and the words that thoughts are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from vilavt_components.tasks.digit_scenes.layout import SceneObject
from vilavt_components.tasks.generated.grid import Span, cell_number, enclosing_span

AnswerKind = Literal["number", "text", "yes_no", "box"]


@dataclass(frozen=True)
class SceneQuestion:
    """A question with its scenes, its answer, and the thoughts that lead to it.

    Thoughts are made to be learned by a small model: every word is one token wherever it stands, a cell comes before
    the object in it, and the asked object is restated before anything is looked up about it.
    """

    family: str
    kind: str
    question: str
    answer: str
    """Empty if the answer is the box of `answer_object`."""
    answer_kind: AnswerKind
    scenes: tuple[tuple[SceneObject, ...], ...]
    """The objects of every image, in reading order."""
    thought: str
    """The thought about the overviews."""
    zooms: tuple[tuple[int, Span], ...] = ()
    """Regions zoomed into under one inquiry, (image, its cells) each; empty if the overviews answer."""
    inquiry: str = ""
    zoom_thought: str = ""
    """The thought about the zoom."""
    needless_zoom: tuple[int, Span] | None = None
    """A region that could be zoomed into but does not help, (image, its cells)."""
    shows_several: bool = False
    """True if a zoom shows two digits, of which the inquiry names one."""
    answer_object: tuple[int, SceneObject] | None = None
    """(image, object whose box is the answer)"""
    is_close_up: bool = False
    """True if the only object fills the image."""
    is_film: bool = False
    """True if the images are frames of one video, in which objects and ground look alike."""


def list_objects(objects: Iterable[SceneObject], cells: int) -> str:
    """Write every object as "cell colour shape"."""
    return " ".join(f"{cell_number(item.cell, cells)} {item.name}" for item in objects)


def list_cells(objects: Sequence[SceneObject], cells: int) -> str:
    """Write the cells of objects, "none" for no object."""
    return " ".join(str(cell_number(item.cell, cells)) for item in objects) or "none"


def span_of_objects(objects: Iterable[SceneObject]) -> Span:
    """Return the smallest rectangle of cells that holds objects."""
    return enclosing_span(item.cell for item in objects)


def yes_no(truth: bool) -> str:
    """Write the answer to a question of yes or no."""
    return "yes" if truth else "no"
