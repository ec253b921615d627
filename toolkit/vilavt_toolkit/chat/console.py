"""What happens in a chat, told on a console: thoughts while they are written, what was looked at, the answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from vilavt_toolkit.chat.events import Answered, Event
from vilavt_toolkit.contracts import Dialogue
from vilavt_toolkit.generation.events import Called, Demanded, Looked, Probed, Told, Written
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.report.trace import TraceRegion

if TYPE_CHECKING:
    from rich.console import Console

Kind = Literal["thought", "answer"]

_STYLES = {"thought": "dim", "answer": "bold"}
_LABELS = {"thought": "thought: ", "answer": ""}
# What may yet become a tag, or is one, at the end of what was written.
_TAGS_BEHIND = re.compile(r"(?:\s*</?\w*>?)*\s*$")
_TAG_BEFORE = re.compile(r"\s*<\w+>\s*")
_BEGUN_TAG = re.compile(r"</?\w*$")
# A model, and the names of files, may hold what would move a terminal's cursor, or worse.
_CONTROLS = dict.fromkeys({*range(32), *range(127, 160)} - {9, 10}, "\N{REPLACEMENT CHARACTER}")


class TurnParts:
    """The thought and the answer of a turn while it is written, its tags and its call left out.

    Of the dialogue it knows the stop strings, of which those that close a tag tell what opens it, and what `parse`
    makes of a turn. Where there are no such tags all is thought.
    """

    def __init__(self, dialogue: Dialogue) -> None:
        self._dialogue = dialogue
        closing = (re.fullmatch(r"</(\w+)>", stop) for stop in dialogue.stop_strings)
        names = [found[1] for found in closing if found is not None]
        self._opening = re.compile(f"<({'|'.join(names)})>") if names else None
        self._answers: bool | None = None
        self._text = ""
        self.told: dict[Kind, str] = {"thought": "", "answer": ""}
        """What there is of each so far."""

    def add(self, text: str) -> list[tuple[Kind, str]]:
        """What a piece of text adds to them."""
        self._text += text
        added: list[tuple[Kind, str]] = []
        for kind, known in self._split().items():
            if len(known) > len(self.told[kind]):
                added.append((kind, known[len(self.told[kind]) :]))
                self.told[kind] = known
        return added

    def _split(self) -> dict[Kind, str]:
        opened = self._opening.search(self._text) if self._opening is not None else None
        thought = self._text if opened is None else self._text[: opened.start()]
        thought = _TAGS_BEHIND.sub("", _TAG_BEFORE.sub("", thought, count=1)).lstrip()
        return {"thought": thought, "answer": self._answer(opened) if opened is not None else ""}

    def _answer(self, opened: re.Match[str]) -> str:
        """What stands in the tag so far, if it is the answer's: if a turn that ends in it has one."""
        closing = f"</{opened[1]}>"
        if self._answers is None:
            self._answers = self._dialogue.parse(f"{self._text[: opened.end()]}x{closing}").answer is not None
        if not self._answers:
            return ""
        body, closed, _ = self._text[opened.end() :].partition(closing)
        return (body if closed else _BEGUN_TAG.sub("", body)).strip()


class Teller:
    """Tells the events of one question on a console, each as it happens."""

    def __init__(self, console: Console, model: VisualChatModel) -> None:
        self._console, self._model = console, model
        self._parts: TurnParts | None = None
        self._open: Kind | None = None

    def line(self, text: str, style: str = "dim") -> None:
        """Print a line of its own, behind whatever was being written."""
        self.finish()
        self._console.print(text.translate(_CONTROLS), style=style, soft_wrap=True)

    def finish(self) -> None:
        """End the line that is being written."""
        if self._open is not None:
            self.leave()

    def leave(self) -> None:
        """Leave the line, whatever stands on it: what was being written, or what the terminal wrote for Ctrl-C."""
        self._console.print()
        self._open = None

    def tell(self, event: Event) -> None:
        """Tell what happened."""
        if isinstance(event, Written):
            self._written(event)
            return
        answer = self._parts.told["answer"] if self._parts is not None else ""
        self._parts = None
        match event:
            case Called(call=call):
                self.line(f"inquiry: {call.inquiry}")
            case Looked(regions=regions):
                for region in regions:
                    self.line(f"looked at: {_place(region)}")
            case Told(problem=problem):
                self.line(f"told: {problem}")
            case Probed(probe=probe):
                would = probe.answer if probe.answer is not None else "no answer"
                self.line(f"would answer: {would} (probability {probe.probability:.3f})")
            case Demanded(why=why):
                self.line(f"answer demanded: {why}")
            case Answered(answer=found):
                if found.text is None or found.text != answer:
                    self.line(str(found), "bold")
                self.line(f"stopped: {found.why}; {found.cost['seconds']:g} seconds")

    def _written(self, event: Written) -> None:
        if event.id == self._model.language_model.end_of_turn:
            return
        if self._parts is None:
            self._parts = TurnParts(self._model.dialogue)
        for kind, text in self._parts.add(event.text):
            label = "" if kind == self._open else _LABELS[kind]
            if self._open not in (None, kind):
                self.finish()
            self._open = kind
            self._console.print(f"{label}{text.translate(_CONTROLS)}", style=_STYLES[kind], end="", soft_wrap=True)


def _place(region: TraceRegion) -> str:
    """A region by its index, its original, and its box there."""
    box = ", ".join(f"{side:g}" for side in region.box)
    return f"region {region.index}, ({box}) of {region.source.name}"


def priced(cost: Mapping[str, float]) -> str:
    """A cost in one line."""
    return ", ".join(f"{_number(value)} {name.replace('_', ' ')}" for name, value in cost.items())


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.4g}" if value < 1000 else f"{value:,.1f}"
