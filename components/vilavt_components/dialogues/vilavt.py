"""Dialogue `vilavt`, the paper's: one zoom tool, boxes in pixels of what was shown, crops in tool responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vilavt_components.dialogues.grammar import TurnSyntax
from vilavt_components.dialogues.tagged_turns import BLANK_INQUIRIES_HELP, TaggedDialogue, TaggedText
from vilavt_components.dialogues.vilavt_texts import PLACEHOLDERS, fill_text, read_texts
from vilavt_toolkit.contracts import AnnouncedRegion, Slot, Turn
from vilavt_toolkit.registry import dialogues
from vilavt_toolkit.settings import setting

_EXPECTED_FORM = (
    "Write one <think> .. </think>, then one <tool> .. </tool> or one <answer> .. </answer>, and nothing after it."
)


@dataclass(frozen=True)
class VilavtDialogueConfig:
    """Settings of dialogue `vilavt`. A text that is null is taken from `template`, else from vilavt_template.yaml."""

    template: str | None = setting(
        None, help="YAML file with texts that replace the default ones (null: none)", is_path=True
    )
    system: str | None = setting(
        None, help="system prompt, '{box}' and '{boxes}' filled in (empty: none, null: the template's, as below)"
    )
    features_prefix: str | None = setting(None, help="text right before the features of an image", formerly=("before",))
    features_suffix: str | None = setting(None, help="text right after the features of an image", formerly=("behind",))
    overview: str | None = setting(
        None, help="overview, with '{features}', '{index}', and '{label}', '{width}', '{height}' if wanted"
    )
    question: str | None = setting(None, help="text after the overviews, with '{question}'")
    question_without_tool: str | None = setting(
        None, help="replaces `question` if the tool may not be used", formerly=("forced",)
    )
    response: str | None = setting(None, help="reply to a tool call, with '{regions}'")
    crop: str | None = setting(None, help="region in a reply, filled in as `overview`")
    feedback: str | None = setting(None, help="reply to a turn that was rejected, with '{problem}'")
    demand: str | None = setting(None, help="text that demands the answer")
    overviews_together: bool = setting(
        False, help="let the overviews of a question attend to each other if blocks span groups (the paper's do not)"
    )
    max_regions: int = setting(16, help="most regions in one tool call", minimum=1)
    blank_inquiries: bool = setting(True, help=BLANK_INQUIRIES_HELP)


@dialogues.register("vilavt", VilavtDialogueConfig)
class VilavtDialogue(TaggedDialogue):
    """The paper's dialogue: <think>, then <tool> {json} or <answer>. Every text of it can be replaced."""

    units_per_side = 0  # boxes are in pixels of the view
    feature_delimiters = ("<|vision_start|>", "<|vision_end|>")

    def __init__(self, config: VilavtDialogueConfig) -> None:
        self.config = config
        self.texts = read_texts(config.template, {name: getattr(config, name) for name in PLACEHOLDERS})
        self.feature_delimiters = self.texts["features_prefix"], self.texts["features_suffix"]
        self.overviews_together = config.overviews_together
        self.syntax = TurnSyntax("\n", ("<tool> ", " </tool>"), config.max_regions, config.blank_inquiries)

    @classmethod
    def tiny(cls) -> VilavtDialogueConfig:
        """Return settings without a system prompt."""
        return VilavtDialogueConfig(system="")

    def self_contained_config(self) -> VilavtDialogueConfig:
        """Return the config with all texts in it and without a template, so that a checkpoint needs no other file."""
        texts: dict[str, Any] = dict(self.texts)
        return replace(self.config, template=None, **texts)

    def fill_system_prompt(self, box_help: tuple[str, str]) -> str:
        """Return the system prompt with a source's `box_help` filled in."""
        box, boxes = box_help
        # Sources describe boxes in steps of a region's side. Here the units are the pixels of its view.
        boxes = boxes.replace("{steps} steps", "pixels (of what was shown)")
        return fill_text(self.texts["system"], box=box, boxes=boxes)

    def fixed_strings(self, box_key: str) -> tuple[str, ...]:
        """Return the strings that a tokenizer trained on this dialogue should hold as single tokens."""
        return (*self.feature_delimiters, *self.turn_strings(box_key), self.texts["demand"])

    def opening(self, question: str, shown: Sequence[AnnouncedRegion], tool: bool) -> list[str | Slot]:
        """Return the first user turn: regions, then the question with or without the tool."""
        asked = fill_text(self.texts["question" if tool else "question_without_tool"], question=question)
        return [*self._announce_regions(shown, "overview"), asked]

    def observation(self, shown: Sequence[AnnouncedRegion], inquiry: str) -> list[str | Slot]:
        """Return the reply to a tool call: the regions that it showed, with their sizes."""
        before, after = self.texts["response"].split("{regions}")
        return [before, *self._announce_regions(shown, "crop"), after]

    def observation_with_demand(self, observation: Sequence[str | Slot]) -> list[str | Slot]:
        """Return the reply to a tool call with the demand in it, after the regions."""
        # The demand goes inside of <tool_response>: a user turn is one response.
        *regions, after = observation
        return [*regions, self.demand(), after]

    def _announce_regions(self, shown: Sequence[AnnouncedRegion], name: str) -> list[str | Slot]:
        (prefix, suffix), (before, after) = self.feature_delimiters, self.texts[name].split("{features}")
        pieces: list[str | Slot] = []
        for region in shown:
            # Views of other sources than images may have no width and height.
            width, height = (*region.extent, "?", "?")[:2]
            label = f", {region.label}" if region.label else ""
            values: dict[str, Any] = {"index": region.index, "label": label, "width": width, "height": height}
            pieces += [fill_text(before, **values), prefix, Slot(region.index), suffix, fill_text(after, **values)]
        return pieces

    def feedback(self, problem: str) -> str:
        """Return the user turn for a turn that was rejected."""
        return fill_text(self.texts["feedback"], problem=problem)

    def demand(self) -> str:
        """Return the text that demands the answer."""
        return self.texts["demand"]

    def parse(self, text: str) -> Turn:
        """Read a turn. A fault in it becomes `Turn.problem`, in words for the model, and never an exception.

        As in the paper, a turn without a thought is read too: a reward may ask for the thought.
        """
        split = TaggedText.split(text)
        action = split.action()
        if action is None:
            return Turn(problem=f"The turn is not in the right form. {_EXPECTED_FORM}")
        # Text without tags before the call or the answer is not a thought, and no fault either.
        thought = split.thought() if len(split.tags) > 2 else ""
        if thought is None:
            return Turn(problem=f"The turn does not have one thought. {_EXPECTED_FORM}")
        return self.build_turn(thought, *action)
