"""The claims that every registered dialogue must meet."""

from __future__ import annotations

from vilavt_toolkit.contracts import AnnouncedRegion, Dialogue, RegionCall, Slot, Source, ToolCall, Turn
from vilavt_toolkit.registry import dialogues, sources
from vilavt_toolkit.testing import bench
from vilavt_toolkit.testing.bench import Instance

_TWO_REGIONS = (RegionCall(0, {"bbox_2d": [0, 0, 1, 1]}), RegionCall(12, {"bbox_2d": [2, 0, 4, 8]}))
_TURNS = (
    Turn("I see a red square 1 2.", answer="7"),
    Turn("", answer="two words"),
    Turn("closer", call=ToolCall((RegionCall(0, {"bbox_2d": [1, 2, 3, 4]}),), "red square")),
    Turn("both", call=ToolCall(_TWO_REGIONS, 'what is "é"?')),
)
# Texts that sampling really gives early in training: cut off, malformed, nested too deep for a JSON parser.
_GARBAGE = (
    "",
    "<think>",
    "</tool>",
    "<think>a</think><tool>{</tool>",
    "\x00<answer>",
    "[" * 2000,
    "<think>x</think>",
)
_for_every_instance = bench.for_every_instance(dialogues)


def _open_example_source() -> Source:
    for entry in bench.require_entries(sources):
        original = bench.example_original(entry.cls.modality)
        if original is not None:
            return entry.cls.open(original, entry.cls.tiny())
    raise AssertionError("no registered source has an example")


@_for_every_instance
def parses_what_it_writes(instance: Instance[Dialogue]) -> None:
    """`parse` reads what `write` wrote, and a written turn ends with a stop string."""
    dialogue = instance.build()
    for turn in _TURNS:
        text = dialogue.write(turn)
        assert dialogue.parse(text) == turn, f"{text!r} is read as {dialogue.parse(text)}"
        assert text.endswith(dialogue.stop_strings), f"{text!r} ends with none of {dialogue.stop_strings}"


@_for_every_instance
def explains_unreadable_text(instance: Instance[Dialogue]) -> None:
    """`parse` raises for no text, and a turn that is neither call nor answer says why."""
    dialogue = instance.build()
    for text in _GARBAGE:
        turn = dialogue.parse(text)
        assert turn.problem or turn.call or turn.answer is not None, f"no reason is given for {text[:40]!r}"
        assert not turn.problem or dialogue.feedback(turn.problem), "a problem has no feedback"


@_for_every_instance
def holds_one_slot_for_every_region(instance: Instance[Dialogue]) -> None:
    """Openings and observations hold one slot for every shown region, in order."""
    dialogue, source = instance.build(), _open_example_source()
    # An overview and a zoom with grids of different sizes, so that slots cannot be mixed up unnoticed.
    shown = [AnnouncedRegion(0, source, (4, 4), True), AnnouncedRegion(1, source, (2, 4), False)]
    for pieces in (dialogue.opening("what is it?", shown, True), dialogue.observation(shown, "the digit")):
        slots = [piece.region for piece in pieces if isinstance(piece, Slot)]
        assert slots == [0, 1], f"slots are {slots}"
    asked = [piece for piece in dialogue.opening("what is it?", shown, True) if isinstance(piece, str)]
    assert any("what is it?" in piece for piece in asked), "the question is not in the opening"


CLAIMS = (
    parses_what_it_writes,
    explains_unreadable_text,
    holds_one_slot_for_every_region,
)
