"""Printing a chat: thoughts while they are written, the regions looked at, the answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from vilavt_toolkit.chat.events import (
    Answered,
    Demanded,
    Event,
    Probed,
    RegionsShown,
    Rejected,
    TokenWritten,
    ToolCalled,
)
from vilavt_toolkit.contracts import Dialogue
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.report.trace import TraceRegion

if TYPE_CHECKING:
    from rich.console import Console

TurnPart = Literal["thought", "answer"]

_STYLES = {"thought": "dim", "answer": "bold"}
_LABELS = {"thought": "thought: ", "answer": ""}
# Tags at the end of the text so far, whole or begun: a thought is held back from where one may begin.
_TRAILING_TAGS = re.compile(r"(?:\s*</?\w*>?)*\s*$")
_LEADING_TAG = re.compile(r"\s*<\w+>\s*")
_BEGUN_TAG = re.compile(r"</?\w*$")
# A model's text and the names of files may hold control characters, which could move a terminal's cursor, or worse.
_CONTROLS = dict.fromkeys({*range(32), *range(127, 160)} - {9, 10}, "\N{REPLACEMENT CHARACTER}")


class StreamedTurn:
    """Splits a turn into thought and answer while it is written, and leaves out its tags and its call.

    It works with any dialogue: stop strings that close a tag say which tag opens the call or the answer, and `parse`
    says which of the two it is. If a dialogue has no such tags, all text is thought.
    """

    def __init__(self, dialogue: Dialogue, opened: str = "") -> None:
        self._dialogue = dialogue
        closing = (re.fullmatch(r"</(\w+)>", stop) for stop in dialogue.stop_strings)
        names = [found[1] for found in closing if found is not None]
        self._opening = re.compile(f"<({'|'.join(names)})>") if names else None
        self._is_answer: bool | None = None
        # The tag that the chat template has opened for the model belongs to the turn.
        self._text = opened
        self.texts: dict[TurnPart, str] = {"thought": "", "answer": ""}
        """The text of each part so far."""

    def add_text(self, text: str) -> list[tuple[TurnPart, str]]:
        """Add a piece of the turn, and return what it adds to each part."""
        self._text += text
        added: list[tuple[TurnPart, str]] = []
        # The whole turn is split again each time: a tag may come in pieces, and turns are short.
        for part, known in self._split_text().items():
            if len(known) > len(self.texts[part]):
                added.append((part, known[len(self.texts[part]) :]))
                self.texts[part] = known
        return added

    def _split_text(self) -> dict[TurnPart, str]:
        opened = self._opening.search(self._text) if self._opening is not None else None
        thought = self._text if opened is None else self._text[: opened.start()]
        thought = _TRAILING_TAGS.sub("", _LEADING_TAG.sub("", thought, count=1)).lstrip()
        return {"thought": thought, "answer": self._read_answer(opened) if opened is not None else ""}

    def _read_answer(self, opened: re.Match[str]) -> str:
        """Return the text in the opened tag so far if the tag is the answer's, else ""."""
        closing = f"</{opened[1]}>"
        if self._is_answer is None:
            # Only the dialogue knows its tags: the turn is parsed as if it ended in this one, with one letter in it.
            self._is_answer = self._dialogue.parse(f"{self._text[: opened.end()]}x{closing}").answer is not None
        if not self._is_answer:
            return ""
        body, closed, _ = self._text[opened.end() :].partition(closing)
        return (body if closed else _BEGUN_TAG.sub("", body)).strip()


class ConsolePrinter:
    """Prints the events of one question on a console, each as it happens."""

    def __init__(self, console: Console, model: VisualChatModel) -> None:
        self._console, self._model = console, model
        self._turn: StreamedTurn | None = None
        self._open_part: TurnPart | None = None
        """The part of a turn after which the cursor stands; None at the beginning of a line."""

    def print_line(self, text: str, style: str = "dim") -> None:
        """Print a line of its own, after whatever is being written."""
        self.end_line()
        self._console.print(text.translate(_CONTROLS), style=style, soft_wrap=True)

    def end_line(self) -> None:
        """End the line that is being written, if there is one."""
        if self._open_part is not None:
            self.break_line()

    def break_line(self) -> None:
        """Begin a new line, whatever is on this one: a turn, or what the terminal wrote for Ctrl-C."""
        self._console.print()
        self._open_part = None

    def print_event(self, event: Event) -> None:
        """Print an event of `Chat.stream`."""
        if isinstance(event, TokenWritten):
            self._print_token(event)
            return
        streamed_answer = self._turn.texts["answer"] if self._turn is not None else ""
        self._turn = None
        match event:
            case ToolCalled(call=call):
                self.print_line(f"inquiry: {call.inquiry}")
            case RegionsShown(regions=regions):
                for region in regions:
                    self.print_line(f"looked at: {_describe_region(region)}")
            case Rejected(problem=problem):
                self.print_line(f"rejected: {problem}")
            case Probed(probe=probe):
                would = probe.answer if probe.answer is not None else "no answer"
                self.print_line(f"would answer: {would} (probability {probe.probability:.3f})")
            case Demanded(why=why):
                self.print_line(f"answer demanded: {why}")
            case Answered(answer=answer):
                # The answer is on the console already, unless it came from a probe or there is none.
                if answer.text is None or answer.text != streamed_answer:
                    self.print_line(str(answer), "bold")
                self.print_line(f"stopped: {answer.why}; {answer.cost['seconds']:g} seconds")

    def _print_token(self, event: TokenWritten) -> None:
        if event.id == self._model.language_model.end_of_turn:
            return
        if self._turn is None:
            self._turn = StreamedTurn(self._model.dialogue, self._model.language_model.turn_template.opened)
        for part, text in self._turn.add_text(event.text):
            label = "" if part == self._open_part else _LABELS[part]
            if self._open_part not in (None, part):
                self.end_line()
            self._open_part = part
            self._console.print(f"{label}{text.translate(_CONTROLS)}", style=_STYLES[part], end="", soft_wrap=True)


def _describe_region(region: TraceRegion) -> str:
    box = ", ".join(f"{side:g}" for side in region.box)
    return f"region {region.index}, ({box}) of {region.source.name}"


def format_cost(cost: Mapping[str, float]) -> str:
    """Return a cost in one line: `2 turns, 310 tokens read, ...`."""
    return ", ".join(f"{_format_number(value)} {name.replace('_', ' ')}" for name, value in cost.items())


def _format_number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.4g}" if value < 1000 else f"{value:,.1f}"
