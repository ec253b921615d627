"""The grammar of a turn, in llguidance's Lark, for dialogues that write a thought, then a call in JSON or an answer.

A box's second corner must lie behind its first, as far as its source wants, and x2 and y2 stand behind both x1 and y1:
no context-free grammar of a bearable size says so. A grammar therefore ends behind each number that others depend on,
and the next one is made with that number known. No token reaches from one into the next.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vilavt_toolkit.contracts import BoxSchema
from vilavt_toolkit.vision.boxes import BoxError

# JSON's escapes, without those of half a character (D800 to DFFF), which no tokenizer takes. An answer needs a letter
# that Python too does not take for a space.
_TEXTS = r"""
ANY: /(?s:.*)/
TAG: /<\/?(think|tool|answer)>/
PLAIN: ANY & ~(ANY TAG ANY)
THOUGHT: "<think>" PLAIN "</think>"
ANSWER: "<answer>" (PLAIN & /(?s:.*)[^\s\x1c-\x1f](?s:.*)/) "</answer>"
QUERY: PLAIN & /([^"\\\x00-\x1f]|\\(["\\\/bfnrt]|u([0-9a-cA-CefEF][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2})))*/
"""
_REGION = '{"index": '
_BEGUN = re.compile(r'\{"index": (?P<index>\d+), "[^"]*": \[(?P<numbers>[\d, ]*),$')


@dataclass(frozen=True)
class Form:
    """How a dialogue writes a turn."""

    behind_thought: str
    tool: tuple[str, str]
    """Before and behind a call."""
    max_regions: int


def turn_grammar(form: Form, written: str, boxes: Sequence[BoxSchema], call: bool) -> str:
    """How a turn may go on, as `Dialogue.grammar` says."""
    if not written:
        return _Rules(form, boxes).beginning(call)
    begun = _BEGUN.search(written)
    if begun is None:
        return ""
    numbers = tuple(int(number) for number in begun["numbers"].split(","))
    named = written[written.rindex(form.tool[0]) :].count(_REGION)
    return _Rules(form, boxes).box(int(begun["index"]), numbers, named)


class _Rules:
    """Rules of one grammar; their names are numbered."""

    def __init__(self, form: Form, boxes: Sequence[BoxSchema]) -> None:
        self.form = form
        self.boxes = boxes
        self.rules: list[str] = []

    def beginning(self, call: bool) -> str:
        """From the thought to the first number of a box, or to the end of an answer."""
        region = self._regions() if call else ""
        called = _text(f'{self.form.tool[0]}{{"region": [{_REGION}')
        ending = f"(ANSWER | {called} {region})" if region else "ANSWER"
        behind = _text(self.form.behind_thought) if self.form.behind_thought else ""
        return self._grammar(f"THOUGHT {behind} {ending}")

    def box(self, index: int, begun: tuple[int, ...], named: int) -> str:
        """Behind the comma of a box of region `index`, the last of `named`: its next number, and what depends on none.

        Behind its last number that is the rest of the call, up to the first number of another box.
        """
        schema = self.boxes[index](begun)
        key, *others = schema["properties"]
        items = schema["properties"][key]["prefixItems"]
        number = f"{_text(' ')} {self._value(items[len(begun)])}"
        if len(begun) + 1 < len(items):
            return self._grammar(f"{number} {_text(',')}")
        further = [self._further(name, schema) for name in others]
        return self._grammar(" ".join([number, _text("]"), *further, _text("}"), self._behind_region(named)]))

    def _behind_region(self, named: int) -> str:
        closed = f'{_text("], " + json.dumps("query") + ": ")} /"/ QUERY /"/ {_text("}" + self.form.tool[1])}'
        another = self._regions() if named < self.form.max_regions else ""
        return f"({_text(', ' + _REGION)} {another} | {closed})" if another else closed

    def _regions(self) -> str:
        """The index of a region, up to the first number of its box; empty where nothing can be named."""
        alike: dict[tuple[str, str], list[int]] = {}
        for index, of_box in enumerate(self.boxes):
            try:
                properties = of_box(())["properties"]
            except BoxError:
                continue
            key = next(iter(properties))
            alike.setdefault((key, json.dumps(properties[key]["prefixItems"][0])), []).append(index)
        kinds = []
        for (key, first), indices in alike.items():
            named = "|".join(map(str, indices))
            kinds.append(f"/{named}/ {_text(f', {json.dumps(key)}: [')} {self._value(json.loads(first))} {_text(',')}")
        return f"({' | '.join(kinds)})" if kinds else ""

    def _further(self, key: str, schema: Mapping[str, Any]) -> str:
        said = f"{_text(f', {json.dumps(key)}: ')} {self._value(schema['properties'][key])}"
        return said if key in schema["required"] else f"({said})?"

    def _value(self, schema: Mapping[str, Any]) -> str:
        """The name of a rule for a value of this JSON schema."""
        name = f"value{len(self.rules)}"
        self.rules.append(f"{name}: %json {json.dumps(schema)}")
        return name

    def _grammar(self, start: str) -> str:
        return "\n".join([f"start: {start}", *self.rules, _TEXTS])


def _text(text: str) -> str:
    """A text as Lark writes it."""
    return json.dumps(text)
