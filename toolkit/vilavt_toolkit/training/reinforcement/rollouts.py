"""Rollouts: the prompts of a step, each asked `group_size` times by the generation loop, and rewarded."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vilavt_toolkit.config.schema import Part, RLSection
from vilavt_toolkit.contracts import Reward, RewardConfig, Sample, Task, Trajectory
from vilavt_toolkit.dialogue.session import Session, ask_sample
from vilavt_toolkit.errors import BadConfig, UsageError, add_context
from vilavt_toolkit.generation.loop import Decoding, Loop
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.training.reinforcement.rollout_weights import rollout_weights
from vilavt_toolkit.training.reinforcement.scoring import score_all
from vilavt_toolkit.training.supervised.data import StepSampler
from vilavt_toolkit.utils.text import number_duplicates


@dataclass(frozen=True)
class Rollout:
    """A dialogue that the policy led, and its reward."""

    sample: Sample
    session: Session
    scores: tuple[float, ...]
    """The score of each reward, unweighted."""
    reward: float
    """The weighted sum of the scores."""

    @property
    def trajectory(self) -> Trajectory:
        """The session's trajectory."""
        return self.session.trajectory


PromptGroup = list[Rollout]
"""The rollouts of one prompt."""


class WeightedRewards:
    """A recipe's rewards with their weights; raises BadConfig for a reward whose settings have none."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.names = number_duplicates([part.name for part in parts], "_")
        self.weights = [_reward_weight(part) for part in parts]
        rewards: list[Reward] = [part.build() for part in parts]
        self._named = list(zip(self.names, rewards, strict=True))

    def score(self, rollouts: Sequence[tuple[Sample, Trajectory]], seconds: float) -> list[tuple[float, ...]]:
        """Return the unweighted scores of every rollout; raises RewardError naming reward and sample."""
        return [tuple(row) for row in score_all(self._named, rollouts, seconds)]

    def weigh_scores(self, scores: Sequence[float]) -> float:
        """Return the weighted sum of a rollout's scores."""
        return sum(weight * score for weight, score in zip(self.weights, scores, strict=True))


def _reward_weight(part: Part) -> float:
    if not isinstance(part.config, RewardConfig):
        raise BadConfig(f"{part} has settings without a weight. Let its config inherit from RewardConfig.")
    return part.config.weight


def rollout_seed(seed: int, step: int, attempt: int, prompt: int, sample: int) -> int:
    """Return the seed of one rollout's own generator.

    It depends on the rollout's place in the run alone, so that neither batching nor resuming changes what is drawn.
    """
    return int(np.random.SeedSequence([seed, step, attempt, prompt, sample]).generate_state(1, np.uint64)[0])


class RolloutCollector:
    """Collects the rollouts of a step; the same weights, seed and step give the same rollouts."""

    def __init__(self, model: VisualChatModel, task: Task, section: RLSection, seed: int) -> None:
        self.model, self.task, self.section, self.seed = model, task, section, seed
        self.rewards = WeightedRewards(section.rewards)
        self.check_stop: Callable[[], None] = lambda: None
        """Called between rollouts; raises an error if the run is to end now."""
        self.rollout_seconds = self.reward_seconds = 0.0
        """Time spent on the current step, all its attempts together."""
        size = task.length(section.split)
        if not size:
            raise UsageError(f"rl.split: split '{section.split}' of task has no samples. Choose another.")
        self._order = StepSampler(size, section.prompts_per_step, section.steps, seed)
        self._loop = Loop(model, Decoding(section.max_new_tokens, section.temperature))

    def collect(self, step: int, attempt: int = 0, count: int | None = None) -> list[PromptGroup]:
        """Ask a step's prompts and return their groups, rewarded; each further attempt asks other prompts.

        `count` is the number of prompts of a further attempt (None: as many as the first asks).
        Raises RewardError, InputError for a sample that cannot be asked, and what `check_stop` raises.
        """
        if attempt == 0:
            self.rollout_seconds = self.reward_seconds = 0.0
        started = time.perf_counter()
        samples = [self.task.sample(self.section.split, index) for index in self._prompt_indices(step, attempt)[:count]]
        sessions = self._run_sessions(samples, step, attempt)
        ended = time.perf_counter()
        # Sessions are in the order of their prompts, `size` to each.
        size = self.section.group_size
        asked = [(samples[number // size], session.trajectory) for number, session in enumerate(sessions)]
        scores = self.rewards.score(asked, self.section.reward_seconds)
        self.rollout_seconds += ended - started
        self.reward_seconds += time.perf_counter() - ended
        rollouts = [
            Rollout(sample, session, row, self.rewards.weigh_scores(row))
            for (sample, _), session, row in zip(asked, sessions, scores, strict=True)
        ]
        return [rollouts[start : start + size] for start in range(0, len(rollouts), size)]

    def _prompt_indices(self, step: int, attempt: int) -> list[int]:
        if attempt == 0:
            return self._order.step_indices(step)
        # Further attempts draw apart from the epochs, whose order must not depend on how many attempts a step needed.
        size, prompts = self._order.size, self.section.prompts_per_step
        drawn = np.random.default_rng([self.seed, step, attempt]).choice(size, prompts, replace=prompts > size)
        return [int(index) for index in drawn]

    def _run_sessions(self, samples: Sequence[Sample], step: int, attempt: int) -> list[Session]:
        sessions: list[Session] = []
        seeds: list[int] = []
        for prompt, sample in enumerate(samples):
            # Opened once and copied, so that a group shares the views of its originals.
            first = ask_sample(self.model, sample)
            for number in range(self.section.group_size):
                sessions.append(first.copy())
                seeds.append(rollout_seed(self.seed, step, attempt, prompt, number))
        self.check_stop()
        with rollout_weights(self.model):
            copies = self.section.group_size
            for request in self._loop.run_sessions(sessions, self.section.rollout_batch, seeds, copies):
                if request.error is not None:
                    raise add_context(f"sample {samples[request.number // copies].id}", request.error)
                self.check_stop()
        # Autocast caches casts of weights. The loop's have no gradient, and the update must not get them.
        torch.clear_autocast_cache()
        return sessions
