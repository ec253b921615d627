"""Reward `vilavt`: the paper's formula, and nothing for what its code paid for without being right."""

from dataclasses import dataclass

import pytest

from vilavt_components.rewards.vilavt import VilavtReward, VilavtRewardConfig
from vilavt_toolkit.config.parsing import parse_config
from vilavt_toolkit.registry import rewards
from vilavt_toolkit.settings import part

CALL = '<think>look</think><tool>{"region": [{"index": 0, "bbox_2d": [0, 0, 2, 2]}], "query": "the digit"}</tool>'
RIGHT = "<think>seen</think><answer>B</answer>"


@dataclass(frozen=True)
class Section:
    """A list of rewards, as a recipe has one."""

    rewards: list = part("reward", "what is rewarded", many=True)


@pytest.fixture
def earned(play, ask):
    """What these turns earn, by default for a choice of which B is right."""

    def scored(*texts, kind="choice", truth="B", **settings):
        return VilavtReward(VilavtRewardConfig(**settings)).score(ask(kind, truth), play(texts))

    return scored


def answer(text):
    return f"<think>seen</think><answer>{text}</answer>"


def test_its_name_is_all_a_recipe_has_to_say(play, ask):
    (chosen,) = parse_config(Section, {"rewards": [{"name": "vilavt"}]}).rewards
    assert chosen.config.weight == 1
    assert rewards.get(chosen.name).cls(chosen.config).score(ask("choice", "B"), play([CALL, RIGHT])) == 1


def test_right_in_the_right_form_earns_all(earned):
    assert earned(RIGHT) == earned(CALL, RIGHT) == 1


def test_right_in_the_wrong_form_earns_the_outcome_s_half(earned):
    assert earned("<think>seen</think>", RIGHT) == 0.5
    assert earned("<think>seen</think>", RIGHT, format_share=0.2) == 0.8


def test_wrong_earns_nothing_whatever_its_form(earned):
    assert earned(CALL, answer("C")) == 0


def test_partly_right_earns_its_part_and_the_whole_format(earned):
    assert earned(answer("7"), kind="mra", truth="10") == pytest.approx(0.7)
    assert earned(answer("7"), kind="mra", truth="10", format_share=0.2) == pytest.approx(0.52)


def test_a_threshold_is_passed_not_reached_unless_the_recipe_says_so(earned):
    assert earned(answer("200"), kind="mra", truth="400") == 0
    assert earned(answer("200"), kind="mra", truth="400", strict=False) == pytest.approx(0.55)


def test_an_empty_thought_is_allowed_only_by_the_recipe(earned):
    assert earned("<think></think><answer>B</answer>") == 0.5
    assert earned("<think></think><answer>B</answer>", empty_thoughts=True) == 1


def test_exploit_a_turn_with_neither_tool_nor_answer_passes_the_format(earned):
    assert earned("<think>seen</think>", RIGHT) == 0.5
    assert earned("<think>B</think>") == 0


def test_exploit_an_empty_answer_passes_the_format(earned):
    assert earned("<think>seen</think><answer></answer>", RIGHT) == 0.5
    assert earned("<think>seen</think><answer> </answer>") == 0


def test_exploit_tool_and_answer_in_one_turn_pass_the_format(earned):
    assert earned(CALL + "<answer>B</answer>", RIGHT) == 0.5
    assert earned(CALL + "<answer>B</answer>") == 0


def test_exploit_string_coordinates_pass_the_format(earned):
    assert earned(CALL.replace("[0, 0, 2, 2]", '["0", "0", "2", "2"]'), RIGHT) == 0.5


def test_exploit_a_bad_second_call_passes_the_format(earned):
    assert earned(CALL + "<tool>{bad}</tool>", RIGHT) == 0.5


def test_exploit_a_dialogue_cut_off_after_a_tool_call_is_scored_on_the_prompts_placeholder(earned):
    placeholders = {"choice": "Y", "text": "Your final answer here."}
    assert [earned(CALL, kind=kind, truth=truth) for kind, truth in placeholders.items()] == [0, 0]
    assert earned(CALL, "<think>b", kind="choice", truth="Y") == 0


def test_exploit_a_dialogue_without_a_turn_passes_the_format(earned):
    assert earned() == 0


def test_exploit_what_only_begins_with_the_letter_is_right(earned):
    assert earned(answer("B is what")) == earned(answer("Banana")) == 0


def test_exploit_yes_and_no_at_once_is_right(earned):
    assert earned(answer("yes or no"), kind="yes_no", truth="no") == 0


def test_missed_by_the_paper_the_letter_in_brackets_is_right(earned):
    assert earned(answer("(A)"), truth="A") == 1


def test_missed_by_the_paper_one_half_is_0_5(earned):
    assert earned(answer("1/2"), kind="math", truth="0.5") == 1
