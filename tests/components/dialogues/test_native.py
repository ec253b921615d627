"""The turn grammar of `native`: what is written reads back, and whatever is not a turn is told why."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vilavt_components.dialogues.native import Native, NativeConfig
from vilavt_components.language_models import tokenizer as _tokenizer
from vilavt_toolkit.contracts import AnnouncedRegion, RegionCall, Slot, ToolCall, Turn

NATIVE = Native(NativeConfig())

texts = st.text().filter(lambda text: "<" not in text)
thoughts = st.text().filter(lambda text: not any(tag in text for tag in ("think>", "tool>", "answer>")))
boxes = st.lists(st.integers(0, 1000), min_size=4, max_size=4)
regions = st.builds(RegionCall, st.integers(-3, 40), st.fixed_dictionaries({"bbox_2d": boxes}))
calls = st.builds(ToolCall, st.lists(regions, min_size=1, max_size=16).map(tuple), texts)


@given(thoughts, calls)
def test_a_written_tool_call_reads_back_the_same(thought, call):
    turn = Turn(thought, call=call)
    assert NATIVE.parse(NATIVE.write(turn)) == turn


@given(thoughts, texts.filter(str.strip))
def test_a_written_answer_reads_back_without_outer_spaces(thought, answer):
    assert NATIVE.parse(NATIVE.write(Turn(thought, answer=answer))) == Turn(thought, answer=answer.strip())


PIECES = [
    "<think>",
    "</think>",
    "<tool>",
    "</tool>",
    "<answer>",
    "</answer>",
    '{"region": [',
    '"query"',
    "]}",
    "7",
    " ",
]


@given(st.text() | st.lists(st.sampled_from(PIECES) | st.text(max_size=3)).map("".join))
def test_any_text_is_a_call_an_answer_or_a_problem_in_words(text):
    turn = NATIVE.parse(text)
    assert (turn.call is not None) + (turn.answer is not None) + bool(turn.problem) == 1


def tool(body: str) -> str:
    return f"<think>look</think><tool>{body}</tool>"


def call(region: object = None, query: object = "what?", **more: object) -> str:
    given = [{"index": 0, "bbox_2d": [0, 0, 1, 1]}] if region is None else region
    return tool(json.dumps({"region": given, "query": query, **more}))


MALFORMED = {
    "nothing": "",
    "no thought": "<answer>7</answer>",
    "two thoughts": "<think>a</think><think>b</think><answer>7</answer>",
    "a thought in a thought": "<think>a<think>b</think><answer>7</answer>",
    "an unclosed thought": "<think>a<answer>7</answer>",
    "a thought alone": "<think>a</think>",
    "tool and answer": call() + "<answer>7</answer>",
    "answer and tool": "<think>a</think><answer>7</answer><tool>{}</tool>",
    "two answers": "<think>a</think><answer>7</answer><answer>8</answer>",
    "two tools": call() + call()[len("<think>look</think>") :],
    "an answer in a tool call": call(query="<answer>7</answer>"),
    "an empty answer": "<think>a</think><answer></answer>",
    "a blank answer": "<think>a</think><answer> \n</answer>",
    "an untagged answer": "<think>a</think>7",
    "an answer without end": "<think>a</think><answer>7",
    "text after the answer": "<think>a</think><answer>7</answer> for sure",
    "text between": "<think>a</think>so<answer>7</answer>",
    "broken JSON": tool('{"region": ['),
    "no JSON": tool("zoom in"),
    "an empty call": tool(""),
    "JSON of another type": tool("[1]"),
    "no query": tool('{"region": [{"index": 0, "bbox_2d": [0, 0, 1, 1]}]}'),
    "no region": tool('{"query": "what?"}'),
    "another key": call(more=1),
    "a query that is no text": call(query=7),
    "regions that are no list": call({"index": 0}),
    "no regions": call([]),
    "a thousand regions": call([{"index": 0, "bbox_2d": [0, 0, 1, 1]}] * 1000),
    "a region that is no object": call([[0, 0, 1, 1]]),
    "a region without index": call([{"bbox_2d": [0, 0, 1, 1]}]),
    "an index in quotes": call([{"index": "0", "bbox_2d": [0, 0, 1, 1]}]),
    "a true index": call([{"index": True, "bbox_2d": [0, 0, 1, 1]}]),
    "a broken index": call([{"index": 0.0, "bbox_2d": [0, 0, 1, 1]}]),
    "no index at all": call([{"index": None, "bbox_2d": [0, 0, 1, 1]}]),
    "deep nesting": tool("[" * 100_000),
    "deep nesting in the box": tool('{"query": "", "region": [{"index": 0, "b": ' + "[" * 9000 + "]" * 9000 + "}]}"),
    "an integer that Python refuses": tool('{"region": [{"index": ' + "9" * 5000 + '}], "query": ""}'),
    "a box of NaN": tool('{"region": [{"index": 0, "bbox_2d": [NaN, 0, 1, 1]}], "query": ""}'),
    "a box of infinities": tool('{"region": [{"index": 0, "bbox_2d": [1e999, 0, 1, 1]}], "query": ""}'),
    "half a character in the query": tool('{"region": [{"index": 0}], "query": "\\ud800"}'),
    "half a character in a key": tool('{"region": [{"index": 0, "\\ud800": 1}], "query": ""}'),
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_turn_has_a_problem_and_neither_call_nor_answer(text):
    turn = NATIVE.parse(text)
    assert turn.call is None and turn.answer is None
    assert turn.problem.endswith((".", "</answer>.")) and len(turn.problem) > 15


def test_outer_spaces_and_line_breaks_between_tags_are_fine():
    assert NATIVE.parse(" <think>\na</think>\n <answer> 7\n</answer>\n") == Turn("\na", answer="7")


def test_as_many_regions_as_allowed_may_be_named():
    region = {"index": 0, "bbox_2d": [0, 0, 1, 1]}
    assert len(Native(NativeConfig(max_regions=3)).parse(call([region] * 3)).call.regions) == 3
    assert "1 to 3" in Native(NativeConfig(max_regions=3)).parse(call([region] * 4)).problem


def test_the_system_prompt_names_the_steps_and_is_itself_no_format_error():
    assert "1000 steps" in NATIVE.system and "{steps}" not in NATIVE.system
    shown = NATIVE.system[NATIVE.system.index("<think>") :].split("\n")[:2]
    assert not NATIVE.parse(shown[1]).problem


def test_the_system_prompt_shows_boxes_as_the_sources_write_them():
    class Cloud:
        box_help = ('"bbox_3d": [x1, y1, z1, x2, y2, z2]', "boxes are in {steps} steps along each axis.")

    told = NATIVE.instructions([Cloud()])
    assert '{"index": 0, "bbox_3d": [x1, y1, z1, x2, y2, z2]}' in told and told.endswith("1000 steps along each axis.")
    assert NATIVE.instructions([]) == NATIVE.system and NATIVE.system.endswith(
        "boxes are in 1000 steps from its left and top edge."
    )
    assert '{"region": [{"index": 0, "bbox_2d": [x1, y1, x2, y2]}], ' in NATIVE.system
    assert Native(NativeConfig(system="Say {steps}.")).instructions([Cloud()]) == "Say 1000."
    assert Native(NativeConfig(system="")).instructions([Cloud()]) == ""


def test_what_a_source_says_of_a_region_stands_behind_its_index():
    shown = [AnnouncedRegion(0, None, (4, 4), True), AnnouncedRegion(1, None, (4, 4), True, "2.5 s")]
    expected = [Slot(0), "[0]\n", Slot(1), "[1] 2.5 s\n"]
    assert NATIVE.opening("what?", shown, True) == [*expected, "what?"]
    assert NATIVE.observation(shown, "the digit") == expected


def test_grammar_strings_are_single_tokens_and_a_call_takes_few():
    words = ["red square", "blue circle", "what digit is on the red square?", "0 1 2 3 4 5 6 7 8 9"]
    fixed = NATIVE.fixed_strings("bbox_2d")
    tokenizer = _tokenizer.train_tokenizer(words * 20, fixed, 400, "<|feature|>")
    for text in fixed:
        assert len(tokenizer.encode(text)) == 1, text
    turn = Turn("red square", call=ToolCall((RegionCall(0, {"bbox_2d": [0, 1, 2, 3]}),), "red square"))
    ids = tokenizer.encode(NATIVE.write(turn))
    assert len(ids) <= 20
    assert NATIVE.parse(tokenizer.decode(ids)) == turn


def test_a_question_without_the_tool_demands_the_answer_at_once():
    assert NATIVE.opening("what?", [], True) == ["what?"]
    assert NATIVE.opening("what?", [], False) == ["what?\nAnswer now."]
