"""A transformers tokenizer for the toolkit, loaded or trained on a corpus, with the text around turns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from vilavt_components.common.hf_errors import as_input_error
from vilavt_components.common.quiet import quiet_transformers
from vilavt_components.common.token_ids import check_token_ids, check_tokens_have_rows
from vilavt_components.language_models.chat_templates import (
    PLAIN_TEMPLATE,
    TURN_END,
    load_turn_template,
    read_turn_template,
)
from vilavt_toolkit.contracts import TurnTemplate

SPECIAL_TOKENS = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
"""The name of a token that is a byte, in vocabularies that fall back to bytes."""


_SEAM = "\ufdd0"
"""Mark at which a text is cut before it is encoded: a code point that Unicode keeps free of any character."""


class HFTokenizer:
    """Turns text into ids and back, without adding special tokens, and knows the text around its model's turns."""

    def __init__(
        self,
        backend: Any,
        placeholder: str,
        frames: tuple[TurnTemplate, int] | None = None,
        chat_template: str | None = None,
    ) -> None:
        self.backend = backend
        if placeholder not in backend.get_vocab():
            backend.add_special_tokens({"additional_special_tokens": [placeholder]}, replace_extra_special_tokens=False)
        self.placeholder: int = backend.convert_tokens_to_ids(placeholder)
        self.turn_template, self.end_of_turn = frames or read_turn_template(backend, chat_template)
        # transformers would warn of every long text; the toolkit's own error says which sample is too long.
        backend.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
        self._framing = re.compile("|".join(map(re.escape, self._list_framing_tokens())) or "(?!)")
        # Not len(backend), since ids may have gaps.
        self._size: int = max(backend.get_vocab().values()) + 1

    def _list_framing_tokens(self) -> list[str]:
        """Return the names of the tokens that only the toolkit writes: around turns, and in the place of features."""
        backend, template = self.backend, self.turn_template
        special = {token for token, added in backend.added_tokens_decoder.items() if added.special}
        around = "".join([template.first, *(template.system or ()), template.reply, template.following])
        ids = {self.placeholder, self.end_of_turn, *(special & set(self.encode(around)))}
        ids |= {backend.bos_token_id, backend.eos_token_id, backend.pad_token_id} & special
        names = {str(backend.convert_ids_to_tokens(token)) for token in ids} - {template.opened}
        # One letter cannot be cut. The longest first, since one name may begin another.
        return sorted((name for name in names if len(name) > 1), key=len, reverse=True)

    def __len__(self) -> int:
        return self._size

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`."""
        if _SEAM in text:
            return [token for part in text.split(_SEAM) for token in self.encode(part)]
        ids: list[int] = self.backend.encode(text, add_special_tokens=False)
        return ids

    def protect(self, text: str) -> str:
        """Return the text so that `encode` reads the names of tokens that frame turns as plain letters."""
        # Cut after the first letter, a name is none any more. The two sides are encoded on their own.
        return self._framing.sub(lambda found: f"{found[0][0]}{_SEAM}{found[0][1:]}", text.replace(_SEAM, ""))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, special tokens included."""
        text: str = self.backend.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def token_bytes(self) -> list[bytes]:
        """Return the bytes of every token as `decode` writes it after others; none for special or unused ids."""
        names: list[str | None] = self.backend.convert_ids_to_tokens(list(range(len(self))))
        # Decoded after another token, since many decoders strip the space of a first one.
        (before,) = self.encode("a")[-1:]
        texts = self.backend.batch_decode(
            [[before, token] for token in range(len(self))],
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )
        prefix_length = len(self.decode([before]))
        special = {token for token, added in self.backend.added_tokens_decoder.items() if added.special}
        special |= {*self.backend.all_special_ids, *(token for token, name in enumerate(names) if name is None)}
        return [
            b"" if token in special or name is None else _bytes_of_token(name, text[prefix_length:])
            for token, (name, text) in enumerate(zip(names, texts, strict=True))
        ]


def _bytes_of_token(name: str, text: str) -> bytes:
    """Return the bytes of a token, from its decoded text or, for a part of a character, from its name."""
    # Decoding a part of a character gives the replacement character; the vocabulary's name still tells the bytes.
    if "\ufffd" not in text:
        return text.encode()
    if byte := _BYTE.fullmatch(name):
        return bytes([int(byte[1], 16)])
    alphabet = _byte_alphabet()
    return bytes(alphabet[letter] for letter in name) if alphabet.keys() >= set(name) else text.encode()


@cache
def _byte_alphabet() -> dict[str, int]:
    """Return the byte that each letter of a byte-level vocabulary stands for."""
    # GPT-2's alphabet: a printable byte is its own letter, the others have the letters from 256 on, in order.
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


def load_tokenizer(
    path: str,
    placeholder: str,
    revision: str | None,
    local_files_only: bool,
    template: str | None = None,
    family: Any = None,
    chat_template: str | None = None,
    rows: int | None = None,
) -> HFTokenizer:
    """Load the tokenizer of a folder or hub name; raises InputError.

    A tokenizer without a chat template gets `template` if it has the token that ends turns there, `TURN_END`. `family`
    is a transformers configuration that tells the class of the tokenizer, instead of the folder's own. `chat_template`
    names one of several templates. The text around turns that a run has kept comes before all of them. `rows` is the
    number of tokens that the model has weights for.
    """
    from transformers import AutoTokenizer

    with as_input_error(f"no tokenizer can be loaded from {path!r}", "Name one in `tokenizer`.", path):
        options: dict[str, Any] = {"revision": revision, "local_files_only": local_files_only}
        options |= {"config": family} if family is not None else {}
        with quiet_transformers():
            backend = AutoTokenizer.from_pretrained(path, trust_remote_code=False, **options)
        # For some families transformers builds an empty tokenizer if the file is missing.
        if not backend.encode("a", add_special_tokens=False):
            raise ValueError("it holds none that knows the letter a")
        check_token_ids(backend)
        if rows is not None:
            check_tokens_have_rows(backend, rows)
        if template and not backend.chat_template and TURN_END in backend.get_vocab():
            backend.chat_template = template
        tokenizer = HFTokenizer(backend, placeholder, load_turn_template(Path(path)), chat_template)
        # What is damaged inside fails on the first use, if not before.
        tokenizer.decode(tokenizer.encode("a b"))
    return tokenizer


def train_tokenizer(corpus: Iterable[str], fixed: Sequence[str], size: int, placeholder: str) -> HFTokenizer:
    """Train a byte-level BPE of at most `size` tokens, in which every `fixed` string is one token where possible."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # An added token whose every letter stands for another byte would be decoded as those bytes, so it cannot be one.
    fixed = [text for text in fixed if decoders.ByteLevel().decode([text]) == text]
    special = [*SPECIAL_TOKENS, placeholder]
    trainer = trainers.BpeTrainer(
        vocab_size=max(0, size - len(fixed)),
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in fixed])
    make: Any = PreTrainedTokenizerFast  # untyped
    backend = make(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", chat_template=PLAIN_TEMPLATE)
    return HFTokenizer(backend, placeholder)
