"""Reinforcement learning by GRPO: rollouts are rewarded, compared within their prompt groups, and learned from."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vilavt_toolkit.checkpoints.training_state import TrainingState
from vilavt_toolkit.config.schema import RLSection
from vilavt_toolkit.contracts import Advantage, Optimizer, PolicyLoss
from vilavt_toolkit.data.row_budget import build_rollout_budget
from vilavt_toolkit.errors import TrainingError
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.training.losses import logprobs_and_entropy
from vilavt_toolkit.training.reinforcement.drawing import draw_rollouts
from vilavt_toolkit.training.reinforcement.metrics import CollapseWatch, TokenAverages, compute_rollout_metrics
from vilavt_toolkit.training.reinforcement.mismatch import mismatch_weights, number_turns
from vilavt_toolkit.training.reinforcement.policy_math import (
    NO_ADVANTAGE,
    find_flat_groups,
    k1_divergence,
    k2_divergence,
    k3_divergence,
    repeat_per_token,
    weighted_sum,
)
from vilavt_toolkit.training.reinforcement.reference import Reference, compute_logprobs, sum_sequences
from vilavt_toolkit.training.reinforcement.rollout_buffer import (
    LearnedRollout,
    RolloutBuffer,
    RolloutChunk,
    outside_inference_mode,
)
from vilavt_toolkit.training.reinforcement.rollouts import PromptGroup, Rollout, RolloutCollector
from vilavt_toolkit.training.stage import StageModule


@dataclass(frozen=True)
class PolicyParts:
    """The recipe's parts that an update is made of."""

    optimizer: Optimizer
    advantage: Advantage
    policy_loss: PolicyLoss


