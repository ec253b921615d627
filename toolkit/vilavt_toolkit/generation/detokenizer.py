"""Decoding text token by token."""

from __future__ import annotations

from vilavt_toolkit.contracts import Tokenizer

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class IncrementalDetokenizer:
    """Decodes a text token by token. A token may be part of a character, and may decode differently on its own."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._emitted = self._text = ""

    def add_token(self, token: int, tokenizer: Tokenizer) -> str:
        """Add a token and return the text that it completes; empty in the middle of a character."""
        self._ids.append(token)
        self._text = tokenizer.decode(self._ids)
        if self._text.endswith(_UNFINISHED):
            return ""
        new = self.flush()
        # The last token stays as context: some tokenizers drop the space of a token that has nothing before it.
        self._ids = self._ids[-1:]
        self._emitted = self._text = tokenizer.decode(self._ids)
        return new

    def flush(self) -> str:
        """Return the rest of a text that ends in the middle of a character."""
        rest, self._emitted = self._text[len(self._emitted) :], self._text
        return rest
