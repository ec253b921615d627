"""Rewards from outside: a function as a registered reward, and scoring that survives what such a function may do."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import Any

from vilavt_toolkit.contracts import Reward, Sample, Trajectory
from vilavt_toolkit.errors import VilavtError


class RewardError(VilavtError):
    """A reward that failed, was no number, or did not come back; names the reward and the sample."""


Outcome = float | RewardError


def score_all(
    rewards: Sequence[tuple[str, Reward]],
    rollouts: Sequence[tuple[Sample, Trajectory]],
    seconds: float = 60.0,
) -> list[list[float]]:
    """Score every rollout with every named reward, unweighted: a row per rollout, a column per reward.

    Raises RewardError where one raises, returns what is no finite number, or takes longer than `seconds`. The scores
    are computed in a thread that such a reward cannot keep the program from leaving.
    """
    outcomes: SimpleQueue[Outcome] = SimpleQueue()
    given_up = threading.Event()

    def work() -> None:
        for sample, trajectory in rollouts:
            for name, reward in rewards:
                outcome = _outcome(name, reward, sample, trajectory)
                outcomes.put(outcome)
                if given_up.is_set() or isinstance(outcome, RewardError):
                    return

    threading.Thread(target=work, name="rewards", daemon=True).start()
    try:
        return [[_take(outcomes, name, sample, seconds) for name, _ in rewards] for sample, _ in rollouts]
    finally:
        given_up.set()


def score_safely(name: str, reward: Reward, sample: Sample, trajectory: Trajectory, seconds: float = 60.0) -> float:
    """Score one rollout with one reward; raises RewardError as `score_all` does."""
    return score_all([(name, reward)], [(sample, trajectory)], seconds)[0][0]


def _outcome(name: str, reward: Reward, sample: Sample, trajectory: Trajectory) -> Outcome:
    """The score, or what went wrong: an exception has to be carried out of the thread to be raised."""
    where = f"reward '{name}', sample {sample.id}"
    try:
        value: Any = reward.score(sample, trajectory)
        if isinstance(value, str):
            raise TypeError(f"a reward is a number, not the text {value!r}")
        score = float(value)
    except VilavtError as error:
        return _caused(RewardError(f"{where}: {error}"), error)
    except BaseException as error:
        return _caused(RewardError(f"{where}: it raised {type(error).__name__}: {error}."), error)
    if not math.isfinite(score):
        return RewardError(f"{where}: it returned {score}; a reward is a finite number, 0 for what cannot be scored.")
    return score


def _caused(failure: RewardError, cause: BaseException) -> RewardError:
    failure.__cause__ = cause
    return failure


def _take(outcomes: SimpleQueue[Outcome], name: str, sample: Sample, seconds: float) -> float:
    try:
        outcome = outcomes.get(timeout=seconds)
    except Empty:
        raise RewardError(
            f"reward '{name}', sample {sample.id}: it has not returned for {seconds:g} seconds; make it faster."
        ) from None
    if isinstance(outcome, RewardError):
        raise outcome
    return outcome
