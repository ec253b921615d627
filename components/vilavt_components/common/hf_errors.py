"""The many exceptions of transformers and the hub, turned into one InputError."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vilavt_toolkit.config.limits import describe_out_of_bounds
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.settings import did_you_mean
from vilavt_toolkit.utils.files import check_plain_files

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@contextmanager
def as_input_error(what: str, advice: str, place: str = "") -> Iterator[None]:
    """Turn exceptions of transformers inside into an InputError: `what` (the first reason given), then `advice`.

    `place` is the folder or hub name that is read. A path that is no folder is refused before the hub is asked.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    # transformers has no exception of its own: a damaged folder ends in any of these, depending on the file at fault.
    many = (OSError, ValueError, LookupError, TypeError, AttributeError, ImportError, RuntimeError, ArithmeticError)
    rarely = (MemoryError, AssertionError)
    try:
        if place and not _HUB_NAME.fullmatch(place) and not Path(place).is_dir():
            # The hub would answer a mistyped path with a message about repository names.
            raise ValueError("it is a file, not its folder" if Path(place).is_file() else "there is no such folder")
        if place and Path(place).is_dir():
            check_plain_files(Path(place).iterdir())
        yield
    except BaseException as error:
        # The library of tokenizers raises plain exceptions, and panics for what it takes to be impossible.
        is_plain = type(error) is Exception or type(error).__name__ == "PanicException"
        if not is_plain and not isinstance(error, (*many, *rarely, SafetensorError, StrictDataclassError)):
            raise
        reason = first_sentence(str(error))
        if isinstance(error, OSError) and place and not Path(place).is_dir():
            reason = f"there is no such folder, and the hub answers: {reason}"
        raise InputError(f"{what} ({reason}). {advice}") from error


def check_known_settings(family: str, given: Iterable[str], known: Any) -> None:
    """Raise ValueError for a setting that transformers' configuration `known` does not have."""
    # transformers keeps unknown settings, and a misspelt one would do nothing.
    for key in given:
        if not hasattr(known, key):
            raise ValueError(f"{family!r} has no setting {key!r}.{did_you_mean(key, tuple(known.to_dict()))}")


def check_sizes(settings: Any, place: str = "config.json") -> None:
    """Raise ValueError for a number of an architecture's plain data that is too large to build from."""
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            # Published configurations have zeros and -1 where a setting is off.
            if type(value) is int and value > 1 and (wrong := describe_out_of_bounds(value, str(key))):
                raise ValueError(f"{place}: {key} {wrong.removesuffix('.')}")
            check_sizes(value, place)


def first_sentence(text: str) -> str:
    """Return the first sentence of a library's message in one line, with its "Did you mean ...?" if there is one."""
    first = re.split(r"(?<=[.!?]) (?=(?!Did you mean)[A-Z])", " ".join(text.split()))[0].removesuffix(".")
    return first if len(first) <= 240 else f"{first[:237]}..."
