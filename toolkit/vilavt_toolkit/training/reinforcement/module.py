"""Reinforcement: a policy's own rollouts, rewarded, compared within their prompt groups, and learnt from (GRPO)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vilavt_toolkit.checkpoints.training_state import TrainingState
from vilavt_toolkit.config.schema import RLSection
from vilavt_toolkit.contracts import Advantage, Optimizer, PolicyLoss
from vilavt_toolkit.errors import TrainingError
from vilavt_toolkit.models.batch import Batch
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.training.losses import logprobs_and_entropy, target_logprobs
from vilavt_toolkit.training.reinforcement.drawing import draw_rollouts
from vilavt_toolkit.training.reinforcement.metrics import CollapseWatch, Tally, rollout_metrics
from vilavt_toolkit.training.reinforcement.policy_math import flat_groups, k3, per_token, weighted_sum
from vilavt_toolkit.training.reinforcement.rollout_buffer import Chunk, Pending, Row, usable
from vilavt_toolkit.training.reinforcement.rollouts import Group, Prompter
from vilavt_toolkit.training.stage import StageModule


@dataclass(frozen=True)
class PolicyParts:
    """The recipe's parts that an update is made of."""

    optimizer: Optimizer
    advantage: Advantage
    policy_loss: PolicyLoss


