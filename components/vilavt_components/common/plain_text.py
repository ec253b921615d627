"""Text that a model wrote, for tokenizers in which names of special tokens would be read as these tokens."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any


class SpecialNames:
    """The names of a tokenizer's special tokens, in a text that must not stand for them."""

    def __init__(self, names: Iterable[str]) -> None:
        # One letter cannot be cut. The longest first, since one name may begin another.
        found = sorted((name for name in set(names) if len(name) > 1), key=len, reverse=True)
        # Cleaning may lower letters after the names were looked for.
        self._pattern = re.compile("|".join(map(re.escape, found)) or "(?!)", re.IGNORECASE)

    def cut(self, text: str) -> str:
        """Return the text with a space after the first letter of each name, so that it is none any more."""
        # Tokenizers normalise too: a name in wide letters becomes one in ASCII.
        normal = unicodedata.normalize("NFKC", text)
        if not self._pattern.search(normal):
            return text
        return self._pattern.sub(lambda found: f"{found[0][0]} {found[0][1:]}", normal)


class PlainEncoder:
    """Encodes texts with a transformers tokenizer, with its special tokens around them and none of them inside."""

    def __init__(self, tokenizer: Any, prefix: str = "") -> None:
        self._tokenizer, self._prefix = tokenizer, prefix
        added = {token: str(each) for token, each in tokenizer.added_tokens_decoder.items() if each.special}
        names = {*added.values(), *map(str, tokenizer.all_special_tokens)}
        self._names = SpecialNames(names)
        # An unknown word is no special token that was written.
        self._special = {*added, *tokenizer.all_special_ids} - {tokenizer.unk_token_id}
        self._around = self._count_special(tokenizer.encode(""))
        # A recipe may have special tokens in its prefix on purpose.
        self._splits = self._count_special(tokenizer.encode(prefix)) == self._around

    def _count_special(self, ids: list[int]) -> int:
        return sum(token in self._special for token in ids)

    def encode(self, text: str, max_tokens: int) -> list[int]:
        """Return at most `max_tokens` ids of the prefix and the text; names of special tokens in it are plain words."""
        options: dict[str, Any] = {"truncation": True, "max_length": max_tokens}
        if self._splits:
            ids: list[int] = self._tokenizer.encode(self._prefix + text, split_special_tokens=True, **options)
            # Vocabularies of pieces (T5, XLM-R) have these names as pieces too, and find them in spite of that.
            if self._count_special(ids) <= self._around:
                return ids
        cut: list[int] = self._tokenizer.encode(self._prefix + self._names.cut(text), **options)
        return cut
