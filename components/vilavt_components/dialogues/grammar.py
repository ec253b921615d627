"""The grammar of a turn, in llguidance's Lark, for dialogues that write a thought, then a call in JSON or an answer.

The second corner of a box must lie after its first one, and the smallest and largest sides that its source allows
depend on the numbers before. A context-free grammar of this would need a rule for each pair of numbers. Therefore a
grammar ends after each number that others depend on, and the next grammar is built with that number known. No token
spans two grammars.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vilavt_toolkit.contracts import BoxSchema
from vilavt_toolkit.vision.boxes import BoxError

# QUERY: the escapes of JSON, without those of half a surrogate pair (D800 to DFFF), which no tokenizer encodes.
# ANSWER: at least one character that `str.strip` keeps, since `parse` strips the answer and rejects an empty one.
_TERMINALS = r"""
ANY: /(?s:.*)/
TAG: /<\/?(think|tool|answer)>/
PLAIN: ANY & ~(ANY TAG ANY)
THOUGHT: "<think>" PLAIN "</think>"
OPENED_THOUGHT: PLAIN "</think>"
ANSWER: "<answer>" (PLAIN & /(?s:.*)[^\s\x1c-\x1f](?s:.*)/) "</answer>"
QUERY: PLAIN & /([^"\\\x00-\x1f]|\\(["\\\/bfnrt]|u([0-9a-cA-CefEF][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2})))*/
"""
OPENED = "<think>"
"""The tag that some chat templates open for the model."""
# A query of which `str.strip` leaves something: behind blanks, escaped or not, stands a character that is none.
_WORDS = (
    r"WORDS: QUERY & /(\s|[\x1c-\x1f]|\\[fnrt]|\\u00(0[bB]|1[c-fC-F]))*"
    r"([^\s\x1c-\x1f\\]|\\[\"\\\/b]|\\u00(0[0-8eEfF]|1[0-9abAB]))(?s:.*)/"
)
_REGION = '{"index": '
_UNFINISHED_BOX = re.compile(r'\{"index": (?P<index>\d+), "[^"]*": \[(?P<numbers>[\d, ]*),$')


@dataclass(frozen=True)
class TurnSyntax:
    """The constant parts of a turn in a dialogue, and its most regions."""

    after_thought: str
    """Text between `</think>` and the call or the answer."""
    tool_tags: tuple[str, str]
    """Text before and after a call."""
    max_regions: int
    blank_inquiries: bool = True
    """False if a call with a blank query is refused."""


def build_turn_grammar(syntax: TurnSyntax, written: str, boxes: Sequence[BoxSchema], call: bool) -> str:
    """Build the grammar of how a turn may continue after `written`; see `Dialogue.grammar`."""
    if written in ("", OPENED):
        return _GrammarBuilder(syntax, boxes).start_turn(call, bool(written))
    # Grammars end only at the end of a turn or after the comma in a box, so the text says which of them it was.
    unfinished = _UNFINISHED_BOX.search(written)
    if unfinished is None:
        return ""
    numbers = tuple(int(number) for number in unfinished["numbers"].split(","))
    regions = written[written.rindex(syntax.tool_tags[0]) :].count(_REGION)
    return _GrammarBuilder(syntax, boxes).continue_box(int(unfinished["index"]), numbers, regions)


class _GrammarBuilder:
    """Builds one grammar. Rules for JSON values are numbered in the order in which they are added."""

    def __init__(self, syntax: TurnSyntax, boxes: Sequence[BoxSchema]) -> None:
        self.syntax = syntax
        self.boxes = boxes
        self.rules: list[str] = []

    def start_turn(self, call: bool, is_opened: bool = False) -> str:
        """Return the grammar from the thought to the first number of a box, or to the end of an answer.

        With `is_opened` the tag of the thought has been written.
        """
        region = self._begin_region() if call else ""
        call_start = _quote(f'{self.syntax.tool_tags[0]}{{"region": [{_REGION}')
        ending = f"(ANSWER | {call_start} {region})" if region else "ANSWER"
        after_thought = _quote(self.syntax.after_thought) if self.syntax.after_thought else ""
        thought = "OPENED_THOUGHT" if is_opened else "THOUGHT"
        return self._join_rules(f"{thought} {after_thought} {ending}")

    def continue_box(self, index: int, begun: tuple[int, ...], regions: int) -> str:
        """Return the grammar after a comma in a box of region `index`: its next number, then what depends on none.

        `begun` are the box's numbers so far, `regions` the number of regions in the call so far, this one included.
        After the box's last number comes the rest of the call, up to the first number of another box.
        """
        schema = self.boxes[index](begun)
        key, *others = schema["properties"]
        items = schema["properties"][key]["prefixItems"]
        # The space belongs to the number: a grammar ends after the comma.
        number = f"{_quote(' ')} {self._add_value_rule(items[len(begun)])}"
        if len(begun) + 1 < len(items):
            return self._join_rules(f"{number} {_quote(',')}")
        properties = [self._write_property(name, schema) for name in others]
        return self._join_rules(" ".join([number, _quote("]"), *properties, _quote("}"), self._end_region(regions)]))

    def _end_region(self, regions: int) -> str:
        """Return the rest of a call after a region: another region, or the query."""
        text = "QUERY" if self.syntax.blank_inquiries else "WORDS"
        query = f'{_quote("], " + json.dumps("query") + ": ")} /"/ {text} /"/ {_quote("}" + self.syntax.tool_tags[1])}'
        another = self._begin_region() if regions < self.syntax.max_regions else ""
        return f"({_quote(', ' + _REGION)} {another} | {query})" if another else query

    def _begin_region(self) -> str:
        """Return a region from its index to the first number of its box; empty if no region can be named."""
        # Regions of one source have the same schema for the first number: one rule for all of their indices keeps the
        # grammar small, which matters since one is compiled for every turn.
        indices_by_schema: dict[tuple[str, str], list[int]] = {}
        for index, box_schema in enumerate(self.boxes):
            try:
                properties = box_schema(())["properties"]
            except BoxError:  # no box fits into this region any more
                continue
            key = next(iter(properties))
            schema = json.dumps(properties[key]["prefixItems"][0])
            indices_by_schema.setdefault((key, schema), []).append(index)
        alternatives = []
        for (key, schema), indices in indices_by_schema.items():
            names = "|".join(map(str, indices))
            box = f"{_quote(f', {json.dumps(key)}: [')} {self._add_value_rule(json.loads(schema))} {_quote(',')}"
            alternatives.append(f"/{names}/ {box}")
        return f"({' | '.join(alternatives)})" if alternatives else ""

    def _write_property(self, key: str, schema: Mapping[str, Any]) -> str:
        """Return a property of a region after its box, optional unless the schema requires it."""
        text = f"{_quote(f', {json.dumps(key)}: ')} {self._add_value_rule(schema['properties'][key])}"
        return text if key in schema["required"] else f"({text})?"

    def _add_value_rule(self, schema: Mapping[str, Any]) -> str:
        """Add a rule for a value of this JSON schema, and return its name."""
        name = f"value{len(self.rules)}"
        self.rules.append(f"{name}: %json {json.dumps(schema)}")
        return name

    def _join_rules(self, start: str) -> str:
        words = [] if self.syntax.blank_inquiries else [_WORDS]
        return "\n".join([f"start: {start}", *self.rules, _TERMINALS, *words])


def _quote(text: str) -> str:
    """Quote a text for Lark, whose strings have the escapes of JSON."""
    return json.dumps(text)
