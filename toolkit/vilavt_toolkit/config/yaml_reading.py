"""YAML files and overrides read into plain data, within limits that no recipe comes near."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vilavt_toolkit.errors import BadRecipe
from vilavt_toolkit.registry.plugins import display_path
from vilavt_toolkit.utils.text import shorten_text

SUFFIXES = (".yaml", ".yml")
"""The endings of files that are read as recipes."""

MOST_CHARACTERS = 1_000_000
"""Characters of a YAML file."""
MOST_VALUES = 10_000
"""Values in a YAML file, with all references (`*name`) followed. omegaconf has the same limit."""
MOST_LEVELS = 50
"""Mappings and lists inside each other."""

_COMMENT = re.compile(r"(^|\s)#")
# What begins with one of these is no plain scalar.
_NOT_PLAIN = tuple("[{\"'|>&*!%@`")
_OLD_NUMBER = re.compile(r"[-+]?(0[0-9_]*[0-7_]|[1-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")
"""Numbers of base 8 and 60, which YAML 1.1 has and nobody means: 010 is 8, and 1:30 is 90."""
_REMEDIES = {
    "cannot start any token": " Indent with blanks, not tabs, and put text that begins with a sign in quotes",
    "values are not allowed": " Put text that holds a colon in quotes",
    "no viable alternative": " Write a reference like ${train.steps}, and other text with ${ in quotes as \\\\${",
    "Incompatible key type": " Write the key as text",
    "recursive aliases": " Write the values themselves",
    "not a supported primitive": " Write text, numbers, lists or mappings",
    "constructor for the tag": " Leave the tag out",
    "found another document": " Remove the second ---",
}
"""Remedies to type, by what YAML or omegaconf says is wrong."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping; raises BadRecipe naming the line."""
    label = display_path(path)
    data = _parse_yaml(read_text(path, label), label)
    if not isinstance(data, dict):
        raise BadRecipe(f"{label} holds no mapping. Write keys like `model:`.")
    return data


def parse_value(text: str, label: str) -> Any:
    """Read the value of an override, in which `#` begins no comment; raises BadRecipe."""
    # A file name may hold a ` #`. Nobody writes a comment on a command line.
    if _COMMENT.search(text) and not text.strip().startswith(_NOT_PLAIN):
        return text.strip()
    from omegaconf import OmegaConf

    if excess := find_excess(text):
        raise BadRecipe(f"{label} has {excess}. Write it into a recipe.")
    _refuse_old_numbers(text, label, lines=False)
    try:
        with _name_yaml_errors(label, lines=False):
            holder: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
            return holder["value"]
    except BadRecipe as error:
        if not _COMMENT.search(text):
            raise
        raise BadRecipe(f"{error} A ` #` begins a comment there. Put the text that holds it in quotes.") from error


def find_excess(text: str) -> str:
    """Return what a YAML text has too much of, in a few words; empty for none. Text that is no YAML has nothing."""
    import yaml

    if len(text) > MOST_CHARACTERS:
        return f"more than {MOST_CHARACTERS:,} characters"
    sizes: dict[str, int] = {}
    open_anchors: list[tuple[str | None, int]] = []
    values = 0
    # The parser's events cost no memory, and unlike a tree they need no recursion to be read.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        for event in yaml.parse(text, Loader=loader):
            if isinstance(event, yaml.AliasEvent):
                values += sizes.get(event.anchor, 1)
            elif isinstance(event, yaml.CollectionStartEvent):
                open_anchors.append((event.anchor, values))
                values += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, before = open_anchors.pop()
                if anchor is not None:
                    sizes[anchor] = values - before
            elif isinstance(event, yaml.ScalarEvent):
                values += 1
            if values > MOST_VALUES:
                return f"more than {MOST_VALUES:,} values"
            if len(open_anchors) > MOST_LEVELS:
                return f"more than {MOST_LEVELS} levels of mappings and lists"
    # The reader that follows says what is wrong, in words.
    except (yaml.YAMLError, ValueError):
        return ""
    return ""


