"""Rewards `format`, `reencode_cost`, `overlong_cost` and `gated`."""

from dataclasses import dataclass, replace

import pytest

from vilavt_components.rewards.answer import AnswerConfig, read_final_answer
from vilavt_components.rewards.format import Format, FormatConfig
from vilavt_components.rewards.gated import Gated, GatedConfig
from vilavt_components.rewards.overlong_cost import OverlongCost, OverlongCostConfig
from vilavt_components.rewards.reencode_cost import ReencodeCost, ReencodeCostConfig
from vilavt_toolkit.config.parsing import parse_config, to_plain
from vilavt_toolkit.contracts import RegionCall, ToolCall, Trajectory, Turn
from vilavt_toolkit.registry import Part, rewards
from vilavt_toolkit.settings import part

LOOK = '<think>look</think><tool>{"region": [%s], "query": "q"}</tool>'
BOX = '{"index": 0, "bbox_2d": [0, 0, 2, 2]}'
ANSWER = "<think>seen</think><answer>B</answer>"


@dataclass(frozen=True)
class Section:
    """A list of rewards, as a recipe has one."""

    rewards: list = part("reward", "what is rewarded", many=True)


def test_a_blank_thought_counts_only_where_it_may(play, ask):
    blank = play(["<think> </think><answer>B</answer>"])
    assert Format(FormatConfig()).score(ask("choice", "B"), blank) == 0
    assert Format(FormatConfig(empty_thoughts=True)).score(ask("choice", "B"), blank) == 1


@pytest.mark.parametrize("inquiry", ["", "  ", "\\n\\t"])
def test_a_zoom_without_an_inquiry_has_no_form_unless_allowed(play, ask, inquiry):
    zoomed = play([LOOK.replace('"q"', f'"{inquiry}"') % BOX, ANSWER])
    assert len(zoomed.regions) == 2  # the call was carried out
    assert Format(FormatConfig()).score(ask("choice", "B"), zoomed) == 0
    assert Format(FormatConfig(blank_inquiries=True)).score(ask("choice", "B"), zoomed) == 1


def test_format_says_nothing_about_being_right(play, ask):
    assert Format(FormatConfig()).score(ask("choice", "C"), play([ANSWER])) == 1


@pytest.mark.parametrize(("regions", "cost"), [(0, 0), (1, -0.1), (2, -0.2), (3, -0.3)])
def test_every_region_that_was_looked_at_again_costs(play, ask, regions, cost):
    texts = [LOOK % ", ".join([BOX] * regions)] if regions else []
    priced = ReencodeCost(ReencodeCostConfig(price=0.1))
    assert priced.score(ask("choice", "B"), play([*texts, ANSWER])) == pytest.approx(cost)


def test_what_is_free_and_what_is_most_bound_the_cost(play, ask):
    trajectory = play([LOOK % ", ".join([BOX] * 4), ANSWER])
    cost = lambda **settings: ReencodeCost(ReencodeCostConfig(**settings)).score(ask("choice", "B"), trajectory)  # noqa: E731
    assert cost(price=0.1, free_units=3) == pytest.approx(-0.1)
    assert cost(price=0.1, free_units=9) == 0
    assert cost(price=1, max_cost=0.5) == -0.5


def test_tokens_cost_as_many_as_the_regions_take(play, ask):
    trajectory = play([LOOK % BOX, ANSWER])
    tokens = sum(region.count for region in trajectory.regions if region.box is not None)
    priced = ReencodeCost(ReencodeCostConfig(unit="token", price=0.01, free_units=1))
    assert priced.score(ask("choice", "B"), trajectory) == pytest.approx(-0.01 * (tokens - 1))


def test_a_refused_call_encodes_and_costs_nothing(play, ask):
    trajectory = play([LOOK % '{"index": 9, "bbox_2d": [0, 0, 2, 2]}', ANSWER])
    assert ReencodeCost(ReencodeCostConfig()).score(ask("choice", "B"), trajectory) == 0


