"""A user's reward: one function in one file, and what happens when it misbehaves."""

import re
import sys
import threading
import time
from pathlib import Path

import pytest

from vilavt_toolkit.contracts import Reward, RewardConfig, Sample, Trajectory, Turn
from vilavt_toolkit.errors import DuplicateName, InputError
from vilavt_toolkit.registry import rewards
from vilavt_toolkit.registry.plugins import load_plugins
from vilavt_toolkit.rewards import reward_function
from vilavt_toolkit.testing import check_reward
from vilavt_toolkit.testing.isolation import isolated_registries
from vilavt_toolkit.training.reinforcement.scoring import RewardError, score_all

SAMPLE = Sample("scenes/7", "what?", "red", ())
TRAJECTORY = Trajectory(turns=[Turn("seen", answer="red")], feedback=[""])

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")


class Made(Reward):
    """A reward that does what it is told."""

    def __init__(self, does):
        self.does = does

    @classmethod
    def tiny(cls):
        return RewardConfig()

    def score(self, sample, trajectory):
        return self.does()


def raising(error):
    raise error


def score_one(does, **options):
    return score_all([("mine", Made(does))], [(SAMPLE, TRAJECTORY)], **options)


def test_the_function_of_the_docs_in_a_file_of_its_own_is_a_reward(tmp_path):
    (tmp_path / "mine.py").write_text(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1])
    with isolated_registries():
        load_plugins(["./mine.py"], relative_to=tmp_path)
        entry = rewards.get("short_thoughts")
        assert entry.summary == "The share of turns whose thought has ten words at most."
        assert entry.config is RewardConfig
        assert entry.origin.endswith("mine.py")
        assert entry.cls(entry.config(weight=0.5)).score(SAMPLE, TRAJECTORY) == 1
        check_reward("short_thoughts")


def test_the_function_stays_a_function():
    with isolated_registries():

        @reward_function("half")
        def half(sample, trajectory):
            return 0.5

        assert half(SAMPLE, TRAJECTORY) == 0.5


def test_two_functions_of_one_name_are_refused_naming_both():
    with isolated_registries():
        reward_function("twice")(lambda sample, trajectory: 0.0)
        with pytest.raises(DuplicateName, match="two rewards are named 'twice'"):
            reward_function("twice")(lambda sample, trajectory: 1.0)


@pytest.mark.parametrize(
    ("does", "words"),
    [
        (lambda: float("nan"), "it returned nan"),
        (lambda: float("-inf"), "it returned -inf"),
        (lambda: None, "it raised TypeError"),
        (lambda: "0.5", "it raised TypeError: a reward is a number, not the text '0.5'"),
        (lambda: raising(KeyError("gold")), "it raised KeyError: 'gold'"),
        (lambda: raising(InputError("no letter.")), "no letter"),
        (lambda: sys.exit(3), "it raised SystemExit"),
    ],
)
def test_a_reward_that_fails_is_named_with_the_sample(does, words):
    with pytest.raises(RewardError) as caught:
        score_one(does)
    assert str(caught.value).startswith("reward 'mine', sample scenes/7: ")
    assert words in str(caught.value)


def test_the_users_traceback_is_kept():
    with pytest.raises(RewardError) as caught:
        score_one(lambda: raising(KeyError("gold")))
    assert isinstance(caught.value.__cause__, KeyError)
    assert caught.value.__cause__.__traceback__ is not None


def test_a_reward_that_hangs_is_named_and_does_not_hold_the_program():
    never, started = threading.Event(), time.monotonic()
    with pytest.raises(RewardError, match=r"reward 'mine', sample scenes/7: it has not returned for 0\.05 seconds"):
        score_one(never.wait, seconds=0.05)
    assert time.monotonic() - started < 5
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "rewards")
    never.set()


def test_all_rollouts_are_scored_by_all_rewards_in_order():
    counted = iter(range(100))
    named = [("count", Made(lambda: next(counted))), ("half", Made(lambda: 0.5))]
    assert score_all(named, [(SAMPLE, TRAJECTORY)] * 3) == [[0, 0.5], [1, 0.5], [2, 0.5]]
    assert score_all(named, []) == []


def test_nothing_is_scored_after_a_failure():
    calls = []

    def fails():
        calls.append(1)
        raise ValueError

    with pytest.raises(RewardError):
        score_all([("mine", Made(fails))], [(SAMPLE, TRAJECTORY)] * 1000)
    assert len(calls) == 1
