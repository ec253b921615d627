"""Task `traces`: worked examples of one's own, whose boxes are in the coordinates of the originals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from vilavt_components.tasks.files.plain_rows import ROW_FIELDS, PlainRowsConfig, PlainRowsTask, read_plain_question
from vilavt_components.tasks.files.questions import TAG
from vilavt_components.tasks.files.tiny_files import tiny_plain_rows
from vilavt_toolkit.contracts import Box, Sample, TraceTurn
from vilavt_toolkit.data.fields import Fields, is_finite_number
from vilavt_toolkit.data.originals import Size
from vilavt_toolkit.registry import tasks
from vilavt_toolkit.utils.text import format_value

_TURN_FIELDS = ("question", "thought", "inquiry", "boxes", "answer")
_BOX_FIELDS = ("index", "box")
_BOX_LENGTHS = {"image": 4, "video": 5, "point_cloud": 6}
"""Numbers of a box in an original of each kind; a video's begin with the frame."""
_BOX_FORMS = {
    "image": "[x1, y1, x2, y2]",
    "video": "[frame, x1, y1, x2, y2]",
    "point_cloud": "[x1, y1, z1, x2, y2, z2]",
}


@dataclass(frozen=True, kw_only=True)
class TracesConfig(PlainRowsConfig):
    """Settings of task `traces`."""


@tasks.register("traces", TracesConfig)
class Traces(PlainRowsTask):
    """Rows of a question, turns of thought, inquiry and boxes in pixels of the originals, and an answer.

    A turn may begin with a further question. The toolkit cuts the crops and writes the turns in the recipe's dialogue.
    Files are of the kinds of `questions`.
    """

    name: ClassVar[str] = "traces"
    known_fields: ClassVar[tuple[str, ...]] = (*ROW_FIELDS, "turns", "tool")
    config: TracesConfig

    @classmethod
    def tiny(cls) -> TracesConfig:
        """Return settings of made-up files in a temporary folder."""
        folder = tiny_plain_rows()
        return TracesConfig(
            files=f"{folder}/traces.jsonl", test_files=f"{folder}/questions.jsonl", forced=0.2, blind=0.1
        )

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """Return True if a row is a question with turns."""
        return "question" in row and "turns" in row and not {"question_type", "problem_type"} & set(row)

    def read_sample(self, fields: Fields, training: bool) -> Sample:
        """Read the sample of a row; adds what is wrong with it to `fields.problems`."""
        # The answer may stand in the row, in the turn that answers its question, or in both.
        if not fields.has_value("answer"):
            fields = fields.replace_value("answer", _find_first_answer(fields.row))
        sample = replace(read_plain_question(fields), tool=fields.read_flag("tool", True))
        # A file that is asked may hold questions alone.
        turns = _read_turns(fields, len(sample.originals)) if training or fields.has_value("turns") else []
        return replace(sample, trace=_finish_trace(fields, turns, sample) if training else ())

    def check_sizes(self, fields: Fields, sample: Sample, sizes: Sequence[Size | None]) -> None:
        """Refuse boxes that are not inside their images."""
        # Regions can be counted only if every original is an image: the originals first, then every zoom.
        shown = list(sizes) if None not in sizes else []
        for number, turn in enumerate(sample.trace):
            zoomed = []
            for place, (index, box) in enumerate(turn.boxes):
                zoomed.append(size := shown[index] if index < len(shown) else None)
                if size is not None and len(box) == 4 and not _is_box_inside(box, size):
                    fields.add_problem(
                        f"turns[{number}].boxes[{place}]",
                        f"is {_write_box(box)}, which is no box in an image of {size[0]} x {size[1]} pixels. Write "
                        "[x1, y1, x2, y2] with x1 < x2 and y1 < y2, in pixels of the original.",
                    )
            shown += zoomed if shown else []


def _is_box_inside(box: Box, size: Size) -> bool:
    # A pixel beyond the edge is rounding, and is cut off.
    is_ordered = box[0] < box[2] and box[1] < box[3]
    return is_ordered and min(box[:2]) >= -1 and box[2] <= size[0] + 1 and box[3] <= size[1] + 1


def _write_box(box: Box) -> str:
    return f"[{', '.join(f'{side:g}' for side in box)}]"


def _find_first_answer(row: Mapping[str, Any]) -> Any:
    """Return the answer to the row's own question: that of the last turn before a further question."""
    turns = row.get("turns")
    turns = turns if isinstance(turns, list) else []
    asked = [str(turn.get("question") or "").strip() if isinstance(turn, Mapping) else "" for turn in turns]
    last = turns[_index_of_answer(asked)] if turns else None
    return last.get("answer") if isinstance(last, Mapping) else None


def _index_of_answer(asked: Sequence[str]) -> int:
    """Return the index of the turn that answers the row's question; `asked` are the further questions of all turns."""
    return next((number for number, question in enumerate(asked) if number and question), len(asked)) - 1


def _read_turns(fields: Fields, originals: int) -> list[TraceTurn]:
    """Read the turns of a row with so many originals, [] if one of them cannot be read."""
    value = fields.row.get("turns")
    if not isinstance(value, list) or not value:
        what = "is missing" if value is None else f"is {format_value(value)}"
        fields.add_problem("turns", f"{what}. It must be a list of turns, each with `boxes` or an `answer`.")
        return []
    before = len(fields.problems)
    turns = [_read_turn(fields, f"turns[{number}]", item, originals) for number, item in enumerate(value)]
    return turns if len(fields.problems) == before else []