class ReinforcementModule(StageModule):
    """Collects rollouts, then takes `inner_epochs` optimizer steps on those that teach something.

    The update encodes regions again in its own forward pass, so that every part of the model gets gradients. The old
    log-probabilities are from that forward pass too, before the first step on the rollouts, so that the ratio is
    exactly 1 there. Their distance to those of the generation loop is logged. Dropout is off in rollouts and update,
    because both must be of the same policy.
    """

    section_key, main_metric, has_comparable_loss = "rl", "reward", False
    section: RLSection

    def __init__(
        self,
        model: VisualChatModel,
        collector: RolloutCollector,
        parts: PolicyParts,
        section: RLSection,
        start: int = 0,
        reference: Reference | None = None,
        drawings: Path | None = None,
    ) -> None:
        # Before the base class freezes parts: without dropout, rollouts and update are of the same policy.
        model.eval()
        super().__init__(model, parts.optimizer, section, section.steps * section.inner_epochs, start)
        self.reference = reference
        """Gives the policy that training started from, if the divergence from it is part of loss or reward."""
        self.collector = collector
        self._parts = parts
        self._drawings = drawings
        self._budget = build_rollout_budget(section, model)
        self._buffer: RolloutBuffer | None = None
        self._watch = CollapseWatch()
        self._tool_rate = 0.0

    def capture_state(self) -> TrainingState:
        """Return the rollouts that later inner epochs learn from, and what the collapse watch has recorded."""
        base, pending = super().capture_state(), TrainingState({}, {})
        if self._buffer is not None:
            pending = self._buffer.to_state()
        own = {"watch": self._watch.to_json(), "inner_epochs": self.section.inner_epochs}
        return TrainingState(pending.tensors, base.data | own | pending.data)

    def load_state(self, state: TrainingState) -> None:
        """Take over what `capture_state` gave; raises RunError if it is damaged."""
        super().load_state(state)
        self._watch.load_json(state.data["watch"])
        if "pending" in state.data:
            self._buffer = RolloutBuffer.from_state(state, self.device)

    def training_step(self, batch: int, index: int) -> None:
        """Take optimizer step number `batch`, and collect rollouts before it if it is the first on them."""
        step, epoch = divmod(batch, self.section.inner_epochs)
        if epoch == 0:
            self._buffer = self.fill_buffer(step)
            if self.reference is not None and self.section.kl_in == "loss":
                self.record_reference(self._buffer)
        assert self._buffer is not None
        started = time.perf_counter()
        metrics = self._take_step(self._buffer, is_first=epoch == 0)
        self.log_metrics(metrics | {"time/update": time.perf_counter() - started}, in_bar=("loss",))
        if epoch == 0:
            self._watch.observe_step(step, tool_rate=self._tool_rate, entropy=float(metrics["entropy"]))
        # Emptied here rather than on the next collection, so that a checkpoint between steps holds no rollouts.
        if epoch == self.section.inner_epochs - 1:
            self._buffer = None

    # --- Rollouts --------------------------------------------------------------------------------------------------

    def fill_buffer(self, step: int) -> RolloutBuffer:
        """Collect rollouts until a prompt group teaches something, or with `dynamic_sampling` as many as were asked.

        Raises TrainingError if none does after `max_resamples` further attempts.
        """
        asked: list[PromptGroup] = []
        kept: list[PromptGroup] = []
        learned: list[LearnedRollout] = []
        wanted, is_dynamic = self.section.prompts_per_step, self.section.dynamic_sampling
        for attempt in range(self.section.max_resamples + 1):
            collected = self.collector.collect(step, attempt, wanted - len(kept) if is_dynamic else None)
            asked += collected
            kept = [*kept, *filter(self._can_teach, collected)] if is_dynamic else collected
            # Compared once all are there, since some advantages compare the whole step.
            if len(kept) == wanted or attempt == self.section.max_resamples:
                learned = self._select_learned(kept) if kept else []
            if learned or (is_dynamic and len(kept) == wanted):
                break
        # Those of failed attempts are logged too: without them the averages would not be the policy's.
        self._log_rollouts(step, asked)
        if not learned:
            raise TrainingError(self._describe_nothing_learned(step, asked))
        return RolloutBuffer.from_rollouts(learned, self.device)

    def _can_teach(self, group: PromptGroup) -> bool:
        """Return True if the rewards of a prompt group differ, and a rollout of it may be learned from."""
        rewards = _reward_matrix([group])
        if self._parts.advantage.compares_whole_step:
            # Such an advantage may tell rollouts apart whose different rewards have the same sum.
            rewards = torch.tensor([rollout.scores for rollout in group], dtype=torch.float64).T
        return not bool(find_flat_groups(rewards).all()) and any(self._is_learned(rollout) for rollout in group)

    def _is_learned(self, rollout: Rollout) -> bool:
        """Return True if a rollout has tokens to learn from, and is not one that the recipe masks."""
        # A masked rollout still counts in its group's mean: only its own tokens are left out.
        is_masked = self.section.truncated_rollouts == "mask" and rollout.trajectory.cut_short
        return not is_masked and any(rollout.trajectory.produced)

    def _select_learned(self, groups: Sequence[PromptGroup]) -> list[LearnedRollout]:
        """Return the rollouts of groups whose rewards differ, without truncated ones if the recipe masks these."""
        teaches, advantages = self._compare_groups(groups)
        if not teaches.any():
            return []
        teaching = [group for group, is_teaching in zip(groups, teaches.tolist(), strict=True) if is_teaching]
        learned = []
        for group, group_advantages in zip(teaching, advantages.tolist(), strict=True):
            for rollout, advantage in zip(group, group_advantages, strict=True):
                if self._is_learned(rollout):
                    views = tuple(outside_inference_mode(view) for view in rollout.session.views)
                    learned.append(LearnedRollout(rollout.sample.id, rollout.trajectory, views, advantage))
        return learned

    def _compare_groups(self, groups: Sequence[PromptGroup]) -> tuple[Tensor, Tensor]:
        """Return which of P prompt groups teach something, and the advantages of these; bool [P], [T, G]."""
        scores = torch.tensor([[rollout.scores for rollout in group] for group in groups], dtype=torch.float64)
        rewards = _reward_matrix(groups)
        advantage, weights = self._parts.advantage, self.collector.rewards.weights
        if self.reference is not None and self.section.kl_in == "reward":
            # One more reward: the advantage compares it as it does the others.
            divergence = self._measure_divergence(groups)
            self.log_metrics({"kl": float(divergence.mean())})
            scores, weights = torch.cat([scores, divergence[..., None]], -1), [*weights, -self.section.kl]
            rewards = (rewards - self.section.kl * divergence).float()
        if advantage.compares_whole_step:
            advantages = advantage.compare_scores(scores, weights)
            teaches = advantages.abs().amax(1) > NO_ADVANTAGE
            return teaches, advantages[teaches]
        teaches = ~find_flat_groups(rewards)
        return teaches, advantage.compare_scores(scores[teaches], weights) if teaches.any() else scores[:0, :, 0]

    def _measure_divergence(self, groups: Sequence[PromptGroup]) -> Tensor:
        """Return the k1 divergence from the reference of every whole rollout; [P, G] in float64."""
        assert self.reference is not None
        rows = [
            LearnedRollout(rollout.sample.id, rollout.trajectory, tuple(rollout.session.views), 0.0)
            for group in groups
            for rollout in group
        ]
        numbers = {id(row): number for number, row in enumerate(rows)}
        # Those of a rollout without a token of its own would be of a batch without targets.
        buffer = RolloutBuffer.from_rollouts([row for row in rows if row.produced_tokens], self.device)
        found = torch.zeros(len(rows), dtype=torch.float64)
        if not buffer.rollouts:
            return found.view(len(groups), -1)
        # By the same forward pass on both sides, so that at the start not even rounding is left.
        with torch.no_grad():
            for chunk in self._split_into_chunks(buffer):
                batch = buffer.collate_chunk(chunk, self.model.language_model).to(self.device)
                buffer.old_logprobs[chunk.tokens] = compute_logprobs(self.model, batch, self.section.temperature)
        self.record_reference(buffer)
        divergence = k1_divergence(buffer.old_logprobs, buffer.reference_logprobs, self.section.kl_limit)
        for row, value in zip(buffer.rollouts, sum_sequences(divergence, buffer.lengths), strict=True):
            found[numbers[id(row)]] = value
        return found.view(len(groups), -1)

    def record_reference(self, buffer: RolloutBuffer) -> None:
        """Write the log-probabilities of a buffer's tokens under the reference into it."""
        assert self.reference is not None
        # All before the update, so that a reference on the CPU visits the device once, and not beside a graph.
        with self.reference.lend(self.model) as model:
            for number, chunk in enumerate(self._split_into_chunks(buffer)):
                self.record_reference_chunk(model, buffer, number, chunk)

    def record_reference_chunk(
        self, model: VisualChatModel, buffer: RolloutBuffer, number: int, chunk: RolloutChunk
    ) -> None:
        """Write the log-probabilities of the tokens of a buffer's chunk `number` under a model into the buffer."""
        batch = buffer.collate_chunk(chunk, model.language_model).to(self.device)
        found = compute_logprobs(model, batch, self.section.temperature)
        buffer.reference_logprobs[chunk.tokens] = found.to(buffer.reference_logprobs.dtype)

    def _log_rollouts(self, step: int, groups: Sequence[PromptGroup]) -> None:
        names = self.collector.rewards.names
        metrics = compute_rollout_metrics(groups, names, find_flat_groups(_reward_matrix(groups)).tolist())
        spent = {"time/rollout": self.collector.rollout_seconds, "time/reward": self.collector.reward_seconds}
        resampled = {"resampled": float(len(groups) - self.section.prompts_per_step)}
        self.log_metrics(metrics | resampled | spent, in_bar=("reward", "tool_rate"))
        self._tool_rate = metrics["tool_rate"]
        every = self.section.save_rollouts_every
        if self._drawings is not None and every and step % every == 0:
            draw_rollouts(self._drawings, step, groups, names)

    def _describe_nothing_learned(self, step: int, groups: Sequence[PromptGroup]) -> str:
        rollouts = [rollout for group in groups for rollout in group]
        flat = int(find_flat_groups(_reward_matrix(groups)).sum())
        cut = sum(rollout.trajectory.cut_short for rollout in rollouts)
        mean = sum(rollout.reward for rollout in rollouts) / len(rollouts)
        text = (
            f"step {step}: nothing to learn from in {len(rollouts)} rollouts: in {flat} of {len(groups)} prompt groups "
            f"all rewards are equal (mean reward {mean:.3g}), and {cut} rollouts were cut short"
        )
        # The commonest cause has a sure remedy; otherwise only the user can see whether the answers are right.
        if cut == len(rollouts) and self.section.truncated_rollouts == "mask":
            return (
                f"{text}, which rl.truncated_rollouts leaves out. Raise rl.max_new_tokens or the turns, or set "
                "rl.truncated_rollouts=score."
            )
        return (
            f"{text}. If the answers are right, these prompts teach nothing more: choose others. If not, train the "
            "first stage longer, raise rl.group_size, rl.temperature or rl.max_new_tokens, or choose other rewards."
        )

    # --- Update ----------------------------------------------------------------------------------------------------

    def _take_step(self, buffer: RolloutBuffer, is_first: bool) -> dict[str, Tensor | float]:
        """Take one optimizer step on all rollouts of the buffer; no gradient depends on how they share memory."""
        optimizer, averages = self.begin_step(), TokenAverages()
        # Weights are of the whole step, so that the sums over chunks add up to the same loss for every chunk size.
        lengths = buffer.lengths
        weights = self._parts.policy_loss.sequence_weights(lengths)
        loss = torch.zeros((), device=self.device, dtype=torch.float32)
        token_losses = torch.zeros_like(buffer.old_logprobs)
        for chunk in self._split_into_chunks(buffer):
            losses = self._token_losses(buffer, chunk, is_first, averages)
            chosen = [(weights[number], lengths[number]) for number in chunk.rollouts]
            part = weighted_sum(losses, *zip(*chosen, strict=True))
            self.add_gradient(part)
            loss = loss + part.detach()
            token_losses[chunk.tokens] = losses.detach().to(token_losses.dtype)
        self.end_step(optimizer, loss, lambda: _find_faulty(buffer, token_losses))
        return {
            **averages.compute_means(),
            "loss": loss,
            "gradient_norm": self._norm,
            "learning_rate": optimizer.param_groups[0]["lr"],
            "skipped": float(self.skipped_steps),
            "learnt_from": float(len(buffer.rollouts)),
        }

    def _split_into_chunks(self, buffer: RolloutBuffer) -> Iterator[RolloutChunk]:
        """Yield the chunks of a buffer, the same in every forward pass over it."""
        shares_prompts = self.section.share_prompts and self.model.language_model.takes_stems
        return buffer.split_into_chunks(self.section.micro_batch, self._budget, shares_prompts)

    def _token_losses(
        self, buffer: RolloutBuffer, chunk: RolloutChunk, is_first: bool, averages: TokenAverages
    ) -> Tensor:
        """Return the loss [N] of every produced token of a chunk; the first step records the old log-probabilities."""
        temperature = self.section.temperature
        batch = buffer.collate_chunk(chunk, self.model.language_model).to(self.device)
        states = self.model.run_layers(batch)
        logp, entropy = logprobs_and_entropy(self.model.language_model, states, batch, temperature)
        rollouts = buffer.select_rollouts(chunk)
        drawn = [value for rollout in rollouts for value in rollout.sampled_logprobs]
        sampled = torch.tensor(drawn, dtype=torch.float32).to(self.device, non_blocking=True)
        # The weights are still those that sampled, so that the old values need no forward pass of their own.
        if is_first:
            buffer.old_logprobs[chunk.tokens] = logp.detach().to(buffer.old_logprobs.dtype)
            _record_logprob_gap(rollouts, logp.detach(), sampled, averages)
        lengths = [rollout.produced_tokens for rollout in rollouts]
        advantages = repeat_per_token([rollout.advantage for rollout in rollouts], lengths, self.device)
        old = buffer.old_logprobs[chunk.tokens]
        loss, is_clipped = self._parts.policy_loss.sequence_losses(logp, old, advantages, lengths)
        averages.add(len(logp), entropy=entropy, clip_fraction=is_clipped)
        section = self.section
        if section.mismatch != "none":
            weights, is_beyond = mismatch_weights(
                old, sampled, lengths, section.mismatch, section.mismatch_level, section.mismatch_limit
            )
            averages.add(0, mismatch_weight=weights, mismatch_beyond=is_beyond)
            loss = loss * weights
        if self.reference is not None and self.section.kl_in == "loss":
            estimate = k2_divergence if self.section.kl_estimator == "k2" else k3_divergence
            divergence = estimate(logp, buffer.reference_logprobs[chunk.tokens], self.section.kl_limit)
            averages.add(0, kl=divergence)
            loss = loss + self.section.kl * divergence
        return loss


