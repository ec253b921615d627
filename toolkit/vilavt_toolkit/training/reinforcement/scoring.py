"""Scoring rollouts with rewards, which may be a user's own code: it may raise, return nonsense, or never return."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import Any

from vilavt_toolkit.contracts import Reward, Sample, Trajectory
from vilavt_toolkit.errors import VilavtError


class RewardError(VilavtError):
    """A reward that raised, returned no finite number, or took too long; names the reward and the sample."""


Outcome = float | RewardError


def score_all(
    rewards: Sequence[tuple[str, Reward]],
    rollouts: Sequence[tuple[Sample, Trajectory]],
    seconds: float = 60.0,
) -> list[list[float]]:
    """Score every rollout with every named reward, unweighted: a row per rollout, a column per reward.

    Raises RewardError if a reward raises, returns no finite number, or takes longer than `seconds`.
    """
    outcomes: SimpleQueue[Outcome] = SimpleQueue()
    is_given_up = threading.Event()

    def score_in_order() -> None:
        for sample, trajectory in rollouts:
            for name, reward in rewards:
                outcome = _score_rollout(name, reward, sample, trajectory)
                outcomes.put(outcome)
                if is_given_up.is_set() or isinstance(outcome, RewardError):
                    return

    # Python cannot stop a call that hangs. In a daemon thread it at least cannot keep the program from ending.
    threading.Thread(target=score_in_order, name="rewards", daemon=True).start()
    try:
        return [[_next_score(outcomes, name, sample, seconds) for name, _ in rewards] for sample, _ in rollouts]
    finally:
        is_given_up.set()


def _score_rollout(name: str, reward: Reward, sample: Sample, trajectory: Trajectory) -> Outcome:
    """Return the score, or as a value the error to raise: an exception would end in this thread."""
    where = f"reward '{name}', sample {sample.id}"
    try:
        value: Any = reward.score(sample, trajectory)
        # `float` would take the text "1".
        if isinstance(value, str):
            raise TypeError(f"a reward is a number, not the text {value!r}")
        score = float(value)
    except VilavtError as error:
        return _with_cause(RewardError(f"{where}: {error}"), error)
    # Not only Exception: `sys.exit()` in a reward would end the thread without a word.
    except BaseException as error:
        return _with_cause(RewardError(f"{where}: it raised {type(error).__name__}: {error}."), error)
    if not math.isfinite(score):
        return RewardError(f"{where}: it returned {score}. Return a finite number, 0 for what cannot be scored.")
    return score


def _with_cause(failure: RewardError, cause: BaseException) -> RewardError:
    failure.__cause__ = cause
    return failure


def _next_score(outcomes: SimpleQueue[Outcome], name: str, sample: Sample, seconds: float) -> float:
    try:
        outcome = outcomes.get(timeout=seconds)
    except Empty:
        raise RewardError(
            f"reward '{name}', sample {sample.id}: it has not returned for {seconds:g} seconds. Make it faster or "
            "raise rl.reward_seconds."
        ) from None
    if isinstance(outcome, RewardError):
        raise outcome
    return outcome
