"""The paper's dialogue: what is written reads back, what is no turn is told why, every wording can be replaced."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vilavt_toolkit as vt
from vilavt_components.dialogues.native import Native
from vilavt_components.dialogues.vilavt import VilavtDialogue, VilavtDialogueConfig
from vilavt_components.sources.video.source import VideoSource
from vilavt_toolkit.checkpoints.loading import build
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.contracts import AnnouncedRegion, RegionCall, Sample, Slot, ToolCall, TraceTurn, Turn
from vilavt_toolkit.dialogue.traces import build_trace_session
from vilavt_toolkit.errors import BadConfig, InputError, RecipeErrors
from vilavt_toolkit.training.reinforcement.rollouts import RolloutCollector

VILAVT = VilavtDialogue(VilavtDialogueConfig())
ROOT = Path(__file__).parents[3]
GOLDEN = json.loads((ROOT / "tests" / "golden" / "parse_output.json").read_text(encoding="utf-8"))
DIFFERENT = {
    '<think>a</think>\n<tool>\n {"region":[],"query":""}\n</tool>': "it names no region",
    '<tool>{"a":1}</tool><tool>{"b":2}</tool>': "a turn has one call",
    '<answer>A</answer><tool>{"a":1}</tool>': "a turn calls the tool or answers",
    "<tool>[1]</tool>": "a call is an object",
    '<tool>"s"</tool>': "a call is an object",
    "<answer></answer>": "an empty answer is none",
}
"""The texts that the paper's parsers read as a call or an answer and ours refuses, and why."""
CALL = '{"region": [{"index": 0, "bbox_2d": [1, 2, 3, 4]}], "query": "q"}'

texts = st.text().filter(lambda text: "<" not in text)
thoughts = st.text().filter(lambda text: not any(tag in text for tag in ("think>", "tool>", "answer>")))
boxes = st.lists(st.integers(0, 4000), min_size=4, max_size=4)
regions = st.builds(RegionCall, st.integers(-3, 40), st.fixed_dictionaries({"bbox_2d": boxes}))
calls = st.builds(ToolCall, st.lists(regions, min_size=1, max_size=16).map(tuple), texts)


def read(text):
    """What ours reads in a turn, as the paper's parsers would say it: a call as data, an answer as text, or nothing."""
    turn = VILAVT.parse(text)
    assert (turn.call is not None) + (turn.answer is not None) + bool(turn.problem) == 1
    if turn.call is None:
        return None if turn.answer is None else {"text": turn.answer}
    return {"region": [{"index": r.index, **r.box} for r in turn.call.regions], "query": turn.call.inquiry}


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: row["text"])
def test_turns_are_read_as_the_papers_parsers_read_them(row):
    # The inference parser reads answers as JSON, and so most of them as nothing; the reward parser has their text.
    theirs = row["reward" if "<answer>" in row["text"] else "inference"]["value"]
    if row["text"] in DIFFERENT:
        assert read(row["text"]) is None and theirs is not None
    else:
        assert read(row["text"]) == theirs


