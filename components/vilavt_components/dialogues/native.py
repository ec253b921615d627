"""Dialogue `native`: a thought, then a tool call in JSON or an answer, each in its tag."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vilavt_components.dialogues.grammar import TurnSyntax
from vilavt_components.dialogues.tagged_turns import BLANK_INQUIRIES_HELP, TaggedDialogue, TaggedText
from vilavt_toolkit.contracts import AnnouncedRegion, Slot, Turn
from vilavt_toolkit.registry import dialogues
from vilavt_toolkit.settings import setting

SYSTEM = """You answer questions about images. You can look closer: name regions of what you were shown and say, in \
plain words, what you want to know; the regions are cut from the originals, enlarged, and encoded with your inquiry in \
mind. Every turn is a thought and then either one tool call or one answer:
<think>what you see and need</think><tool>{"region": [{"index": 0, {box}}], \
"query": "what you want to know"}</tool>
<think>what you found</think><answer>your answer</answer>
"index" is the number that stands after what you were shown; {boxes}"""

_EXPECTED_FORM = "Write one <think>..</think>, then one <tool>..</tool> or one <answer>..</answer>."


@dataclass(frozen=True)
class NativeConfig:
    """Settings of dialogue `native`."""

    box_units: int = setting(
        1000, help="units per side of a region in which boxes are written", minimum=2, formerly=("steps",)
    )
    system: str = setting(SYSTEM, help="system prompt, '{box}', '{boxes}' and '{steps}' filled in (empty: none)")
    demand: str = setting("Answer now.", help="text that demands the answer")
    max_regions: int = setting(16, help="most regions in one tool call", minimum=1)
    blank_inquiries: bool = setting(True, help=BLANK_INQUIRIES_HELP)


@dialogues.register("native", NativeConfig)
class Native(TaggedDialogue):
    """<think>, then <tool> {json} or <answer>; after a region come its number and its source's label."""

    def __init__(self, config: NativeConfig) -> None:
        self.config = config
        self.units_per_side = config.box_units
        self.syntax = TurnSyntax("", ("<tool>", "</tool>"), config.max_regions, config.blank_inquiries)

    @classmethod
    def tiny(cls) -> NativeConfig:
        """Return settings without a system prompt."""
        return NativeConfig(box_units=8, system="")

    def fill_system_prompt(self, box_help: tuple[str, str]) -> str:
        """Return the system prompt with a source's `box_help` filled in."""
        text = self.config.system.replace("{box}", box_help[0]).replace("{boxes}", box_help[1])
        return text.replace("{steps}", str(self.units_per_side))

    def fixed_strings(self, box_key: str) -> tuple[str, ...]:
        """Return the strings that a tokenizer trained on this dialogue should hold as single tokens."""
        return (*(f"[{index}]\n" for index in range(10)), *self.turn_strings(box_key), self.config.demand)

    def opening(self, question: str, shown: Sequence[AnnouncedRegion], tool: bool) -> list[str | Slot]:
        """Return the first user turn: regions, question and, without the tool, the demand for the answer."""
        return [*self._announce_regions(shown), question if tool else f"{question}\n{self.config.demand}"]

    def observation(self, shown: Sequence[AnnouncedRegion], inquiry: str) -> list[str | Slot]:
        """Return the user turn that answers a tool call: the regions that it showed."""
        return self._announce_regions(shown)

    def _announce_regions(self, shown: Sequence[AnnouncedRegion]) -> list[str | Slot]:
        pieces: list[str | Slot] = []
        for region in shown:
            label = f" {region.label}" if region.label else ""
            pieces += [Slot(region.index), f"[{region.index}]{label}\n"]
        return pieces

    def feedback(self, problem: str) -> str:
        """Return the user turn for a turn that was rejected: the problem alone."""
        return problem

    def demand(self) -> str:
        """Return the text that demands the answer."""
        return self.config.demand

    def parse(self, text: str) -> Turn:
        """Read a turn. A fault in it becomes `Turn.problem`, in words for the model, and never an exception."""
        split = TaggedText.split(text)
        action, thought = split.action(), split.thought()
        if action is None or thought is None:
            return Turn(problem=f"The turn is not in the right form. {_EXPECTED_FORM}")
        return self.build_turn(thought, *action)
