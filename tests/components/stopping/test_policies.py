"""Stopping policies: what ends a dialogue, what does not, and what is said of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vilavt_components.stopping.budget import Budget, BudgetConfig
from vilavt_components.stopping.confidence import Confidence, ConfidenceConfig
from vilavt_components.stopping.converged import Converged, ConvergedConfig
from vilavt_components.stopping.learned_halt import LearnedHalt, LearnedHaltConfig
from vilavt_components.stopping.max_turns import MaxTurns, MaxTurnsConfig
from vilavt_toolkit.config.parsing import parse_config
from vilavt_toolkit.contracts import GO_ON, LoopState, Probe, ToolCall, Turn, Usage
from vilavt_toolkit.errors import RecipeErrors

CALL, ANSWER, BROKEN = Turn(call=ToolCall((), "what?")), Turn(answer="7"), Turn(problem="no tag")
NOTHING = LoopState((), 0)
UNITS = ["patches", "tokens", "flops", "seconds"]

amounts = st.integers(0, 50)
costs = st.builds(Usage, amounts, amounts, amounts, amounts, amounts, amounts.map(float), amounts.map(float))


def after(*turns: Turn, **state) -> LoopState:
    return replace(NOTHING, turns=turns, **state)


def looking(*turns: Turn, **state) -> LoopState:
    return after(*turns, before_turn=True, **state)


def probes(*answers: tuple[str | None, float]) -> tuple[Probe, ...]:
    return tuple(Probe(answer, probability, probability / 2) for answer, probability in answers)


# --- Budget ----------------------------------------------------------------------------------------------------------


@given(spent=costs, planned=costs, limit=amounts, unit=st.sampled_from(UNITS))
def test_a_budget_carries_out_a_call_exactly_if_it_fits(spent, planned, limit, unit):
    said = Budget(BudgetConfig(**{unit: limit}), 8).decide(after(CALL, spent=spent, planned=planned))
    if getattr(spent, unit) + getattr(planned, unit) <= limit:
        assert said == GO_ON
    else:
        assert (said.action, said.carry_out_call) == ("answer", False)
        assert unit in said.why.lower() and f"{limit:,g}" in said.why


@given(spent=costs, limit=amounts, unit=st.sampled_from(UNITS), turns=st.sampled_from([(), (CALL,), (BROKEN,)]))
def test_at_a_look_a_budget_counts_what_is_spent_alone(spent, limit, unit, turns):
    said = Budget(BudgetConfig(**{unit: limit}), 8).decide(looking(*turns, spent=spent, planned=Usage(*[99] * 7)))
    assert said.action == ("answer" if getattr(spent, unit) > limit else "go_on")


def test_the_tokens_of_a_budget_are_all_that_the_language_model_reads_and_writes():
    spent = Usage(patches=100, features=1, read=2, written=3, probed=4)
    assert Budget(BudgetConfig(tokens=9), 8).decide(looking(spent=spent)).action == "answer"
    assert Budget(BudgetConfig(tokens=10), 8).decide(looking(spent=spent)) == GO_ON


def test_of_several_limits_that_which_is_exceeded_is_named():
    budget = Budget(BudgetConfig(patches=1000, seconds=1.5), 8)
    said = budget.decide(looking(CALL, spent=Usage(patches=10, seconds=2.25)))
    assert said.why == "the budget of 1.5 seconds does not allow more: 2.25 seconds are spent"


@pytest.mark.parametrize("policy", [Budget(BudgetConfig(patches=0), 8), MaxTurns(MaxTurnsConfig(turns=1), 8)])
def test_an_answer_that_is_there_is_not_demanded_again(policy):
    spent = Usage(patches=1)
    assert policy.decide(after(ANSWER, spent=spent)).action == "stop"
    assert policy.decide(after(BROKEN, spent=spent)).action == "answer"


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(RecipeErrors, match="Set at least one of patches, tokens, flops and seconds"):
        parse_config(BudgetConfig, {})


# --- Confidence ------------------------------------------------------------------------------------------------------


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_probed_answer_is_taken_exactly_from_the_threshold_on(probability, threshold):
    policy = Confidence(ConfidenceConfig(threshold=threshold), 8)
    said = policy.decide(looking(probes=probes(("7", probability))))
    assert said.action == ("answer" if probability >= threshold else "go_on")


def test_what_was_probed_before_and_a_probe_without_an_answer_end_nothing():
    policy = Confidence(ConfidenceConfig(threshold=0.5), 8)
    assert policy.decide(looking(CALL, probes=probes(("7", 0.9), ("7", 0.4)))) == GO_ON
    assert policy.decide(looking(probes=probes((None, 0.9)))) == GO_ON


def test_the_first_looks_can_be_left_alone():
    policy = Confidence(ConfidenceConfig(threshold=0.5, min_looks=1), 8)
    assert policy.decide(looking(probes=probes(("7", 0.9)))) == GO_ON
    said = policy.decide(looking(CALL, probes=probes(("7", 0.9), ("7", 0.8))))
    assert said.why == "the probed answer has a probability of 0.800, at least 0.5"


def test_the_probability_may_be_that_of_the_whole_turn():
    policy = Confidence(ConfidenceConfig(threshold=0.5, probability_of="turn"), 8)
    assert policy.decide(looking(probes=(Probe("7", 0.9, 0.4),))) == GO_ON
    assert "the probed turn" in policy.decide(looking(probes=(Probe("7", 0.2, 0.6),))).why


# --- Converged -------------------------------------------------------------------------------------------------------


def at_angles(*degrees: float) -> tuple[torch.Tensor, ...]:
    radians = torch.deg2rad(torch.tensor(degrees))
    return tuple(length * torch.tensor([a.cos(), a.sin()]) for length, a in enumerate(radians, 1))


@pytest.mark.parametrize(
    ("degrees", "patience", "ends"),
    [
        ((0,), 1, False),
        ((0, 50), 1, False),
        ((0, 50, 55), 1, True),
        ((0, 50, 55), 2, False),
        ((0, 50, 55, 58), 2, True),
        ((0, 5, 50), 1, False),
        ((0, float("nan")), 1, False),
    ],
)
def test_features_have_converged_when_their_direction_stays(degrees, patience, ends):
    policy = Converged(ConvergedConfig(threshold=0.98, patience=patience), 2)
    said = policy.decide(looking(CALL, features=at_angles(*degrees)))
    assert said.action == ("answer" if ends else "go_on")


@pytest.mark.parametrize(
    ("answers", "patience", "ends"),
    [
        (["7"], 1, False),
        (["7", "7"], 1, True),
        (["7", "7"], 2, False),
        (["3", "7", "7", "7"], 2, True),
        (["7", "3", "7"], 1, False),
        ([None, None], 1, False),
    ],
)
def test_answers_have_converged_when_the_last_are_one(answers, patience, ends):
    policy = Converged(ConvergedConfig(signal="answer", patience=patience), 2)
    said = policy.decide(looking(CALL, probes=probes(*[(answer, 0.5) for answer in answers])))
    assert said.action == ("answer" if ends else "go_on")


def test_nothing_more_is_found_out_at_a_look_than_is_compared():
    assert Converged(ConvergedConfig(), 2).needs == {"features"}
    assert Converged(ConvergedConfig(signal="answer"), 2).needs == {"probe"}


# --- Learned halt ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [0, 16])
def test_a_head_learns_which_hidden_states_end_a_dialogue(hidden):
    torch.manual_seed(0)
    policy = LearnedHalt(LearnedHaltConfig(hidden_dim=hidden), 6)
    states = torch.randn(256, 6)
    answered = (states[:, 1] > states[:, 4]).float()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.03)
    for _ in range(100):
        optimizer.zero_grad()
        (policy.loss(states, answered) / len(states)).backward()
        optimizer.step()
    said = [policy.decide(looking(hidden=state)).action == "answer" for state in states]
    right = [answers == bool(wanted) for answers, wanted in zip(said, answered, strict=True)]
    assert sum(right) > 0.95 * len(right)


def test_the_threshold_alone_decides_how_early_a_head_halts():
    state = looking(hidden=torch.ones(6))
    torch.manual_seed(0)
    head = LearnedHalt(LearnedHaltConfig(), 6).state_dict()

    def halts(threshold: float) -> bool:
        policy = LearnedHalt(LearnedHaltConfig(threshold=threshold), 6)
        policy.load_state_dict(head)
        return policy.decide(state).action == "answer"

    said = [halts(step / 20) for step in range(21)]
    assert said[0] and not said[-1] and said == sorted(said, reverse=True)


def test_hidden_states_that_are_no_numbers_go_on():
    policy = LearnedHalt(LearnedHaltConfig(threshold=0.0), 6)
    assert policy.decide(looking(hidden=torch.full((6,), float("nan")))) == GO_ON


def test_the_weight_of_its_loss_is_the_policys_own():
    torch.manual_seed(0)
    one, three = (LearnedHalt(LearnedHaltConfig(weight=weight), 6) for weight in (1.0, 3.0))
    three.load_state_dict(one.state_dict())
    states, answered = torch.randn(4, 6), torch.tensor([0.0, 1.0, 1.0, 0.0])
    torch.testing.assert_close(three.loss(states, answered), 3 * one.loss(states, answered))
