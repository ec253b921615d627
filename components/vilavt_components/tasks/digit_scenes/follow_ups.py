"""Further questions of task `digit_scenes` about the scene of a question that was answered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vilavt_components.tasks.digit_scenes.question import SceneQuestion, list_cells, span_of_objects
from vilavt_components.tasks.generated.grid import Span

_SHAPE_SHARE = 0.25
"""Share of further questions that the overview answers."""
_SHORT_SHARE = 0.5
"""Share of questions for a digit after another that are asked in short, "and on the blue square?"."""


@dataclass(frozen=True)
class FollowUp:
    """A further question about the first image, its answer, and the thoughts that lead to it."""

    question: str
    answer: str
    thought: str
    """Without the list of objects, which the thought before it has."""
    inquiry: str = ""
    zoom: Span | None = None
    """The cells of the asked object; None if the overview answers."""


def make_follow_ups(
    rng: np.random.Generator, first: SceneQuestion, cells: int, own_colours: bool
) -> tuple[FollowUp, ...]:
    """Make one or two further questions about other objects of a scene than the one that was asked about."""
    (objects,) = first.scenes
    # The inquiry, or what would be one, is the name of the asked object.
    others = [item for item in objects if item.name != first.inquiry]
    count = 1 + int(rng.integers(2))
    made: list[FollowUp] = []
    after_digit = first.kind == "digit"
    for place in rng.permutation(len(others))[:count]:
        item, draws = others[place], rng.random(2)
        thought = f"so {item.name} {list_cells([item], cells)}"
        # With colours of its own, an object is found by its colour alone.
        if own_colours and draws[0] < _SHAPE_SHARE:
            made.append(FollowUp(f"what shape is the {item.colour} object?", item.shape, thought))
            after_digit = False
            continue
        is_short = after_digit and draws[1] < _SHORT_SHARE
        question = f"and on the {item.name}?" if is_short else f"what digit is on the {item.name}?"
        made.append(FollowUp(question, str(item.digit), thought, item.name, span_of_objects([item])))
        after_digit = True
    return tuple(made)
