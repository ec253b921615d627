"""The dialogue 'my_part': every turn of the model is one JSON object.

Use it in a recipe that stands beside this file:

    plugins: [./my_part.py]
    model:
      dialogue: {name: my_part, box_units: 100}
      language_model: {config: {max_position_embeddings: 1024}}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vilavt_toolkit.contracts import AnnouncedRegion, Dialogue, RegionCall, Slot, ToolCall, Turn
from vilavt_toolkit.registry import dialogues, setting

_END = "</turn>"
_FORM = '{"thought": .., "answer": ..} or {"thought": .., "inquiry": .., "regions": [{"index": 0, ..}]}'


@dataclass(frozen=True, kw_only=True)
class MyPartConfig:
    """The keys that a recipe may set, each with its type, default and help."""

    box_units: int = setting(100, help="units per side of a region in which boxes are written", minimum=2)
    system: str = setting(f"Write {_FORM}, then {_END}.", help="system prompt, empty for none")


@dialogues.register("my_part", MyPartConfig)
class MyPart(Dialogue):
    """Write turns as JSON; regions are announced by their index."""

    def __init__(self, config: MyPartConfig) -> None:
        self.config = config
        # Boxes are written in so many units per side of a region; 0 would mean pixels of its view.
        self.units_per_side = config.box_units

    @property
    def system(self) -> str:
        """The system prompt; empty for none."""
        return self.config.system

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Text at which a turn is complete."""
        return (_END,)

    def opening(self, question: str, shown: Sequence[AnnouncedRegion], tool: bool) -> list[str | Slot]:
        """Return the user's first turn: a slot for the features of every region, then the question."""
        return [*self.observation(shown, ""), question if tool else f"{question}\n{self.demand()}"]

    def observation(self, shown: Sequence[AnnouncedRegion], inquiry: str) -> list[str | Slot]:
        """Return the reply to a tool call: the regions that it made."""
        pieces: list[str | Slot] = []
        for region in shown:
            pieces += [Slot(region.index), f"[{region.index}] {region.label}\n"]
        return pieces

    def feedback(self, problem: str) -> str:
        """Return the reply to a turn that could not be carried out."""
        return problem

    def demand(self) -> str:
        """Return the prompt that demands the answer."""
        return "Answer now."

    def write(self, turn: Turn) -> str:
        """Write a turn as the model should; `parse` undoes it."""
        fields: dict[str, Any] = {"thought": turn.thought}
        if turn.call is None:
            fields["answer"] = turn.answer
        else:
            regions = [{"index": region.index, **region.box} for region in turn.call.regions]
            fields |= {"inquiry": turn.call.inquiry, "regions": regions}
        return json.dumps(fields, ensure_ascii=False) + _END

    def parse(self, text: str) -> Turn:
        """Read a turn. It never raises: `Turn.problem` says in words for the model what is wrong."""
        try:
            fields = json.loads(text.removesuffix(_END))
            if "answer" in fields:
                return Turn(str(fields["thought"]), answer=str(fields["answer"]))
            regions = tuple(_read_region(region) for region in fields["regions"])
            return Turn(str(fields["thought"]), ToolCall(regions, str(fields["inquiry"])))
        # A model can write anything, also JSON of the wrong shape or nested too deeply.
        except (ValueError, KeyError, TypeError, RecursionError):
            return Turn(problem=f"The turn is not in the right form. Write {_FORM}.")

    @classmethod
    def tiny(cls) -> MyPartConfig:
        """Return the settings of a small instance, which the contract tests build."""
        return MyPartConfig(box_units=8, system="")


def _read_region(region: dict[str, Any]) -> RegionCall:
    # All keys beside the index are the box, which only the source can read.
    return RegionCall(int(region["index"]), {key: value for key, value in region.items() if key != "index"})