def _read_turn(fields: Fields, where: str, value: Any, originals: int) -> TraceTurn:
    if not isinstance(value, Mapping):
        fields.add_problem(
            where, f"is {format_value(value)}. It must be an object with a thought, and boxes or answer."
        )
        return TraceTurn("")
    turn = Fields(value)
    for name in turn.find_unknown(_TURN_FIELDS):
        turn.add_problem(name, f"is no field of a turn. There are {', '.join(_TURN_FIELDS)}: rename or remove it.")
    thought, inquiry = turn.read_text("thought", required=False), turn.read_text("inquiry", required=False)
    # Tables write "" where a turn asks nothing.
    question = turn.read_text("question", required=False).strip()
    if TAG.search(question):
        turn.add_problem("question", "has an image tag, and originals are shown with the row's question. Remove it.")
    boxes = _read_boxes(turn, originals)
    answer = turn.read_plain_text("answer") if turn.has_value("answer") else None
    fields.add_problems(turn.problems, f"{where}.")
    return TraceTurn(thought, inquiry, tuple(boxes), answer, question=question)


def _read_boxes(turn: Fields, originals: int) -> list[tuple[int, Box]]:
    """Read the boxes of a turn: a list of boxes, or one alone; each is numbers, or an object with index and box."""
    value = turn.row.get("boxes")
    if value is None:
        return []
    items = value if isinstance(value, list) and not any(isinstance(item, int | float) for item in value) else [value]
    return [_read_box(turn, f"boxes[{number}]", item, originals) for number, item in enumerate(items)]


def _read_box(turn: Fields, where: str, value: Any, originals: int) -> tuple[int, Box]:
    """Read a box and the index of the region that it is in, 0 if the row has one original."""
    index: Any = 0
    if not isinstance(value, Mapping) and originals > 1:
        turn.add_problem(
            where, f'does not say which of {originals} originals it is in. Write {{"index": 0, "box": [...]}}.'
        )
    if isinstance(value, Mapping):
        named = Fields(value)
        for name in named.find_unknown(_BOX_FIELDS):
            named.add_problem(name, "is no field of a box. Write its `index` and `box` alone.")
        turn.add_problems(named.problems, f"{where}.")
        index, value = value.get("index", 0), value.get("box")
    # A problem is noted and reading goes on, so that a row tells all of its problems at once.
    if type(index) is not int or index < 0:
        turn.add_problem(f"{where}.index", f"is {format_value(index)}. It must be a whole number from 0.")
        index = 0
    if not isinstance(value, list | tuple) or not all(is_finite_number(side) for side in value):
        turn.add_problem(
            where, f"is {format_value(value)}. It must be a list of numbers, [x1, y1, x2, y2] in an image."
        )
        return index, ()
    return index, tuple(float(side) for side in value)


def _finish_trace(fields: Fields, turns: Sequence[TraceTurn], sample: Sample) -> tuple[TraceTurn, ...]:
    """Return a whole trace, in which every question is answered; notes turns that no model could write."""
    if not turns:
        return ()
    finished = list(turns)
    if turns[0].question:
        fields.add_problem("turns[0].question", "is before the row's own `question`, which is asked first. Remove it.")
    first = _index_of_answer([turn.question for turn in turns])
    if first == len(turns) - 1:
        # In a trace of one question the row may give the answer.
        finished[-1] = turns[-1] if turns[-1].boxes else replace(turns[-1], answer=sample.answer)
        finished += [TraceTurn("", answer=sample.answer)] if turns[-1].boxes else []
    if turns[first].answer not in (None, sample.answer):
        fields.add_problem(
            f"turns[{first}].answer",
            f"is {format_value(turns[first].answer)}, and the row's answer {format_value(sample.answer)}. Leave one "
            "out.",
        )
    _check_order(fields, turns, finished)
    if any(turn.boxes for turn in turns) and not sample.tool:
        fields.add_problem("tool", "is false, and the turns zoom. Leave out their boxes, or `tool`.")
    _check_regions(fields, turns, sample)
    return tuple(finished)


def _check_order(fields: Fields, turns: Sequence[TraceTurn], finished: Sequence[TraceTurn]) -> None:
    """Check that turns zoom until the last one before a further question or the end, which answers."""
    for number, turn in enumerate(turns):
        where, following = f"turns[{number}]", finished[number + 1 : number + 2]
        is_last = not following or bool(following[0].question)
        if turn.boxes and turn.answer is not None:
            fields.add_problem(where, "has boxes and an answer. Every turn zooms, and the last one answers.")
        elif is_last and finished[number].answer is None:
            fields.add_problem(where, "ends its question without an `answer`. Add one.")
        elif not is_last and not turn.boxes:
            fields.add_problem(where, "has no boxes, and is not the last. Every turn zooms, and the last one answers.")


def _check_regions(fields: Fields, turns: Sequence[TraceTurn], sample: Sample) -> None:
    """Check that boxes are in regions that were shown by then, and have the numbers of their original's kind."""
    shown = [original.kind for original in sample.originals]
    # How many first views a video has is for its source to say, and the check knows no source.
    is_countable = not {"video", "any"} & set(shown)
    for number, turn in enumerate(turns):
        kinds = []
        for place, (index, box) in enumerate(turn.boxes):
            where = f"turns[{number}].boxes[{place}]"
            if is_countable and index >= len(shown):
                fields.add_problem(where, f"is in region {index}, and {len(shown)} were shown by then, from 0 on.")
                continue
            kind = shown[index] if is_countable else shown[0] if len(set(shown)) == 1 else "any"
            kinds.append(kind)
            if box and len(box) != _BOX_LENGTHS.get(kind, len(box)):
                fields.add_problem(
                    where, f"has {len(box)} numbers. Write {_BOX_FORMS[kind]}, as of the whole original."
                )
        shown += kinds