def _record_logprob_gap(
    rollouts: Sequence[LearnedRollout], logp: Tensor, sampled: Tensor, averages: TokenAverages
) -> None:
    """Record how far log-probabilities [N] are from those [N] of the loop that sampled the tokens, also by turn.

    A large gap means that training and generation compute different models, as by a wrong mask or cache.
    """
    gap = (logp - sampled).abs()
    averages.add(0, logprob_gap=gap)
    averages.keep_largest("logprob_gap_max", gap)
    turns = [turn for rollout in rollouts for turn in number_turns(rollout.trajectory.produced)]
    averages.add_turns("logprob_gap", turns, gap)


def _reward_matrix(groups: Sequence[PromptGroup]) -> Tensor:
    """Return the rewards [P, G] of P prompt groups of G rollouts."""
    return torch.tensor([[rollout.reward for rollout in group] for group in groups], dtype=torch.float32)


def _find_faulty(buffer: RolloutBuffer, losses: Tensor) -> list[str]:
    """Name the samples with a token whose loss is NaN or infinite, or all of the step if none has one."""
    parts = torch.split(losses, buffer.lengths)
    faulty = []
    for rollout, part in zip(buffer.rollouts, parts, strict=True):
        if not bool(part.isfinite().all()):
            faulty.append(rollout.sample)
    # Several rollouts are of one sample; each sample is named once.
    return list(dict.fromkeys(faulty or [rollout.sample for rollout in buffer.rollouts]))
