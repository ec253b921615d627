"""The text around turns, read off a tokenizer's chat template once, and kept with a run.

A template is a program that somebody else wrote. It runs in a process of its own, with limits. A checkpoint keeps what
it wrote, since a template may write another text on another day.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from vilavt_components.language_models.template_worker import SECONDS, render_dialogues
from vilavt_toolkit.contracts import TurnTemplate
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.settings import did_you_mean

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
PLAIN = "plain"
"""The setting `chat_template` that asks for turns in plain words."""
FILE = "turn_template.json"
"""The file of a checkpoint that keeps the text around turns."""
_WORKER = Path(__file__).with_name("template_worker.py")
_WAIT = 30.0
"""Seconds by the clock after which a template is ended in any case; on a busy machine its CPU time takes longer."""
_ASKED, _SAID, _NEXT, _SYSTEM = "ASKED0", "SAID0", "ASKED1", "SYSTEM0"
_USER = {"role": "user", "content": _ASKED}
# A dialogue of known words is rendered, and the text between these words is what the template puts around turns.
# Reading the template's own source would need a parser for every family.
_DIALOGUES = (
    [_USER, {"role": "assistant", "content": _SAID}, {"role": "user", "content": _NEXT}],
    [{"role": "system", "content": _SYSTEM}, _USER],
)
# Templates of models that always think begin the model's turn for it.
_OPENED = re.compile(r"<think>(?=\s*\Z)")


def read_turn_template(backend: Any, chosen: str | None = None) -> tuple[TurnTemplate, int]:
    """Return the text around turns and the id of the end-of-turn token of a transformers tokenizer.

    They come from its chat template, or the one that `chosen` names, or are plain without one. Raises InputError.
    """
    template = _choose_template(backend, chosen)
    if not template:
        return _plain_turn_template(backend)
    try:
        text, with_system = _render(template, tuple(backend.special_tokens_map.items()))
        first, between, reply = _split_frames(text)
    except ValueError as error:
        raise InputError(
            f"the chat template of {backend.name_or_path!r} cannot be used ({error}). Name another `tokenizer`, or set "
            f"`chat_template` to {PLAIN}."
        ) from error
    end = _end_of_turn(backend, between)
    mark = backend.convert_ids_to_tokens(end)
    # A template without an end of turn: the end-of-text token ends it, and all text in between follows that token.
    following = between.partition(mark)[2] if mark in between else between
    opened = _OPENED.search(reply)
    return TurnTemplate(first, _split_system(with_system), reply, following, opened[0] if opened else ""), end


def _choose_template(backend: Any, chosen: str | None) -> str | None:
    """Return the source of the chat template to use, or None for plain turns; raises InputError."""
    found = getattr(backend, "chat_template", None)
    if chosen == PLAIN or not found:
        if chosen in (None, PLAIN):
            return None
        raise InputError(f"{backend.name_or_path!r} has no chat template {chosen!r}. Remove `chat_template`.")
    # A tokenizer has one template or several with names, of which `default` is for chats without tools.
    named: Mapping[str, str] = found if isinstance(found, dict) else {"default": found}
    name = chosen or "default"
    if name not in named:
        names = ", ".join(sorted(named))
        missing = (
            f"no chat template {chosen!r}.{did_you_mean(name, tuple(named))}" if chosen else "no default template."
        )
        raise InputError(
            f"{backend.name_or_path!r} has {missing} Set `chat_template` to one of {names}, or to {PLAIN}."
        )
    return named[name]


def _split_frames(text: str) -> tuple[str, str, str]:
    """Return the text before the first question, between the reply and the next question, and after that."""
    first, asked, rest = text.partition(_ASKED)
    _, said, rest = rest.partition(_SAID)
    between, asked_again, reply = rest.partition(_NEXT)
    if not (asked and said and asked_again):
        raise ValueError("it leaves out messages")
    return first, between, reply


def _split_system(text: str) -> tuple[str, str] | None:
    """Return the text before and after a system prompt, or None if the template refuses or drops one."""
    before, found, rest = text.partition(_SYSTEM)
    return (before, rest.partition(_ASKED)[0]) if found else None


@cache
def _render(template: str, special: tuple[tuple[str, str], ...]) -> tuple[str, str]:
    """Return the two dialogues as a template writes them, the second one empty if it refuses; raises ValueError."""
    own = template in (PLAIN_TEMPLATE, CHATML)
    answers = list(render_dialogues(template, dict(special), _DIALOGUES)) if own else _render_outside(template, special)
    if "text" not in answers[0]:
        raise ValueError(answers[0]["problem"])
    return answers[0]["text"], answers[1].get("text", "")


def _render_outside(template: str, special: tuple[tuple[str, str], ...]) -> Sequence[Mapping[str, str]]:
    """Render the dialogues in a process with limits; raises ValueError if it exceeds them."""
    request = json.dumps([template, dict(special), _DIALOGUES])
    command = [sys.executable, "-I", str(_WORKER)]
    try:
        done = subprocess.run(
            command, input=request.encode(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=_WAIT
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"it takes more than {_WAIT:g} seconds") from error
    except OSError as error:
        raise ValueError(f"the process that renders it cannot be started: {error}") from error
    # A process that was ended by its limit leaves the answers that it had printed.
    answers: list[Mapping[str, str]] = [json.loads(line) for line in done.stdout.splitlines()]
    if len(answers) < len(_DIALOGUES):
        raise ValueError(f"it takes more than {SECONDS} seconds of CPU time, or ends the process that renders it")
    return answers


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


def save_turn_template(folder: Path, template: TurnTemplate, end_of_turn: int) -> None:
    """Write the text around turns into a checkpoint's folder."""
    content = json.dumps({**asdict(template), "end_of_turn": end_of_turn}, indent=2, ensure_ascii=False)
    (folder / FILE).write_text(content + "\n", encoding="utf-8")


def load_turn_template(folder: Path) -> tuple[TurnTemplate, int] | None:
    """Return what `save_turn_template` wrote, or None if the folder has no such file; raises InputError."""
    if not (folder / FILE).is_file():
        return None
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        end, system = found.pop("end_of_turn"), found.pop("system")
        texts = [*found.values(), *(system or ())]
        # `True` is an int too, hence the exact type.
        if type(end) is not int or (system is not None and len(system) != 2):
            raise ValueError("it has no system prompt or end of turn")
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("it has something else than texts")
        return TurnTemplate(**found, system=None if system is None else (system[0], system[1])), end
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OSError) as error:
        raise InputError(f"'{folder / FILE}' is damaged ({error}). Copy it again from the run.") from error