def read_text(path: Path, label: str) -> str:
    """Read a YAML file that is no larger than a recipe can be; raises BadRecipe, which calls it `label`."""
    try:
        # A pipe or a device could be read for ever.
        if not path.is_file():
            raise BadRecipe(f"{label} is no file. Give the path of a YAML file.")
        if path.stat().st_size > 4 * MOST_CHARACTERS:
            raise BadRecipe(f"{label} is larger than {4 * MOST_CHARACTERS:,} bytes. Give the path of a smaller file.")
        # Editors on Windows may begin a file with a byte order mark, which YAML refuses.
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRecipe(f"{label} is no UTF-8 text. Give the path of a YAML file.") from error
    except OSError as error:
        raise BadRecipe(f"{label} cannot be read ({error.strerror}). Check the path.") from error


def _parse_yaml(text: str, label: str) -> Any:
    """Read YAML into plain data as omegaconf does: 1e-3 is a number, and a key may not stand twice."""
    from omegaconf import OmegaConf

    if excess := find_excess(text):
        raise BadRecipe(f"{label} has {excess}. Write a shorter recipe.")
    _refuse_old_numbers(text, label)
    with _name_yaml_errors(label):
        return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)


def _refuse_old_numbers(text: str, label: str, lines: bool = True) -> None:
    """Raise BadRecipe for a number that YAML 1.1 reads in base 8 or 60. Text that is no YAML has none."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        for event in yaml.parse(text, Loader=loader):
            # Of a quoted text `implicit` begins with False: it stays a text.
            if not isinstance(event, yaml.ScalarEvent) or not event.implicit[0]:
                continue
            if _OLD_NUMBER.fullmatch(event.value) and isinstance(number := yaml.safe_load(event.value), int | float):
                line = f", line {event.start_mark.line + 1}" if lines else ""
                written, read_as = shorten_text(event.value, 60), shorten_text(str(number), 60)
                raise BadRecipe(
                    f"{label}{line}: YAML reads {written} as {read_as}. Write the number in base ten, or put a text in "
                    "quotes."
                )
    # The reader that follows says what is wrong, in words.
    except (yaml.YAMLError, ValueError):
        return


@contextmanager
def _name_yaml_errors(label: str, lines: bool = True) -> Iterator[None]:
    """Turn the errors of YAML and omegaconf into BadRecipe, which names the key or the line."""
    import yaml
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except yaml.MarkedYAMLError as error:
        mark, problem = error.problem_mark, error.problem or "it is no YAML"
        twice = re.match(r"found duplicate key (.*)", problem, re.DOTALL)
        what = (
            f"the key '{shorten_text(twice[1], 100)}' stands twice in one mapping. Keep one of them"
            if twice
            else _with_remedy(problem)
        )
        line = f", line {mark.line + 1}" if lines and mark else ""
        raise BadRecipe(f"{label}{line}: {what}.") from error
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        place = f"{shorten_text(str(key), 100)}: " if key and lines else ""
        raise BadRecipe(f"{label}: {place}{_with_remedy(str(error).splitlines()[0])}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = shorten_text((str(error).splitlines() or ["it is nested too deep"])[0])
        raise BadRecipe(f"{label} cannot be read as YAML: {reason}.") from error
    # The constructors of YAML's own tags raise them for a text that is none of their kind: `!!bool 7`, `!!int ''`.
    except (LookupError, AttributeError, TypeError) as error:
        raise BadRecipe(
            f"{label} cannot be read as YAML: a value does not fit the tag before it ({type(error).__name__}). Leave "
            "out what begins with !!."
        ) from error
    # omegaconf raises this for a document that is a single number.
    except OSError as error:
        raise BadRecipe(f"{label} holds no mapping. Write keys like `model:`.") from error


def _with_remedy(problem: str) -> str:
    """Return what is wrong, and where it is known what to type."""
    remedy = next((remedy for words, remedy in _REMEDIES.items() if words in problem), "")
    return shorten_text(problem.rstrip(".")) + (f".{remedy}" if remedy else "")