@pytest.mark.parametrize(
    ("produced", "cost"), [(0, 0), (80, 0), (81, -0.05), (90, -0.5), (99, -0.95), (100, -1), (500, -1)]
)
def test_the_overlong_cost_rises_over_its_margin(ask, produced, cost):
    trajectory = Trajectory()
    trajectory.add_given([1] * 300)
    trajectory.add_produced([2] * produced)
    priced = OverlongCost(OverlongCostConfig(length=100, margin=20))
    assert priced.score(ask("choice", "B"), trajectory) == cost


def turns(*given, feedback=None):
    return Trajectory(turns=list(given), feedback=list(feedback or [""] * len(given)))


SEEN = Turn("seen", answer="B")
CALLED = Turn("look", call=ToolCall((RegionCall(0, {"bbox_2d": [0, 0, 2, 2]}),), "q"))


@pytest.mark.parametrize(
    ("trajectory", "score"),
    [
        (turns(SEEN), 1),
        (turns(CALLED, SEEN), 1),
        (turns(CALLED, SEEN, feedback=["Region 0 does not exist.", ""]), 0),
        (turns(replace(CALLED, thought=" "), SEEN), 0),
        (turns(replace(CALLED, answer="B"), SEEN), 0),
        (turns(replace(CALLED, call=ToolCall((), "q")), SEEN), 0),
        (turns(Turn("seen", answer=" "), SEEN), 0),
        (turns(Turn("seen"), SEEN), 0),
        (turns(replace(SEEN, problem="broken"), SEEN), 0),
        (turns(replace(SEEN, problem="broken")), 0),
        (turns(replace(SEEN, call=CALLED.call)), 0),
        (turns(SEEN, CALLED), 0),
        (turns(), 0),
    ],
)
def test_every_turn_has_one_thought_and_one_call_or_answer(ask, trajectory, score):
    assert Format(FormatConfig()).score(ask("choice", "B"), trajectory) == score


@pytest.mark.parametrize(
    ("turn", "answer"),
    [
        (SEEN, "B"),
        (replace(SEEN, problem="broken"), None),
        (replace(SEEN, call=CALLED.call), None),
        (replace(SEEN, answer=" "), None),
        (CALLED, None),
    ],
)
def test_only_a_last_turn_that_answers_in_the_right_form_has_an_answer(turn, answer):
    assert read_final_answer(turns(SEEN, turn)) == answer
    assert read_final_answer(turns()) is None


@pytest.mark.parametrize(("wanted", "score"), [("10", 0.5), ("7", 1), ("100", 0)])
def test_a_gated_reward_needs_its_condition_above_0(ask, wanted, score):
    near = turns(Turn("seen", answer="7"))
    condition = Part("reward", "answer", AnswerConfig(kind="mra"))
    gated = Gated(GatedConfig(reward=condition, condition=condition))
    assert gated.score(ask("mra", wanted), near) == pytest.approx(score)
    whole = Gated(GatedConfig(reward=Part("reward", "format", FormatConfig()), condition=condition))
    assert whole.score(ask("mra", wanted), near) == float(score > 0)


def test_costs_of_nothing_are_plain_zero(play, ask):
    for priced in (ReencodeCost(ReencodeCostConfig()), OverlongCost(OverlongCostConfig(length=999, margin=9))):
        assert str(priced.score(ask("choice", "B"), play([ANSWER]))) == "0.0"


def test_the_papers_reward_is_two_weighted_parts(play, ask):
    """0.5 outcome + 0.5 format where the outcome is above 0, else 0."""
    plain = {
        "rewards": [
            {"name": "answer", "weight": 0.5, "kind": "mra"},
            {"name": "gated", "weight": 0.5, "reward": "format", "condition": {"name": "answer", "kind": "mra"}},
        ]
    }
    section = parse_config(Section, plain)
    assert parse_config(Section, to_plain(section)) == section
    built = [(chosen.config.weight, rewards.get(chosen.name).cls(chosen.config)) for chosen in section.rewards]

    def total(truth, texts):
        trajectory = play(texts)
        return sum(weight * reward.score(ask("mra", truth), trajectory) for weight, reward in built)

    near = "<think>seen</think><answer>7</answer>"
    assert total("10", [near]) == 0.75
    assert total("7", [near]) == 1
    assert total("7", [LOOK % '{"index": 9}', near]) == 0.5
    assert total("100", [near]) == 0
