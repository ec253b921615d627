"""Dialogue `native`: a thought, then a tool call in JSON or an answer, each in its tag."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vilavt_components.dialogues.grammar import Form, turn_grammar
from vilavt_toolkit.contracts import BoxSchema, Dialogue, Shown, Slot, Source, Turn
from vilavt_toolkit.dialogue.tool_calls import CallProblem, read_call, write_call
from vilavt_toolkit.registry import dialogues
from vilavt_toolkit.settings import setting

SYSTEM = """You answer questions about images. You can look closer: name regions of what you were shown and say, in \
plain words, what you want to know; the regions are cut from the originals, enlarged, and encoded with your inquiry in \
mind. Every turn is a thought and then either one tool call or one answer:
<think>what you see and need</think><tool>{"region": [{"index": 0, {box}}], \
"query": "what you want to know"}</tool>
<think>what you found</think><answer>your answer</answer>
"index" is the number that stands after what you were shown; {boxes}"""

_TURN = re.compile(r"\s*<think>(?P<thought>.*?)</think>\s*<(?P<kind>tool|answer)>(?P<body>.*?)</(?P=kind)>\s*", re.S)
_TAGS = re.compile(r"</?(?:think|tool|answer)>")
_FORM = "Write one <think>..</think>, then one <tool>..</tool> or one <answer>..</answer>."


@dataclass(frozen=True)
class NativeConfig:
    """Settings of dialogue `native`."""

    steps: int = setting(1000, help="units per side of a region in which boxes are written", minimum=2)
    system: str = setting(SYSTEM, help="system prompt, '{box}', '{boxes}' and '{steps}' filled in; empty: none")
    demand: str = setting("Answer now.", help="the prompt that demands the answer")
    max_regions: int = setting(16, help="regions a tool call may name", minimum=1)


@dialogues.register("native", NativeConfig)
class Native(Dialogue):
    """<think>, then <tool> {json} or <answer>; a region is followed by its number and what its source says of it."""

    def __init__(self, config: NativeConfig) -> None:
        self.config = config
        self.steps = config.steps

    @classmethod
    def tiny(cls) -> NativeConfig:
        """Return settings without a system prompt."""
        return NativeConfig(steps=8, system="")

    @property
    def system(self) -> str:
        """The system prompt as of images; empty for none."""
        return self._filled(Source.box_help)

    def instructions(self, sources: Sequence[Source]) -> str:
        """The system prompt, with how the sources' boxes are written."""
        return self._filled(sources[0].box_help) if sources else self.system

    def _filled(self, box_help: tuple[str, str]) -> str:
        text = self.config.system.replace("{box}", box_help[0]).replace("{boxes}", box_help[1])
        return text.replace("{steps}", str(self.steps))

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Text at which a turn is complete."""
        return ("</tool>", "</answer>")

    def fixed_strings(self, box_key: str) -> tuple[str, ...]:
        """Grammar strings that a tokenizer trained on this dialogue should hold as single tokens."""
        return (
            *(f"[{index}]\n" for index in range(10)),
            "<think>",
            '</think><tool>{"region": [{"index": ',
            f', "{box_key}": [',
            ']}, {"index": ',
            ']}], "query": "',
            '"}</tool>',
            "</think><answer>",
            "</answer>",
            self.config.demand,
        )

    def opening(self, question: str, shown: Sequence[Shown], tool: bool) -> list[str | Slot]:
        """The user's first turn: regions, question, and whether the tool may be used."""
        return [*self._announce(shown), question if tool else f"{question}\n{self.config.demand}"]

    def observation(self, shown: Sequence[Shown], inquiry: str) -> list[str | Slot]:
        """The answer to a tool call: the regions it made."""
        return self._announce(shown)

    def _announce(self, shown: Sequence[Shown]) -> list[str | Slot]:
        pieces: list[str | Slot] = []
        for region in shown:
            label = f" {region.label}" if region.label else ""
            pieces += [Slot(region.index), f"[{region.index}]{label}\n"]
        return pieces

    def feedback(self, problem: str) -> str:
        """The answer to a turn that could not be carried out."""
        return problem

    def demand(self) -> str:
        """The prompt that demands the answer, now."""
        return self.config.demand

    def grammar(self, written: str, boxes: Sequence[BoxSchema], call: bool) -> str:
        """How a turn may go on behind `written`, as `write` writes it."""
        return turn_grammar(Form("", ("<tool>", "</tool>"), self.config.max_regions), written, boxes, call)

    def write(self, turn: Turn) -> str:
        """Write a turn as the model should; the inverse of `parse`."""
        thought = f"<think>{turn.thought}</think>"
        if turn.call is None:
            return f"{thought}<answer>{turn.answer}</answer>"
        return f"{thought}<tool>{write_call(turn.call)}</tool>"

    def parse(self, text: str) -> Turn:
        """Read a turn; what is wrong with it stands in `Turn.problem`, in words for the model. Never raises."""
        match = _TURN.fullmatch(text)
        if match is None or _TAGS.search(match["thought"]) or _TAGS.search(match["body"]):
            return Turn(problem=f"The turn is not in the right form. {_FORM}")
        thought, body = match["thought"], match["body"]
        if match["kind"] == "answer":
            problem = "" if body.strip() else "The answer is empty. Write it between <answer> and </answer>."
            return Turn(thought, answer=body.strip() or None, problem=problem)
        try:
            return Turn(thought, call=read_call(body, self.config.max_regions))
        except CallProblem as problem:
            return Turn(thought, problem=str(problem))
