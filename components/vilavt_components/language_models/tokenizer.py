"""A transformers tokenizer as the toolkit uses it: loaded, or trained on a corpus; with the frames around turns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from vilavt_components.common.hf_errors import explained
from vilavt_components.common.quiet import quietly
from vilavt_toolkit.contracts import Frames
from vilavt_toolkit.errors import InputError

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


TURN_END = "<|im_end|>"


CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The frames of Qwen's models."""


SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")


_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
"""The name of a token that is a byte, in vocabularies that fall back to bytes."""


class HFTokenizer:
    """Text to ids and back, without special tokens added on the way; knows how its model frames turns."""

    def __init__(self, backend: Any, placeholder: str) -> None:
        self.backend = backend
        if placeholder not in backend.get_vocab():
            backend.add_special_tokens({"additional_special_tokens": [placeholder]}, replace_extra_special_tokens=False)
        self.placeholder: int = backend.convert_tokens_to_ids(placeholder)
        self.frames, self.end_of_turn = _framing(backend)
        # What does not fit the context is told by those who know what it was.
        backend.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
        # Not len(backend): ids may have gaps.
        self._size: int = max(backend.get_vocab().values()) + 1

    def __len__(self) -> int:
        return self._size

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`."""
        ids: list[int] = self.backend.encode(text, add_special_tokens=False)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens included."""
        text: str = self.backend.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def spellings(self) -> list[bytes]:
        """The bytes of every token as `decode` writes it behind others; empty for marks, and for ids without one."""
        names: list[str | None] = self.backend.convert_ids_to_tokens(list(range(len(self))))
        (before,) = self.encode("a")[-1:]
        texts = self.backend.batch_decode(
            [[before, token] for token in range(len(self))],
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )
        begun = len(self.decode([before]))
        marks = {token for token, added in self.backend.added_tokens_decoder.items() if added.special}
        marks |= {*self.backend.all_special_ids, *(token for token, name in enumerate(names) if name is None)}
        return [
            b"" if token in marks or name is None else _spelled(name, text[begun:])
            for token, (name, text) in enumerate(zip(names, texts, strict=True))
        ]


def _spelled(name: str, text: str) -> bytes:
    """The bytes of a token, from its name in the vocabulary where its text is but a part of a letter."""
    if "\ufffd" not in text:
        return text.encode()
    if byte := _BYTE.fullmatch(name):
        return bytes([int(byte[1], 16)])
    alphabet = _byte_alphabet()
    return bytes(alphabet[letter] for letter in name) if alphabet.keys() >= set(name) else text.encode()


@cache
def _byte_alphabet() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for: itself if it can be seen, else one from 256."""
    seen = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + place): byte for place, byte in enumerate(others)}


def load(
    path: str,
    placeholder: str,
    revision: str | None,
    local_files_only: bool,
    template: str | None = None,
    family: Any = None,
) -> HFTokenizer:
    """Load the tokenizer of a folder or hub name; raises InputError.

    One without a chat template gets `template` if it has the mark that ends turns there, `TURN_END`. `family` is
    transformers' configuration of a model whose tokenizer it is, where the folder's own is not to be asked.
    """
    from transformers import AutoTokenizer

    with explained(f"no tokenizer can be loaded from {path!r}", "name one in `tokenizer`.", path):
        options: dict[str, Any] = {"revision": revision, "local_files_only": local_files_only}
        options |= {"config": family} if family is not None else {}
        with quietly():
            backend = AutoTokenizer.from_pretrained(path, trust_remote_code=False, **options)
        # Without a file transformers makes an empty one for some families.
        if not backend.encode("a", add_special_tokens=False):
            raise ValueError("it holds none that knows the letter a")
    if template and not backend.chat_template and TURN_END in backend.get_vocab():
        backend.chat_template = template
    return HFTokenizer(backend, placeholder)


def train(corpus: Iterable[str], fixed: Sequence[str], size: int, placeholder: str) -> HFTokenizer:
    """Train a byte-level BPE of at most `size` tokens; every `fixed` string that can be is one token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # A token whose every letter stands for a byte would be decoded as those bytes.
    fixed = [text for text in fixed if decoders.ByteLevel().decode([text]) == text]
    special = [*SPECIAL, placeholder]
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(fixed),
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in fixed])
    make: Any = PreTrainedTokenizerFast  # untyped
    backend = make(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", chat_template=TEMPLATE)
    return HFTokenizer(backend, placeholder)


def _framing(backend: Any) -> tuple[Frames, int]:
    """The frames and the id of the end-of-turn token, read off the chat template, or plain ones without it."""
    from jinja2.exceptions import TemplateError

    if not getattr(backend, "chat_template", None):
        return _plain_framing(backend)
    asked, said, next_asked, system = "ASKED0", "SAID0", "ASKED1", "SYSTEM0"
    user, assistant = {"role": "user", "content": asked}, {"role": "assistant", "content": said}
    again = {"role": "user", "content": next_asked}
    try:
        text = _render(backend, [user, assistant, again])
    except TemplateError as error:
        raise InputError(f"the chat template of {backend.name_or_path!r} cannot be used: {error}") from error
    found = re.fullmatch(f"(.*?){asked}.*?{said}(.*?){next_asked}(.*)", text, re.S)
    if found is None:
        raise InputError(f"the chat template of {backend.name_or_path!r} leaves out what is said; use another.")
    first, between, reply = found.groups()
    end = _end_of_turn(backend, between)
    mark = backend.convert_ids_to_tokens(end)
    # Where the template ends no turn, the end-of-text token does, and all that is between follows it.
    following = between.partition(mark)[2] if mark in between else between
    return Frames(first, _system_frame(backend, user, system, asked), reply, following), end


def _system_frame(backend: Any, user: dict[str, str], system: str, asked: str) -> tuple[str, str] | None:
    from jinja2.exceptions import TemplateError

    try:
        text = _render(backend, [{"role": "system", "content": system}, user])
    except TemplateError:
        return None
    if system not in text:
        return None
    before, _, rest = text.partition(system)
    return before, rest.partition(asked)[0]


def _render(backend: Any, messages: list[dict[str, str]]) -> str:
    text: str = backend.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text


def _end_of_turn(backend: Any, between: str) -> int:
    """The first special token after the assistant's words; the end-of-text token where there is none."""
    special = set(backend.all_special_ids) | set(backend.added_tokens_decoder)
    for token in backend.encode(between, add_special_tokens=False):
        if token in special:
            return int(token)
    return _end_of_text(backend)


def _end_of_text(backend: Any) -> int:
    if backend.eos_token_id is None:
        raise InputError(
            f"the tokenizer {backend.name_or_path!r} has no end-of-text token; set eos_token in its config."
        )
    return int(backend.eos_token_id)


def _plain_framing(backend: Any) -> tuple[Frames, int]:
    opened = backend.encode("a", add_special_tokens=True)
    begin = backend.bos_token if backend.bos_token_id is not None and opened[0] == backend.bos_token_id else ""
    frames = Frames(f"{begin}User: ", (begin, "\n\nUser: "), "\nAssistant: ", "\nUser: ")
    return frames, _end_of_text(backend)
