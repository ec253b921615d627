"""The claims that every registered reward must meet, and the samples and rollouts they are tried on."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Mapping

import numpy as np
import torch

from vilavt_toolkit.contracts import RegionCall, Reward, RewardConfig, Sample, ShownRegion, ToolCall, Trajectory, Turn
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.registry import rewards
from vilavt_toolkit.testing import bench
from vilavt_toolkit.testing.bench import Instance

_CALL = Turn("look", call=ToolCall((RegionCall(0, {"bbox_2d": [0, 0, 4, 4]}),), "read the digit"))
_BAD = Turn(problem="The turn is not in the right form.")
_for_every_instance = bench.for_every_instance(rewards)


def example_samples() -> list[Sample]:
    """Return a sample of every kind of answer, without originals."""
    answers: Mapping[str, str] = {"text": "a red square", "choice": "B", "number": "0.5", "mra": "4"} | {
        "math": "x + 1",
        "yes_no": "yes",
        "view_change": "move_right:1.0",
        "box": "[1, 2, 5, 6]",
    }
    return [Sample(f"example/{kind}", "what?", a, (), tags={"answer_kind": kind}) for kind, a in answers.items()]


def example_trajectory(turns: list[Turn], regions: int = 0, feedback: str = "") -> Trajectory:
    """Return a trajectory of an overview and these turns of eight tokens each; the first gets `feedback`."""
    trajectory = Trajectory()
    trajectory.add_region(ShownRegion(0, None, 0, 0, 4, (2, 2)), placeholder=1)
    for number, turn in enumerate(turns):
        trajectory.add_produced([3] * 8, [-0.5] * 8)
        trajectory.turns.append(turn)
        trajectory.feedback.append(feedback if number == 0 else "")
        # Only a call that is carried out adds regions; one with feedback is not.
        for _ in range(regions if turn.call is not None and not feedback else 0):
            trajectory.add_region(ShownRegion(0, (0.0, 0.0, 4.0, 4.0), 1, 0, 6, (2, 3)), placeholder=1)
    return trajectory


def example_trajectories(answer: str) -> dict[str, Trajectory]:
    """Return trajectories by what happens in them: right, wrong, with calls, broken off, empty."""
    # Among them the dialogues that the paper's implementation pays for without a right answer.
    good = Turn("seen", answer=answer)
    return {
        "answers at once": example_trajectory([good]),
        "answers otherwise": example_trajectory([Turn("seen", answer="something else")]),
        "looks, then answers": example_trajectory([_CALL, good], regions=2),
        "looks where nothing is": example_trajectory([_CALL, good], feedback="Region 0 does not exist."),
        "stumbles, then answers": example_trajectory([_BAD, good], feedback=_BAD.problem),
        "breaks off after a call": example_trajectory([_CALL], regions=1),
        "never answers": example_trajectory([_BAD]),
        "has no turn": example_trajectory([]),
    }


def _score_or_none(reward: Reward, sample: Sample, trajectory: Trajectory) -> float | None:
    """Return the score, or None if the reward refuses the sample, as a reward for one kind of answer may."""
    try:
        return reward.score(sample, trajectory)
    except InputError:
        return None


def _random_states() -> tuple[object, object, object]:
    # The three generators that Python code draws from; lists, since arrays do not compare with ==.
    numpy = np.random.get_state(legacy=True)
    return random.getstate(), [np.asarray(part).tolist() for part in numpy], torch.get_rng_state().tolist()


@_for_every_instance
def has_a_weight(instance: Instance[Reward]) -> None:
    """Its settings inherit those of every reward."""
    config = instance.entry.config
    assert issubclass(config, RewardConfig), f"{config.__name__} has no weight: it does not inherit RewardConfig"
    assert isinstance(instance.config, config), f"tiny() is no {config.__name__}"


@_for_every_instance
def stays_in_its_range(instance: Instance[Reward]) -> None:
    """The score of any rollout is finite, in [0, 1] for a reward and 0 or below for a cost."""
    reward = instance.build()
    scores = [
        (f"{sample.id} {what}", score)
        for sample in example_samples()
        for what, trajectory in example_trajectories(sample.answer).items()
        if (score := _score_or_none(reward, sample, trajectory)) is not None
    ]
    # A reward that refuses every sample would pass all the rest.
    assert scores, "every example is refused with InputError; none of them can be scored"
    for where, score in scores:
        assert math.isfinite(score) and score <= 1, f"{where}: the score is {score}"
    costs, gains = [s for _, s in scores if s < 0], [s for _, s in scores if s > 0]
    assert not (costs and gains), f"scores reach from {min(costs)} to {max(gains)}: neither reward nor cost"


@_for_every_instance
def is_a_pure_function(instance: Instance[Reward]) -> None:
    """The same rollout has the same score in any order; scoring changes nothing and draws no random numbers."""
    # A second instance scores in reverse, so that a cache or a counter inside the first one shows.
    first, second = instance.build(), instance.build()
    cases = [(s, t) for s in example_samples() for t in example_trajectories(s.answer).values()]
    before = copy.deepcopy(cases)
    states = _random_states()
    forward = [_score_or_none(first, *case) for case in cases]
    assert _random_states() == states, "scoring draws random numbers"
    assert cases == before, "scoring changes the sample or the trajectory"
    backward = [_score_or_none(second, *case) for case in reversed(cases)]
    assert forward == backward[::-1], "a score depends on what was scored before, or on chance"


CLAIMS = (
    has_a_weight,
    stays_in_its_range,
    is_a_pure_function,
)
