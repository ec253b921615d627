"""Rollouts: every prompt of a step asked many times by the loop, and rewarded."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vilavt_toolkit.config.schema import Part, RLSection
from vilavt_toolkit.contracts import Reward, RewardSettings, Sample, Task, Trajectory
from vilavt_toolkit.dialogue.session import Session, opened
from vilavt_toolkit.errors import BadConfig, InputError, UsageError, error_of
from vilavt_toolkit.generation.loop import Decoding, Loop
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.training.reinforcement.scoring import score_all
from vilavt_toolkit.training.stage import StoppedBetweenSteps
from vilavt_toolkit.training.supervised.data import StepSampler


@dataclass(frozen=True)
class Rollout:
    """One dialogue that the policy led, and what it earned."""

    sample: Sample
    session: Session
    scores: tuple[float, ...]
    """Of every reward, unweighted."""
    reward: float
    """Their weighted sum."""

    @property
    def trajectory(self) -> Trajectory:
        """What was said and seen."""
        return self.session.trajectory


Group = list[Rollout]
"""The rollouts of one prompt."""


class WeightedRewards:
    """A recipe's rewards; raises BadConfig for one whose settings have no weight."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.names = _numbered([part.name for part in parts])
        self.weights = [_weight(part) for part in parts]
        made: list[Reward] = [part.entry.cls(part.config) for part in parts]
        self._named = list(zip(self.names, made, strict=True))

    def score(self, rollouts: Sequence[tuple[Sample, Trajectory]], seconds: float) -> list[tuple[float, ...]]:
        """The scores of every rollout, unweighted; raises RewardError naming reward and sample."""
        return [tuple(row) for row in score_all(self._named, rollouts, seconds)]

    def total(self, scores: Sequence[float]) -> float:
        """The weighted sum of a rollout's scores."""
        return sum(weight * score for weight, score in zip(self.weights, scores, strict=True))


def _weight(part: Part) -> float:
    if not isinstance(part.config, RewardSettings):
        raise BadConfig(f"{part} has settings without a weight; let its config inherit from RewardSettings.")
    return part.config.weight


def _numbered(names: Sequence[str]) -> list[str]:
    """The names, those that come again with their number behind."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return found


def rollout_seed(seed: int, step: int, attempt: int, prompt: int, sample: int) -> int:
    """The seed of one rollout's own generator: a function of its place in the run and of nothing else."""
    return int(np.random.SeedSequence([seed, step, attempt, prompt, sample]).generate_state(1, np.uint64)[0])


class Prompter:
    """Asks the prompts of a step; the same weights, seed and step lead to the same rollouts."""

    def __init__(self, model: VisualChatModel, task: Task, section: RLSection, seed: int) -> None:
        self.model, self.task, self.section, self.seed = model, task, section, seed
        self.rewards = WeightedRewards(section.rewards)
        self.stop: Callable[[], bool] = lambda: False
        """Asked between batches of rollouts whether the run shall end."""
        self.rollout_seconds = self.reward_seconds = 0.0
        """What was spent since `ask` was last called for a step's first attempt."""
        size = task.length(section.split)
        if not size:
            raise UsageError(f"rl.split: split '{section.split}' of task has no samples; choose another.")
        self._order = StepSampler(size, section.prompts, section.steps, seed)
        self._loop = Loop(model, Decoding(section.max_new_tokens, section.temperature))

    def ask(self, step: int, attempt: int = 0) -> list[Group]:
        """The step's prompt groups, rewarded; a later attempt asks other prompts.

        Raises RewardError, InputError for a sample that cannot be asked, StoppedBetweenSteps.
        """
        if attempt == 0:
            self.rollout_seconds = self.reward_seconds = 0.0
        started = time.perf_counter()
        samples = [self.task.sample(self.section.split, index) for index in self._indices(step, attempt)]
        sessions = self._run(samples, step, attempt)
        ended = time.perf_counter()
        size = self.section.group
        asked = [(samples[number // size], session.trajectory) for number, session in enumerate(sessions)]
        scores = self.rewards.score(asked, self.section.reward_seconds)
        self.rollout_seconds += ended - started
        self.reward_seconds += time.perf_counter() - ended
        rollouts = [
            Rollout(sample, session, row, self.rewards.total(row))
            for (sample, _), session, row in zip(asked, sessions, scores, strict=True)
        ]
        return [rollouts[start : start + size] for start in range(0, len(rollouts), size)]

    def _indices(self, step: int, attempt: int) -> list[int]:
        if attempt == 0:
            return self._order.indices(step)
        size, prompts = self._order.size, self.section.prompts
        drawn = np.random.default_rng([self.seed, step, attempt]).choice(size, prompts, replace=prompts > size)
        return [int(index) for index in drawn]

    def _run(self, samples: Sequence[Sample], step: int, attempt: int) -> list[Session]:
        sessions: list[Session] = []
        seeds: list[int] = []
        for prompt, sample in enumerate(samples):
            first = self._opened(sample)
            for number in range(self.section.group):
                sessions.append(first.copy())
                seeds.append(rollout_seed(self.seed, step, attempt, prompt, number))
        if self.stop():
            raise StoppedBetweenSteps
        for seat in self._loop.run_sessions(sessions, self.section.rollout_batch, seeds):
            if seat.error is not None:
                raise error_of(f"sample {samples[seat.number // self.section.group].id}", seat.error)
            if self.stop():
                raise StoppedBetweenSteps
        # Under autocast the loop's casts of the weights have no gradient, and the update would be given them.
        torch.clear_autocast_cache()
        return sessions

    def _opened(self, sample: Sample) -> Session:
        try:
            session = opened(self.model, sample)
            session.open(sample.question, sample.tool)
        except InputError as error:
            raise InputError(f"sample {sample.id}: {error}") from None
        return session
