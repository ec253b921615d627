"""A transformers tokenizer as the toolkit uses it: loaded, or trained on a corpus; with the frames around turns."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vilavt_toolkit.errors import InputError

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@contextmanager
def explained(what: str, advice: str, place: str = "") -> Iterator[None]:
    """Turn transformers' many ways to fail into an InputError of one sentence.

    `place` is the folder or hub name that is read; a path that is no folder is refused before anyone asks the hub.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    many = (OSError, ValueError, LookupError, TypeError, AttributeError, ImportError, RuntimeError, ArithmeticError)
    try:
        if place and not _HUB_NAME.fullmatch(place) and not Path(place).is_dir():
            raise ValueError("it is a file, not its folder" if Path(place).is_file() else "there is no such folder")
        yield
    except (*many, SafetensorError, StrictDataclassError) as error:
        reason = _first_sentence(str(error))
        if isinstance(error, OSError) and place and not Path(place).is_dir():
            reason = f"there is no such folder, and of the hub it is said: {reason}"
        raise InputError(f"{what} ({reason}); {advice}") from error


def _first_sentence(text: str) -> str:
    """What libraries say first, in one line; the question whether another word was meant belongs to it."""
    first = re.split(r"(?<=[.!?]) (?=(?!Did you mean)[A-Z])", " ".join(text.split()))[0].removesuffix(".")
    return first if len(first) <= 240 else f"{first[:237]}..."
