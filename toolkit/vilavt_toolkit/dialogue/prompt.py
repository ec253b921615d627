"""Prompts as pieces: text and feature slots, their token ids, and the tail that can still change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from vilavt_toolkit.contracts import Slot, Tokenizer, TurnTemplate


class Tail(NamedTuple):
    """The text after the last feature of an unanswered user turn, in its two versions."""

    start: int
    """Index in the ids at which it begins."""
    plain: tuple[str, ...]
    """Its text pieces; the last one begins the assistant's turn."""
    demanding: tuple[str, ...]
    """The same turn when it demands the answer."""

    def text_to_continue(self) -> tuple[str, ...]:
        """Return the text before the assistant's turn, ready for more words of the user."""
        said = self.plain[:-1]
        # Two questions in one user turn need whitespace between them.
        is_separated = not said or not said[-1] or said[-1][-1].isspace()
        return said if is_separated else (*said, "\n")


def encode_pieces(tokenizer: Tokenizer, pieces: Sequence[str | Slot]) -> list[list[int] | Slot]:
    """Encode the text of a prompt and keep its slots.

    The result alternates: ids, slot, ids, ..., ids. It begins and ends with ids, which may be empty.
    """
    encoded: list[list[int] | Slot] = []
    text = ""
    for piece in pieces:
        if isinstance(piece, str):
            # Text is joined before it is encoded: a token may span two neighbouring pieces.
            text += piece
            continue
        encoded += [tokenizer.encode(text), piece]
        text = ""
    return [*encoded, tokenizer.encode(text)]


def text_after_features(pieces: Sequence[str | Slot]) -> tuple[str, ...]:
    """Return the text pieces after the last slot; all of them if there is no slot."""
    text: list[str] = []
    for piece in pieces:
        if isinstance(piece, Slot):
            text.clear()
        else:
            text.append(piece)
    return tuple(text)


def frame_user_text(template: TurnTemplate, text: str) -> list[str | Slot]:
    """Return a user turn of text only, from the end of the model's turn to the beginning of its next."""
    return [f"{template.following}{text}{template.reply}"]


def frame_system_prompt(template: TurnTemplate, system: str) -> str:
    """Return the text before the first user turn's content, with the system prompt unless it is empty."""
    if system and template.system is not None:
        return f"{template.system[0]}{system}{template.system[1]}"
    # Some chat templates refuse the system role. The prompt then opens the first user turn.
    return f"{template.first}{system}\n\n" if system else template.first
