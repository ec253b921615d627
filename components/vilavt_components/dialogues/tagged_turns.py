"""The turns that dialogues `native` and `vilavt` share: <think>, then <tool> with JSON, or <answer>."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from vilavt_components.dialogues.grammar import TurnSyntax, build_turn_grammar
from vilavt_toolkit.contracts import BoxSchema, Dialogue, Source, Turn
from vilavt_toolkit.dialogue.tool_calls import CallFormatError, read_call, write_call

BLANK_INQUIRIES_HELP = "carry out a tool call with an empty query (false: refuse it in words)"
_TAGS = re.compile(r"(</?(?:think|tool|answer)>)")


@dataclass(frozen=True)
class TaggedText:
    """A turn's text, split at its tags."""

    tags: tuple[str, ...]
    texts: tuple[str, ...]
    """The texts before each tag, and the text after the last one."""

    @classmethod
    def split(cls, text: str) -> TaggedText:
        """Split a text at its tags, in one pass over it."""
        # Not by one expression for the whole turn: it would scan the rest of the text again from every opened tag.
        pieces = _TAGS.split(text)
        return cls(tuple(pieces[1::2]), tuple(pieces[::2]))

    def action(self) -> tuple[str, str] | None:
        """Return the tag, `tool` or `answer`, that ends the turn, and the text in it.

        None unless it is the only such tag and nothing follows it.
        """
        opened = [place for place, tag in enumerate(self.tags) if tag in ("<tool>", "<answer>")]
        if len(self.tags) < 2 or opened != [len(self.tags) - 2]:
            return None
        name = self.tags[-2][1:-1]
        return (name, self.texts[-2]) if self.tags[-1] == f"</{name}>" and not self.texts[-1].strip() else None

    def thought(self) -> str | None:
        """Return the thought before the action; None unless there is just one, and blank text around it."""
        if self.tags[:-2] != ("<think>", "</think>") or self.texts[0].strip() or self.texts[2].strip():
            return None
        return self.texts[1]


class TaggedDialogue(Dialogue):
    """A dialogue of tagged turns. A subclass gives the syntax, the prompts, and how it finds the parts of a turn."""

    syntax: TurnSyntax

    @abstractmethod
    def fill_system_prompt(self, box_help: tuple[str, str]) -> str:
        """Return the system prompt with a source's `box_help` filled in."""

    @property
    def system(self) -> str:
        """The system prompt for images, or an empty text."""
        return self.fill_system_prompt(Source.box_help)

    def instructions(self, sources: Sequence[Source]) -> str:
        """Return the system prompt, with how boxes in the first source are written."""
        return self.fill_system_prompt(sources[0].box_help) if sources else self.system

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Texts that complete a turn."""
        return ("</tool>", "</answer>")

    def turn_strings(self, box_key: str) -> tuple[str, ...]:
        """Return the constant parts of turns, each of which can be one token of a tokenizer trained on the dialogue.

        Their order is part of the contract with checkpoints: it decides the ids of these tokens.
        """
        # Several tags and the JSON between them form one string, since nothing can stand between them.
        after_thought = f"</think>{self.syntax.after_thought}"
        call_start, call_end = self.syntax.tool_tags
        return (
            "<think>",
            f'{after_thought}{call_start}{{"region": [{{"index": ',
            f', "{box_key}": [',
            ']}, {"index": ',
            ']}], "query": "',
            f'"}}{call_end}',
            f"{after_thought}<answer>",
            "</answer>",
        )

    def grammar(self, written: str, boxes: Sequence[BoxSchema], call: bool) -> str:
        """Return the grammar of how a turn may continue after `written`, as `write` writes it."""
        return build_turn_grammar(self.syntax, written, boxes, call)

    def write(self, turn: Turn) -> str:
        """Write a turn as the model should; the inverse of `parse`."""
        thought = f"<think>{turn.thought}</think>{self.syntax.after_thought}"
        if turn.call is None:
            return f"{thought}<answer>{turn.answer}</answer>"
        call_start, call_end = self.syntax.tool_tags
        return f"{thought}{call_start}{write_call(turn.call)}{call_end}"

    def build_turn(self, thought: str, tag: str, body: str) -> Turn:
        """Build a turn from its thought and the text in its tag, `tool` or `answer`."""
        if tag == "answer":
            answer = body.strip()
            problem = "" if answer else "The answer is empty. Write it between <answer> and </answer>."
            return Turn(thought, answer=answer or None, problem=problem)
        try:
            return Turn(thought, call=read_call(body, self.syntax.max_regions, self.syntax.blank_inquiries))
        except CallFormatError as problem:
            return Turn(thought, problem=str(problem))