def test_the_docs_list_exactly_these_differences():
    text = (ROOT / "docs" / "vilavt-differences.md").read_text(encoding="utf-8")
    section = text.split("\n## Turns\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted(f"`{text}`".replace("\n", "\\n") for text in DIFFERENT)


@given(thoughts, calls)
def test_a_written_tool_call_reads_back_the_same(thought, call):
    turn = Turn(thought, call=call)
    assert VILAVT.parse(VILAVT.write(turn)) == turn


@given(thoughts, texts.filter(str.strip))
def test_a_written_answer_reads_back_without_outer_spaces(thought, answer):
    assert VILAVT.parse(VILAVT.write(Turn(thought, answer=answer))) == Turn(thought, answer=answer.strip())


PIECES = ["<think>", "</think>", "<tool>", "</tool>", "<answer>", "</answer>", '{"region": [', "]}", CALL, "7", " "]


@given(st.text() | st.lists(st.sampled_from(PIECES) | st.text(max_size=3)).map("".join))
def test_any_text_is_a_call_an_answer_or_a_problem_in_words(text):
    turn = VILAVT.parse(text)
    assert (turn.call is not None) + (turn.answer is not None) + bool(turn.problem) == 1
    assert not turn.problem or turn.problem in VILAVT.feedback(turn.problem)


EXPLOITS = {
    "neither tool nor answer": "<think>a</think> I am done.",
    "a blank answer": "<think>a</think><answer> \n</answer>",
    "tool and answer": f"<think>a</think><tool>{CALL}</tool><answer>A</answer>",
    "a bad second call": f"<think>a</think><tool>{CALL}</tool><tool>{{bad}}</tool>",
    "an answer inside a call": f"<think>a</think><tool>{CALL.replace('q', '<answer>A</answer>')}</tool>",
    "an answer inside the thought": "<think><answer>A</answer></think><answer>B</answer>",
    "two thoughts": "<think>a</think><think>b</think><answer>A</answer>",
    "an open thought": "<think>a <answer>A</answer>",
    "a thought closed before it opens": "</think>a<think><answer>A</answer>",
    "more behind the answer": "<think>a</think><answer>A</answer> or B",
    "an answer without end": "<think>a</think><answer>A",
    "a number for a query": f"<think>a</think><tool>{CALL[:-4]}5}}</tool>",
}


@pytest.mark.parametrize("text", EXPLOITS.values(), ids=EXPLOITS)
def test_what_the_papers_format_reward_took_is_refused_in_words(text):
    turn = VILAVT.parse(text)
    assert turn.problem and turn.call is None and turn.answer is None


LONG = {
    "opened answers": "<answer>" * 200_000,
    "opened calls": "<think></think><tool>" * 100_000,
    "closed tags": "</tool>" * 200_000,
    "an unclosed call": "<think></think><tool>" + "{" * 1_000_000,
    "blanks": "<think>" + " \n" * 500_000 + "</think>" + " \n" * 500_000 + "<answer>",
    "rows": "<think></think><answer>" + "a row\n" * 160_000 + "</answer>",
    "less-than signs": "<" * 1_000_000,
}


# Each takes milliseconds in one pass, and hours where every tag starts another pass over the rest.
@pytest.mark.parametrize("dialogue", [VILAVT, Native(Native.tiny())], ids=["vilavt", "native"])
@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_a_turn_is_read_in_one_pass_over_its_text(dialogue, text):
    turn = dialogue.parse(text)
    assert bool(turn.problem) != (text is LONG["rows"])
    assert len(turn.problem) < 300


def test_a_call_without_a_query_is_carried_out_or_refused_in_words():
    blank = "<think>a</think><tool>" + CALL.replace('"q"', '" "') + "</tool>"
    strict = VilavtDialogue(replace(VilavtDialogue.tiny(), blank_inquiries=False))
    assert VILAVT.parse(blank).call.inquiry == " "
    assert strict.parse(blank).problem == '"query" is empty. Say in words what you want to know.'
    assert strict.parse(blank.replace('" "', '"x"')).call.inquiry == "x"


@pytest.mark.parametrize(
    "call",
    [
        CALL.replace('"index": 0', '"index": 0, "index": 1'),
        CALL.replace('{"region"', '{"query": "a", "region"'),
    ],
)
def test_a_call_that_names_a_key_twice_is_refused_in_words(call):
    assert "the same key twice" in VILAVT.parse(f"<think>a</think><tool>{call}</tool>").problem


def test_a_turn_without_a_thought_is_read_and_its_text_is_no_thought():
    assert VILAVT.parse("Well. <answer>A</answer>") == Turn("", answer="A")


def shown(index, overview=True, label="", extent=(644, 476)):
    return AnnouncedRegion(index, None, (17, 23), overview, label, extent)


def test_first_views_stand_between_their_tokens_with_their_index_before_the_question():
    pieces = VILAVT.opening("Which {index}?", [shown(0), shown(1, label="2.5 s")], True)
    assert [piece.region for piece in pieces if isinstance(piece, Slot)] == [0, 1]
    text = "".join("*" if isinstance(piece, Slot) else piece for piece in pieces)
    assert text.startswith(
        "<|vision_start|>*<|vision_end|>The index of the provided image is 0.\n"
        "<|vision_start|>*<|vision_end|>The index of the provided image is 1, 2.5 s.\nWhich {index}?\n"
    )
    assert "<tool>" in text


def test_a_question_without_the_tool_does_not_speak_of_it():
    (text,) = VILAVT.opening("Which?", [], False)
    assert "Which?" in text and "<answer>" in text and "<tool>" not in text


def test_crops_come_in_a_tool_response_with_index_width_and_height():
    pieces = VILAVT.observation([shown(1, False, extent=(56, 84)), shown(2, False, extent=(112, 28))], "q")
    assert "".join("*" if isinstance(piece, Slot) else piece for piece in pieces) == (
        "<tool_response><|vision_start|>*<|vision_end|>The index of the zoom-in image is 1 (width: 56, height: 84).\n"
        "<|vision_start|>*<|vision_end|>The index of the zoom-in image is 2 (width: 112, height: 28).\n"
        "</tool_response>"
    )


def test_the_response_to_the_last_call_demands_the_answer_within():
    response = VILAVT.observation([shown(1, False)], "q")
    assert VILAVT.observation_with_demand(response) == [*response[:-1], VILAVT.demand(), "</tool_response>"]


def test_boxes_are_in_pixels_of_what_was_shown_and_the_system_prompt_says_so():
    assert VILAVT.box_units((644, 476)) == (644, 476)
    assert "[x1, y1, x2, y2]" in VILAVT.system and "pixels" in VILAVT.system
    assert "{box" not in VILAVT.system and "steps" not in VILAVT.system


def test_the_system_prompt_explains_the_boxes_of_the_source():
    film = VideoSource.open(VideoSource.example(), VideoSource.tiny())
    text = VILAVT.instructions([film])
    assert '"time": 2.5' in text and "boxes are in pixels" in text and "in seconds" in text


TOGETHER = "model.dialogue.overviews_together=true"
RL = "rl={steps: 1, prompts_per_step: 1, group_size: 2, max_new_tokens: 2, rewards: [answer]}"


class ThreeImages:
    """A task of one question about three images."""

    def length(self, split):
        return 1

    def sample(self, split, index):
        images = [np.full((64, 64, 3), 80 * number, np.uint8) for number in range(3)]
        return Sample("three", originals=images, question="Which?", answer="2", trace=(TraceTurn("b", answer="2"),))


@pytest.mark.parametrize(("overrides", "groups"), [([], [0, 1, 2]), ([TOGETHER], [0, 0, 0])])
def test_first_views_of_a_question_are_encoded_alone_in_traces_chats_and_rollouts(tiny_recipe, overrides, groups):
    overrides = ["model.dialogue={name: vilavt, system: ''}", RL, *overrides]
    model, section = build(tiny_recipe, overrides), load_recipe(tiny_recipe, overrides).recipe.rl
    task = ThreeImages()
    chat = vt.Chat(model, task.sample("train", 0).originals, vt.Decoding(2))
    chat.ask("Which?")
    (rollouts,) = RolloutCollector(model, task, section, seed=0).collect(0)
    for session in (build_trace_session(model, task.sample("train", 0)), chat.session, *(r.session for r in rollouts)):
        trajectory = session.trajectory
        assert [region.group for region in trajectory.regions[:3]] == groups
        assert [group.text for group in trajectory.groups] == [""] * len(set(groups))


def template(tmp_path, text):
    path = tmp_path / "words.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_what_stands_around_features_is_the_same_in_dialogues_given_word_by_word():
    assert VILAVT.feature_delimiters == ("<|vision_start|>", "<|vision_end|>")
    dialogue = VilavtDialogue(
        VilavtDialogueConfig(features_prefix="<img>", features_suffix="</img>", overview="{index}: {features}; ")
    )
    assert dialogue.feature_delimiters == ("<img>", "</img>")
    assert dialogue.opening("a", [shown(0)], True)[:5] == ["0: ", "<img>", Slot(0), "</img>", "; "]


def test_a_template_replaces_the_texts_it_names_and_a_setting_goes_before_it(tmp_path):
    path = template(tmp_path, "demand: Say it.\nfeedback: 'No: {problem}'\n")
    dialogue = VilavtDialogue(VilavtDialogueConfig(template=path, demand="Now."))
    assert (dialogue.demand(), dialogue.feedback("why")) == ("Now.", "No: why")
    assert dialogue.opening("a", [], True) == VILAVT.opening("a", [], True)


def test_a_dialogue_contains_its_template_once_it_was_read(tmp_path):
    path = template(tmp_path, "demand: Say it.\n")
    contained = VilavtDialogue(VilavtDialogueConfig(template=path, max_regions=3)).self_contained_config()
    Path(path).unlink()
    assert contained.template is None and contained.max_regions == 3
    assert VilavtDialogue(contained).texts == {**VILAVT.texts, "demand": "Say it."}


BAD_TEMPLATES = {
    "demnad: x": ("demnad", "demand"),
    "demand: 3": ("demand", "Quote"),
    "- demand": ("mapping", "demand"),
    "demand: [": ("YAML",),
    "crop: no place": ("crop", "{features}"),
    "response: '{regions}{regions}'": ("response", "{regions}"),
}


@pytest.mark.parametrize(("text", "named"), BAD_TEMPLATES.items(), ids=BAD_TEMPLATES)
def test_a_bad_template_is_refused_naming_the_file_and_the_text(tmp_path, text, named):
    path = template(tmp_path, text)
    with pytest.raises((BadConfig, InputError)) as error:
        VilavtDialogue(VilavtDialogueConfig(template=path))
    assert path in str(error.value) and all(word in str(error.value) for word in named)


def test_a_template_is_a_yaml_file_of_a_size_that_texts_can_have(tmp_path):
    deep = template(tmp_path, "demand: " + "[" * 100_000)
    secret = tmp_path / "secret.conf"
    secret.write_text("password: hunter2\n")
    for path, error, said in ((deep, InputError, "more than 50 levels"), (str(secret), BadConfig, r"no \.yaml file")):
        with pytest.raises(error, match=said) as caught:
            VilavtDialogue(VilavtDialogueConfig(template=path))
        assert "hunter2" not in str(caught.value)


def test_a_template_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml"):
        VilavtDialogue(VilavtDialogueConfig(template=str(tmp_path / "none.yaml")))


def test_a_setting_that_leaves_out_what_must_be_filled_in_is_refused():
    with pytest.raises(BadConfig, match=r"`question` must hold \{question\}"):
        VilavtDialogue(VilavtDialogueConfig(question="Well?"))


def test_a_checkpoint_needs_no_template_file(tmp_path, tiny_recipe):
    from vilavt_toolkit.checkpoints.loading import build
    from vilavt_toolkit.checkpoints.native import load_checkpoint, save_checkpoint
    from vilavt_toolkit.config.recipe import load_recipe

    path = template(tmp_path, "demand: Say it.\n")
    text = tiny_recipe.read_text().replace(
        "{name: native, box_units: 4, system: ''}", f"{{name: vilavt, system: '', template: {path}}}"
    )
    tiny_recipe.write_text(text)
    save_checkpoint(tmp_path / "run", build(tiny_recipe), load_recipe(tiny_recipe), 1)
    Path(path).unlink()
    with pytest.raises(RecipeErrors, match=r"words\.yaml"):
        build(tiny_recipe)
    model, _ = load_checkpoint(tmp_path / "run")
    assert model.dialogue.demand() == "Say it."
