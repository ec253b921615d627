"""The re-encoding as another agent's tool: what its schema says is carried out, what is wrong comes back in words."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

import vilavt_toolkit as vt
from vilavt_toolkit.chat.tool import TOOL_NAME
from vilavt_toolkit.errors import InputError, UsageError

SHORT = vt.Decoding(max_new_tokens=8)

PIXELS = """
model:
  encoder:
    name: qwen2_5_vl
    config: {depth: 1, hidden_size: 32, intermediate_size: 64, num_heads: 2, out_hidden_size: 32, patch_size: 4,
             temporal_patch_size: 1, window_size: 16, fullatt_block_indexes: [0]}
    overview_pixels: 1024
    zoom_pixels: 768
    min_pixels: 0
  projector: {name: identity}
  dialogue: {name: vilavt}
  language_model: {config: {max_position_embeddings: 2048}}
"""


@pytest.fixture(scope="module", params=["image", "pixels", "video", "point cloud"])
def chat(request, tmp_path_factory, _tiny_folder, clouds):
    """A chat about every kind of original, and with both ways to write boxes."""
    kind, rng = request.param, np.random.default_rng(0)
    recipe, overrides = _tiny_folder / "tiny.yaml", []
    seen = rng.integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    if kind == "pixels":
        recipe = tmp_path_factory.mktemp("recipe") / "pixels.yaml"
        recipe.write_text(f"inherits: {_tiny_folder / 'tiny.yaml'}\n{PIXELS}")
    elif kind == "video":
        overrides = ["model.source.name=video", "model.source.frames=2"]
    elif kind == "point cloud":
        recipe = tmp_path_factory.mktemp("recipe") / "clouds.yaml"
        recipe.write_text(clouds)
        seen = rng.random((200, 6)).astype(np.float32)
        seen[:40, :3] /= 10_000  # so that the smallest box at the corner holds some
    model = vt.build(recipe, overrides)
    return vt.Chat(model, [seen[0] if kind in ("image", "pixels") else seen], SHORT)


def written(schema: dict[str, Any], high: bool) -> Any:
    """An instance of a schema, its numbers small or large; the first half of a box is small in any case."""
    kind = schema["type"]
    if kind == "object":
        return {key: written(schema["properties"][key], high) for key in schema["required"]}
    if kind == "array" and "prefixItems" in schema:
        half = len(schema["prefixItems"]) // 2
        return [written(item, high and place >= half) for place, item in enumerate(schema["prefixItems"])]
    if kind == "array":
        count = schema["maxItems"] if high and schema.get("maxItems", 99) < 4 else schema.get("minItems", 1)
        return [written(schema["items"], high) for _ in range(count)]
    if kind in ("integer", "number"):
        value = schema.get("maximum", schema.get("minimum", 0) + 7) if high else schema.get("minimum", 0)
        assert math.isfinite(value)
        return int(value) if kind == "integer" else value
    return "what is there?"


def check(schema: dict[str, Any]) -> None:
    """Hold that it is JSON schema: known types, and what is required is there."""
    assert schema["type"] in ("object", "array", "integer", "number", "string")
    if schema["type"] == "object":
        assert set(schema["required"]) <= set(schema["properties"])
    for part in (*schema.get("properties", {}).values(), *schema.get("prefixItems", ())):
        check(part)
    if isinstance(schema.get("items"), dict):
        check(schema["items"])


def test_the_calls_that_the_schema_describes_are_carried_out(chat, read_as_at_once):
    tool = json.loads(json.dumps(chat.tool_schema()))
    assert tool["type"] == "function" and tool["function"]["name"] == TOOL_NAME and tool["function"]["description"]
    parameters = tool["function"]["parameters"]
    check(parameters)
    shown = parameters["properties"]["region"]["items"]["properties"]["index"]["maximum"] + 1
    first = chat.call_tool(json.dumps(written(parameters, False)))
    second = chat.call_tool(written(chat.tool_schema()["function"]["parameters"], True))
    for number, result in enumerate((first, second)):
        assert not result.problem, result.problem
        (said,) = json.loads(result.content)["regions"]
        assert said["index"] == shown + number and said["original"] == 0 and said["features"] > 0
        assert [region.index for region in result.regions] == [said["index"]]
    again = chat.tool_schema()["function"]["parameters"]["properties"]["region"]["items"]["properties"]["index"]
    assert again["maximum"] == shown + 1
    answer = chat.ask("what?")
    assert answer.cost["regions"] == 0 and answer.cost["features"] == 0, "what was shown has been read"
    read_as_at_once(chat)


BROKEN: list[Any] = [
    "",
    "{",
    "[]",
    "null",
    "[" * 100_000,
    {},
    {"region": []},
    {"region": [], "query": ""},
    {"region": "all", "query": ""},
    {"region": [{"index": 0}], "query": ""},
    {"region": [{"index": 99, "bbox_2d": [0, 0, 1, 1]}], "query": ""},
    {"region": [{"index": -1, "bbox_2d": [0, 0, 1, 1]}], "query": ""},
    {"region": [{"index": True, "bbox_2d": [0, 0, 1, 1]}], "query": ""},
    {"region": [{"index": 0, "bbox_2d": [3, 3, 1, 1]}], "query": ""},
    {"region": [{"index": 0, "bbox_2d": [0, 0, float("nan"), 1]}], "query": ""},
    {"region": [{"index": 0, "bbox_2d": "0 0 1 1"}], "query": ""},
    {"region": [{"index": 0, "bbox_2d": [0, 0, 1, 1]}], "query": 3},
    {"region": [{"index": 0, "bbox_2d": [0, 0, 1, 1]}], "query": "\ud800"},
    {"region": [{"index": 0, "bbox_2d": [0, 0, 1, 1]}], "query": "", "more": 1},
    {"region": [{"index": 0, "bbox_2d": np.arange(4)}], "query": ""},
    {"region": [{"index": 0, "bbox_2d": [0, 0, 1, 1]}, {"index": 0, "bbox_2d": [0, 0, 0, 0]}], "query": ""},
    {"region": [{"index": 0, "bbox_2d": [0, 0, 4, 4]}] * 200, "query": ""},
    {"region": [{"index": 0, "bbox_2d": [0, 0, 4, 4]}] * 60, "query": ""},
    {"region": [{"index": 0, "bbox_2d": [0, 0, 1, 1]}], "query": "why? " * 500},
]


@pytest.mark.parametrize("asked", [False, True], ids=["before any question", "behind an answer"])
def test_what_is_wrong_with_a_call_comes_back_in_words_and_changes_nothing(tiny_model, picture, unharmed, asked):
    chat = vt.Chat(tiny_model, [picture(0)], SHORT)
    if asked:
        chat.ask("what?")
    with unharmed(chat):
        for broken in BROKEN:
            result = chat.call_tool(broken)
            assert len(result.problem) > 10 and not result.regions, broken
            assert json.loads(result.content) == {"error": result.problem}


def test_a_call_in_a_context_that_is_full_comes_back_in_words(tiny_model, picture, unharmed, monkeypatch):
    chat = vt.Chat(tiny_model, [picture(0)], SHORT)
    chat.ask("what?")
    call = {"region": [{"index": 0, "bbox_2d": [0, 0, 2, 2]}], "query": ""}
    for left in (0, 2, 20, 30):
        with unharmed(chat.fork()), monkeypatch.context() as patched:
            patched.setattr(tiny_model.language_model, "context_length", len(chat.trajectory.ids) + left)
            assert "does not fit" in chat.call_tool(call).problem


def test_a_question_behind_calls_sees_what_they_showed(chat_model, picture, read_as_at_once):
    def answered(*boxes: list[int]) -> vt.Answer:
        chat = vt.Chat(chat_model, [picture(0)], SHORT)
        for box in boxes:
            assert not chat.call_tool({"region": [{"index": 0, "bbox_2d": box}], "query": "red"}).problem
        chat.add(picture(1))
        answer = chat.ask("what?")
        read_as_at_once(chat)
        return answer

    one, other = answered([0, 0, 2, 2]), answered([2, 2, 4, 4])
    assert len(one.trajectory.regions) == len(other.trajectory.regions) == 3
    assert one.trajectory.logprobs != other.trajectory.logprobs
    two = answered([0, 0, 2, 2], [2, 2, 4, 4])
    assert [region.source for region in two.trajectory.regions] == [0, 0, 0, 1]


def test_a_chat_of_nothing_has_no_tool(tiny_model):
    chat = vt.Chat(tiny_model)
    with pytest.raises(UsageError, match="Add one first"):
        chat.tool_schema()
    assert (
        "no image was shown" in chat.call_tool({"region": [{"index": 0, "bbox_2d": [0, 0, 1, 1]}], "query": ""}).problem
    )
    assert not chat.trajectory.ids


def test_what_a_call_showed_outlives_the_question_behind_it_that_fails(chat_model, picture, unharmed):
    chat = vt.Chat(chat_model, [picture(0)], SHORT)
    chat.call_tool({"region": [{"index": 0, "bbox_2d": [0, 0, 2, 2]}], "query": "red"})
    with unharmed(chat.fork()), pytest.raises(InputError, match="does not fit"):
        chat.ask("what is that? " * 90)
    with unharmed(chat):
        stream = chat.stream("what?")
        next(stream)
        stream.close()


def test_a_call_behind_a_demand_that_nobody_answered_takes_the_demand_back(tiny_model, picture):
    chat = vt.Chat(tiny_model, [picture(0)], SHORT)
    chat.session.ask("what?")
    chat.session.add_demand()
    assert not chat.call_tool({"region": [{"index": 0, "bbox_2d": [0, 0, 2, 2]}], "query": "red"}).problem
    text = tiny_model.language_model.tokenizer.decode(chat.trajectory.ids)
    assert "what?" in text and tiny_model.dialogue.demand() not in text