class PolicyModule(StageModule):
    """A step asks prompts, then takes `inner_epochs` optimizer steps on the rollouts that teach something.

    Regions are encoded again inside the update's forward, so that all parts get gradients. Dropout is off in rollouts
    and update alike. `old` log-probabilities are those of the update's own forward before the first optimizer step on
    the rollouts, so that the ratio is exactly 1 there; how far the rollouts' are from them is logged.
    """

    key = "rl"
    section: RLSection

    def __init__(
        self,
        model: VisualChatModel,
        prompter: Prompter,
        parts: PolicyParts,
        section: RLSection,
        start: int = 0,
        reference: VisualChatModel | None = None,
        drawings: Path | None = None,
    ) -> None:
        model.eval()
        super().__init__(model, parts.optimizer, section, section.steps * section.inner_epochs, start)
        self.reference = reference.eval().requires_grad_(False) if reference is not None else None
        """The weights that training started from, where the divergence from them counts."""
        self.prompter = prompter
        self._parts = parts
        self._drawings = drawings
        self._done = start
        self._pending: Pending | None = None
        self._watch = CollapseWatch()
        self._tool_rate = 0.0

    @property
    def step(self) -> int:
        """Optimizer steps taken so far, over all fits."""
        return self._done

    def state(self) -> TrainingState:
        """The rollouts that inner epochs still learn from, and what the watch has seen."""
        base, pending = super().state(), TrainingState({}, {})
        if self._pending is not None:
            pending = self._pending.state()
        mine = {"watch": self._watch.to_json(), "inner_epochs": self.section.inner_epochs}
        return TrainingState(pending.tensors, base.data | mine | pending.data)

    def load_state(self, state: TrainingState) -> None:
        """Take back what `state` gave."""
        super().load_state(state)
        self._watch.load(state.data["watch"])
        if "pending" in state.data:
            self._pending = Pending.from_state(state, self.device)

    def training_step(self, batch: int, index: int) -> None:
        """Take optimizer step number `batch`, after new rollouts where it is the first of its step."""
        step, epoch = divmod(batch, self.section.inner_epochs)
        if epoch == 0:
            self._pending = self._collect(step)
        assert self._pending is not None
        started = time.perf_counter()
        metrics = self._update(self._pending, first=epoch == 0)
        self._done += 1
        self._log(metrics | {"time/update": time.perf_counter() - started}, prog_bar=("loss",))
        if epoch == 0:
            self._watch.see(step, tool_rate=self._tool_rate, entropy=float(metrics["entropy"]))
        if epoch == self.section.inner_epochs - 1:
            self._pending = None

    # --- Rollouts --------------------------------------------------------------------------------------------------

    def _collect(self, step: int) -> Pending:
        """Ask until a prompt group teaches something; raises TrainingError after `max_resamples` further attempts."""
        self.between_steps = True
        groups: list[Group] = []
        rows: list[Row] = []
        for attempt in range(self.section.max_resamples + 1):
            asked = self.prompter.ask(step, attempt)
            groups += asked
            rows = self._rows(asked)
            if rows:
                break
        self._report(step, groups)
        if not rows:
            raise TrainingError(self._nothing_learnt(step, groups))
        self.between_steps = False
        return Pending.of(rows, self.device)

    def _rows(self, groups: Sequence[Group]) -> list[Row]:
        """What is learnt from: rollouts of groups whose rewards differ, if not left out for being cut short."""
        rewards = _rewards(groups)
        teaching = ~flat_groups(rewards)
        if not teaching.any():
            return []
        advantages = self._parts.advantage.advantages(rewards[teaching])
        kept = [group for group, teaches in zip(groups, teaching.tolist(), strict=True) if teaches]
        rows = []
        for group, values in zip(kept, advantages.tolist(), strict=True):
            for rollout, value in zip(group, values, strict=True):
                masked = self.section.over_turn == "mask" and rollout.trajectory.cut_short
                if not masked and any(rollout.trajectory.produced):
                    views = tuple(usable(view) for view in rollout.session.views)
                    rows.append(Row(rollout.sample.id, rollout.trajectory, views, value))
        return rows

    def _report(self, step: int, groups: Sequence[Group]) -> None:
        names = self.prompter.rewards.names
        metrics = rollout_metrics(groups, names, flat_groups(_rewards(groups)).tolist())
        spent = {"time/rollout": self.prompter.rollout_seconds, "time/reward": self.prompter.reward_seconds}
        self._log(metrics | spent, prog_bar=("reward", "tool_rate"))
        self._tool_rate = metrics["tool_rate"]
        every = self.section.draw_every
        if self._drawings is not None and every and step % every == 0:
            draw_rollouts(self._drawings, step, groups, names)

    def _nothing_learnt(self, step: int, groups: Sequence[Group]) -> str:
        rollouts = [rollout for group in groups for rollout in group]
        flat = int(flat_groups(_rewards(groups)).sum())
        cut = sum(rollout.trajectory.cut_short for rollout in rollouts)
        mean = sum(rollout.reward for rollout in rollouts) / len(rollouts)
        text = (
            f"step {step}: nothing to learn from in {len(rollouts)} rollouts: in {flat} of {len(groups)} prompt groups "
            f"all rewards are equal (mean reward {mean:.3g}), and {cut} rollouts were cut short"
        )
        if cut == len(rollouts) and self.section.over_turn == "mask":
            return f"{text}, which rl.over_turn leaves out; raise rl.max_new_tokens or the turns, or let them score."
        return (
            f"{text}; if they are right, all that these prompts can teach is learnt; if not, train the first stage "
            "longer, raise rl.group, rl.temperature or rl.max_new_tokens, or choose other rewards or prompts."
        )

    # --- Update ----------------------------------------------------------------------------------------------------

    def _update(self, pending: Pending, first: bool) -> dict[str, Tensor | float]:
        """Take one optimizer step on all pending rollouts; the gradient does not depend on micro_batch."""
        optimizer, tally = self.begin_step(), Tally()
        weights = self._parts.policy_loss.weights(pending.lengths)
        loss = torch.zeros((), device=self.device, dtype=torch.float32)
        seen: list[Tensor] = []
        for chunk in pending.chunks(self.section.micro_batch):
            tokens = self._tokens(pending, chunk, first, tally)
            part = weighted_sum(tokens, weights[chunk.rows], pending.lengths[chunk.rows])
            self.manual_backward(part)
            loss = loss + part.detach()
            seen.append(tokens.detach())
        self.end_step(optimizer, loss, lambda: _culprits(pending, torch.cat(seen)))
        learnt = {"loss": loss, "gradient_norm": self._norm, "learning_rate": optimizer.param_groups[0]["lr"]}
        return {**tally.means(), **learnt, "skipped": float(self.skipped), "learnt_from": float(len(pending.rows))}

    def _tokens(self, pending: Pending, chunk: Chunk, first: bool, tally: Tally) -> Tensor:
        """The loss of every produced token of a chunk; [N]."""
        temperature = self.section.temperature
        batch = pending.batch(chunk, self.model.language_model).to(self.device)
        logp, entropy = logprobs_and_entropy(self.model(batch), batch, temperature)
        if first:
            pending.old[chunk.tokens] = logp.detach()
            self._compare(pending, chunk, logp.detach(), tally)
            if self.reference is not None:
                pending.reference[chunk.tokens] = _referred(self.reference, batch, temperature)
        rows, lengths = pending.rows[chunk.rows], pending.lengths[chunk.rows]
        advantages = per_token([row.advantage for row in rows], lengths, self.device)
        loss, clipped = self._parts.policy_loss.tokens(logp, pending.old[chunk.tokens], advantages)
        tally.add(len(logp), entropy=entropy, clip_fraction=clipped)
        if self.reference is not None:
            divergence = k3(logp, pending.reference[chunk.tokens])
            tally.add(0, kl=divergence)
            loss = loss + self.section.kl * divergence
        return loss

    def _compare(self, pending: Pending, chunk: Chunk, logp: Tensor, tally: Tally) -> None:
        """How far the log-probabilities are from those recorded when the tokens were sampled."""
        recorded = [value for row in pending.rows[chunk.rows] for value in row.sampled_logprobs]
        gap = (logp - torch.tensor(recorded, dtype=torch.float32).to(self.device, non_blocking=True)).abs()
        tally.add(0, logprob_gap=gap)
        tally.keep_most("logprob_gap_max", gap)

    def _log(self, metrics: dict[str, float] | dict[str, Tensor | float], prog_bar: Sequence[str]) -> None:
        for name, value in metrics.items():
            # Lightning would make a number a tensor of the default format, which may be bf16.
            exact = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float32)
            self.log(name, exact, prog_bar=name in prog_bar)


def _rewards(groups: Sequence[Group]) -> Tensor:
    """[P, G]"""
    return torch.tensor([[rollout.reward for rollout in group] for group in groups], dtype=torch.float32)


@torch.no_grad()
def _referred(reference: VisualChatModel, batch: Batch, temperature: float) -> Tensor:
    found = target_logprobs(reference(batch), batch, temperature)
    torch.clear_autocast_cache()
    return found


def _culprits(pending: Pending, tokens: Tensor) -> list[str]:
    """The samples with a token whose loss is no finite number; all of the step where there is none."""
    parts = torch.split(tokens, pending.lengths)
    bad = [row.sample for row, part in zip(pending.rows, parts, strict=True) if not bool(part.isfinite().all())]
    return list(dict.fromkeys(bad or [row.sample for row in pending.rows]))
