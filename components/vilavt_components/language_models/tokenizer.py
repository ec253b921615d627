"""A transformers tokenizer for the toolkit, loaded or trained on a corpus, with the text around turns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from vilavt_components.common.hf_errors import as_input_error
from vilavt_components.common.quiet import quiet_transformers
from vilavt_toolkit.contracts import TurnTemplate
from vilavt_toolkit.errors import InputError

PLAIN_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""The chat template of a trained tokenizer, whose special tokens are `SPECIAL_TOKENS`."""
TURN_END = "<|im_end|>"
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The chat template of Qwen's models."""
SPECIAL_TOKENS = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
"""The name of a token that is a byte, in vocabularies that fall back to bytes."""


class HFTokenizer:
    """Turns text into ids and back, without adding special tokens, and knows the text around its model's turns."""

    def __init__(self, backend: Any, placeholder: str) -> None:
        self.backend = backend
        if placeholder not in backend.get_vocab():
            backend.add_special_tokens({"additional_special_tokens": [placeholder]}, replace_extra_special_tokens=False)
        self.placeholder: int = backend.convert_tokens_to_ids(placeholder)
        self.turn_template, self.end_of_turn = _read_turn_template(backend)
        # transformers would warn of every long text; the toolkit's own error says which sample is too long.
        backend.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
        # Not len(backend), since ids may have gaps.
        self._size: int = max(backend.get_vocab().values()) + 1

    def __len__(self) -> int:
        return self._size

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`."""
        ids: list[int] = self.backend.encode(text, add_special_tokens=False)
        return ids

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
) -> HFTokenizer:
    """Load the tokenizer of a folder or hub name; raises InputError.

    A tokenizer without a chat template gets `template` if it has the token that ends turns there, `TURN_END`. `family`
    is a transformers configuration that tells the class of the tokenizer, instead of the folder's own.
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
    if template and not backend.chat_template and TURN_END in backend.get_vocab():
        backend.chat_template = template
    return HFTokenizer(backend, placeholder)


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
        vocab_size=size - len(fixed),
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in fixed])
    make: Any = PreTrainedTokenizerFast  # untyped
    backend = make(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", chat_template=PLAIN_TEMPLATE)
    return HFTokenizer(backend, placeholder)


def _read_turn_template(backend: Any) -> tuple[TurnTemplate, int]:
    """Return the text around turns and the id of the end-of-turn token, from the chat template or plain without one."""
    from jinja2.exceptions import TemplateError

    if not getattr(backend, "chat_template", None):
        return _plain_turn_template(backend)
    # A dialogue of known words is rendered, and the text between these words is what the template puts around turns.
    # Reading the template's own source would need a parser for every family.
    asked, said, next_asked, system = "ASKED0", "SAID0", "ASKED1", "SYSTEM0"
    user, assistant = {"role": "user", "content": asked}, {"role": "assistant", "content": said}
    again = {"role": "user", "content": next_asked}
    try:
        text = _render_template(backend, [user, assistant, again])
    except TemplateError as error:
        raise InputError(
            f"the chat template of {backend.name_or_path!r} cannot be used ({error}). Name another `tokenizer`."
        ) from error
    found = re.fullmatch(f"(.*?){asked}.*?{said}(.*?){next_asked}(.*)", text, re.S)
    if found is None:
        raise InputError(
            f"the chat template of {backend.name_or_path!r} leaves out messages. Name another `tokenizer`."
        )
    first, between, reply = found.groups()
    end = _end_of_turn(backend, between)
    mark = backend.convert_ids_to_tokens(end)
    # A template without an end of turn: the end-of-text token ends it, and all text in between follows that token.
    following = between.partition(mark)[2] if mark in between else between
    return TurnTemplate(first, _system_template(backend, user, system, asked), reply, following), end


def _system_template(backend: Any, user: dict[str, str], system: str, asked: str) -> tuple[str, str] | None:
    """Return the text before and after a system prompt, or None if the template refuses or drops one."""
    from jinja2.exceptions import TemplateError

    try:
        text = _render_template(backend, [{"role": "system", "content": system}, user])
    except TemplateError:
        return None
    if system not in text:
        return None
    before, _, rest = text.partition(system)
    return before, rest.partition(asked)[0]


def _render_template(backend: Any, messages: list[dict[str, str]]) -> str:
    text: str = backend.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text


def _end_of_turn(backend: Any, between: str) -> int:
    """Return the first special token after the assistant's words, or the end-of-text token if there is none."""
    special = set(backend.all_special_ids) | set(backend.added_tokens_decoder)
    for token in backend.encode(between, add_special_tokens=False):
        if token in special:
            return int(token)
    return _end_of_text(backend)


def _end_of_text(backend: Any) -> int:
    if backend.eos_token_id is None:
        raise InputError(
            f"the tokenizer {backend.name_or_path!r} has no end-of-text token. Set eos_token in its "
            "tokenizer_config.json."
        )
    return int(backend.eos_token_id)


def _plain_turn_template(backend: Any) -> tuple[TurnTemplate, int]:
    # The begin-of-text token belongs there only if the tokenizer itself would add it.
    ids = backend.encode("a", add_special_tokens=True)
    begin = backend.bos_token if backend.bos_token_id is not None and ids[0] == backend.bos_token_id else ""
    template = TurnTemplate(f"{begin}User: ", (begin, "\n\nUser: "), "\nAssistant: ", "\nUser: ")
    return template, _end_of_text(backend)
