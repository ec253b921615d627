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
_OPENING_TAG = re.compile(r"<\w+>")
_LONGEST_TAG = 40
"""A longer text after < is no tag, and is not held back."""


class StreamedTurn:
    """Splits a turn into thought and answer while it is written, and leaves out its tags and its call.

    It works with any dialogue: stop strings that close a tag say which tag opens the call or the answer, and `parse`
    says which of the two it is. If a dialogue has no such tags, all text is thought.
    """

    def __init__(self, dialogue: Dialogue, opened: str = "") -> None:
        self._dialogue = dialogue
        closing = (re.fullmatch(r"</(\w+)>", stop) for stop in dialogue.stop_strings)
        self._opening = {f"<{found[1]}>" for found in closing if found is not None}
        self._pieces: list[str] = []
        """The turn so far, which `parse` needs once."""
        self._part: TurnPart | None = "thought"
        """The part that is being written; None: a call, or what follows the answer."""
        self._closing = ""
        self._held: list[str] = []
        """Blanks and tags since the last text. They belong to the part only if text follows."""
        self._tag = ""
        """The tag that has begun, as far as it is written."""
        self._begun: set[TurnPart] = set()
        self.texts: dict[TurnPart, str] = {"thought": "", "answer": ""}
        """The text of each part so far."""
        # The tag that the chat template has opened for the model belongs to the turn.
        self.add_text(opened)

    def add_text(self, text: str) -> list[tuple[TurnPart, str]]:
        """Add a piece of the turn, and return what it adds to each part."""
        # Letter by letter, each looked at once: a turn may be long, and splitting all of it for each token takes time
        # with its square.
        added: dict[TurnPart, list[str]] = {"thought": [], "answer": []}
        for character in text:
            self._pieces.append(character)
            if self._part is not None:
                added[self._part] += self._add_character(character, self._part)
        found: list[tuple[TurnPart, str]] = [(part, "".join(texts)) for part, texts in added.items() if any(texts)]
        for part, new in found:
            self.texts[part] += new
        return found

    def _add_character(self, character: str, part: TurnPart) -> list[str]:
        """Add a letter of a part, and return the texts that are certain to belong to it now."""
        is_name = character.isalnum() or character == "_" or (character == "/" and self._tag == "<")
        if self._tag and len(self._tag) < _LONGEST_TAG and (is_name or character == ">"):
            self._tag += character
            return self._end_tag(part) if character == ">" else []
        # It was no tag after all: what was held back is text.
        texts = self._release(part, self._tag) if self._tag else []
        self._tag = ""
        if character == "<":
            self._tag = character
        elif character.isspace():
            self._held.append(character)
        else:
            texts += self._release(part, character)
        return texts

    def _end_tag(self, part: TurnPart) -> list[str]:
        tag, self._tag = self._tag, ""
        if part == "thought" and tag in self._opening:
            self._closing, self._held = f"</{tag[1:-1]}>", []
            # Only the dialogue knows its tags: the turn is parsed as if it ended in this one, with one letter in it.
            answers = self._dialogue.parse(f"{''.join(self._pieces)}x{self._closing}").answer is not None
            self._part = "answer" if answers else None
        elif part == "answer" and tag == self._closing:
            self._part = None
        elif part == "thought":
            self._held.append(tag)
        else:
            return self._release(part, tag)
        return []

    def _release(self, part: TurnPart, text: str) -> list[str]:
        """Return what was held back and `text`. At the start of a part nothing stands before its text."""
        held, self._held = self._held, []
        if part not in self._begun:
            self._begun.add(part)
            # The first tag opens the thought. Another one before any text is the model's own.
            tags = [each for each in held if not each.isspace()]
            if tags and _OPENING_TAG.fullmatch(tags[0]):
                tags = tags[1:]
            held = held[held.index(tags[0]) :] if tags else []
        return [*held, text]


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
        self._console.print(text, style=style, soft_wrap=True)

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
            self._console.print(label + text, style=_STYLES[part], end="", soft_wrap=True)


def _describe_region(region: TraceRegion) -> str:
    box = ", ".join(f"{side:g}" for side in region.box)
    return f"region {region.index}, ({box}) of {region.source.name}"


def format_cost(cost: Mapping[str, float]) -> str:
    """Return a cost in one line: `2 turns, 310 tokens read, ...`."""
    return ", ".join(f"{_format_number(value)} {name.replace('_', ' ')}" for name, value in cost.items())


def _format_number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.4g}" if value < 1000 else f"{value:,.1f}"
