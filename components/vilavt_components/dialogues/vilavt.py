"""Dialogue `vilavt`: the paper's. One zoom tool, boxes in pixels of what was shown, crops in tool responses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vilavt_components.dialogues.grammar import Form, turn_grammar
from vilavt_components.dialogues.vilavt_texts import REQUIRED, filled, read_texts
from vilavt_toolkit.contracts import BoxSchema, Dialogue, Shown, Slot, Source, Turn
from vilavt_toolkit.dialogue.tool_calls import CallProblem, read_call, write_call
from vilavt_toolkit.registry import dialogues
from vilavt_toolkit.settings import setting

_TURN = re.compile(r"(?P<before>.*?)<(?P<kind>tool|answer)>(?P<body>.*?)</(?P=kind)>\s*", re.S)
_THOUGHT = re.compile(r"\s*<think>(?P<thought>.*?)</think>\s*", re.S)
_TAGS = re.compile(r"</?(?:think|tool|answer)>")
_FORM = "Write one <think> .. </think>, then one <tool> .. </tool> or one <answer> .. </answer>, and nothing after it."


@dataclass(frozen=True)
class VilavtConfig:
    """Settings of dialogue `vilavt`; its texts are those of vilavt_template.yaml, beside its code."""

    template: str | None = setting(None, help="YAML file of texts to take in place of the usual ones")
    system: str | None = setting(
        None, help="system prompt, '{box}' and '{boxes}' filled in; empty: none; null: the template's, as below"
    )
    before: str | None = setting(None, help="what stands right before the features of an image")
    behind: str | None = setting(None, help="what stands right behind them")
    overview: str | None = setting(
        None, help="a first view: '{features}', '{index}', and '{label}', '{width}', '{height}'"
    )
    question: str | None = setting(None, help="what follows the first views: '{question}'")
    forced: str | None = setting(None, help="`question` where the tool may not be used")
    response: str | None = setting(None, help="what a tool call gets back: '{regions}'")
    crop: str | None = setting(None, help="a region in a response, filled in as `overview`")
    feedback: str | None = setting(None, help="what a turn gets back that could not be carried out: '{problem}'")
    demand: str | None = setting(None, help="the prompt that demands the answer")
    overviews_together: bool = setting(
        True, help="whether first views attend to each other where blocks span groups, as in the paper"
    )
    max_regions: int = setting(16, help="regions a tool call may name", minimum=1)


@dialogues.register("vilavt", VilavtConfig)
class Vilavt(Dialogue):
    """The paper's: <think>, then <tool> {json} or <answer>; boxes in pixels of the view, every wording replaceable."""

    steps = 0
    around = ("<|vision_start|>", "<|vision_end|>")

    def __init__(self, config: VilavtConfig) -> None:
        self.config = config
        self.texts = read_texts(config.template, {name: getattr(config, name) for name in REQUIRED})
        self.around = self.texts["before"], self.texts["behind"]
        self.overviews_together = config.overviews_together

    @classmethod
    def tiny(cls) -> VilavtConfig:
        """Return settings without a system prompt."""
        return VilavtConfig(system="")

    def contained(self) -> VilavtConfig:
        """Its settings with all texts in them, and no template."""
        texts: dict[str, Any] = dict(self.texts)
        return replace(self.config, template=None, **texts)

    @property
    def system(self) -> str:
        """The system prompt as of images; empty for none."""
        return self._system(Source.box_help)

    def instructions(self, sources: Sequence[Source]) -> str:
        """The system prompt, with how the sources' boxes are written."""
        return self._system(sources[0].box_help) if sources else self.system

    def _system(self, box_help: tuple[str, str]) -> str:
        box, boxes = box_help
        return filled(self.texts["system"], box=box, boxes=boxes.replace("{steps} steps", "pixels (of what was shown)"))

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Text at which a turn is complete."""
        return ("</tool>", "</answer>")

    def fixed_strings(self, box_key: str) -> tuple[str, ...]:
        """Grammar strings that a tokenizer trained on this dialogue should hold as single tokens."""
        return (
            *self.around,
            "<think>",
            '</think>\n<tool> {"region": [{"index": ',
            f', "{box_key}": [',
            ']}, {"index": ',
            ']}], "query": "',
            '"} </tool>',
            "</think>\n<answer>",
            "</answer>",
            self.texts["demand"],
        )

    def opening(self, question: str, shown: Sequence[Shown], tool: bool) -> list[str | Slot]:
        """The user's first turn: regions, question, and whether the tool may be used."""
        asked = filled(self.texts["question" if tool else "forced"], question=question)
        return [*self._announced(shown, "overview"), asked]

    def observation(self, shown: Sequence[Shown], inquiry: str) -> list[str | Slot]:
        """The answer to a tool call: the regions it made, with their sizes, in a tool response."""
        before, after = self.texts["response"].split("{regions}")
        return [before, *self._announced(shown, "crop"), after]

    def concluded(self, observation: Sequence[str | Slot]) -> list[str | Slot]:
        """The tool response with the demand in it, behind the regions."""
        *regions, after = observation
        return [*regions, self.demand(), after]

    def _announced(self, shown: Sequence[Shown], name: str) -> list[str | Slot]:
        (left, right), (before, after) = self.around, self.texts[name].split("{features}")
        pieces: list[str | Slot] = []
        for region in shown:
            width, height = (*region.extent, "?", "?")[:2]
            label = f", {region.label}" if region.label else ""
            values: dict[str, Any] = {"index": region.index, "label": label, "width": width, "height": height}
            pieces += [filled(before, **values), left, Slot(region.index), right, filled(after, **values)]
        return pieces

    def feedback(self, problem: str) -> str:
        """The answer to a turn that could not be carried out."""
        return filled(self.texts["feedback"], problem=problem)

    def demand(self) -> str:
        """The prompt that demands the answer, now."""
        return self.texts["demand"]

    def grammar(self, written: str, boxes: Sequence[BoxSchema], call: bool) -> str:
        """How a turn may go on behind `written`, as `write` writes it: with a thought."""
        return turn_grammar(Form("\n", ("<tool> ", " </tool>"), self.config.max_regions), written, boxes, call)

    def write(self, turn: Turn) -> str:
        """Write a turn as the model should; the inverse of `parse`."""
        thought = f"<think>{turn.thought}</think>\n"
        if turn.call is None:
            return f"{thought}<answer>{turn.answer}</answer>"
        return f"{thought}<tool> {write_call(turn.call)} </tool>"

    def parse(self, text: str) -> Turn:
        """Read a turn; what is wrong with it stands in `Turn.problem`, in words for the model. Never raises.

        A turn without a thought is read too, as in the paper; that it should have one is for rewards to say.
        """
        match = _TURN.fullmatch(text)
        if match is None or _TAGS.search(match["body"]):
            return Turn(problem=f"The turn is not in the right form. {_FORM}")
        thought = _thought(match["before"])
        if thought is None:
            return Turn(problem=f"The turn does not have one thought. {_FORM}")
        if match["kind"] == "answer":
            answer = match["body"].strip()
            problem = "" if answer else "The answer is empty. Write it between <answer> and </answer>."
            return Turn(thought, answer=answer or None, problem=problem)
        try:
            return Turn(thought, call=read_call(match["body"], self.config.max_regions))
        except CallProblem as problem:
            return Turn(thought, problem=str(problem))


def _thought(before: str) -> str | None:
    """The thought in what stands before a call or an answer; empty where there is none, None where there are several.

    Text beside it is no thought.
    """
    if not _TAGS.search(before):
        return ""
    match = _THOUGHT.fullmatch(before)
    return match["thought"] if match is not None and not _TAGS.search(match["thought"]) else None
