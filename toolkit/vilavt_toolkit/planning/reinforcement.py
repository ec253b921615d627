"""Simulating a step of reinforcement on shapes: rollouts with their KV cache, then the stage's own update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from vilavt_toolkit.config.schema import RLSection
from vilavt_toolkit.contracts import LanguageModel, Trajectory
from vilavt_toolkit.generation.kv_cache import KVCache
from vilavt_toolkit.models.batch import Batch, collate
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.planning.dialogues import Dialogue
from vilavt_toolkit.planning.memory import MemoryTracker
from vilavt_toolkit.planning.rates import DeviceRates
from vilavt_toolkit.planning.recording import ROLLOUT, StepRecorder, hold_gradients
from vilavt_toolkit.planning.shapes import run_on_shapes
from vilavt_toolkit.planning.simulation import (
    Simulation,
    build_planned_model,
    count_parameters,
    fit,
    give_weights,
    summarise,
)
from vilavt_toolkit.training.reinforcement.module import PolicyParts, ReinforcementModule
from vilavt_toolkit.training.reinforcement.reference import Reference, trains_adapters_only
from vilavt_toolkit.training.reinforcement.rollout_buffer import LearnedRollout, RolloutBuffer, RolloutChunk
from vilavt_toolkit.training.reinforcement.rollout_weights import rollout_weights
from vilavt_toolkit.training.trainable import store_frozen

if TYPE_CHECKING:
    from vilavt_toolkit.config.recipe import CheckedRecipe

_PREFILL, _DECODE = -1, -2
"""Numbers of the parts of a rollout among the micro-batches."""


@dataclass(frozen=True)
class PlannedRollouts:
    """The rollouts of a step by length: a usual one and the longest, which `times` of all stand for."""

    dialogues: tuple[Dialogue, ...]
    times: tuple[int, ...]
    rows: int
    """Rollouts that run at once."""
    prompts: int
    batches: int
    """Times that so many rollouts run after each other."""


def plan_rollouts(section: RLSection, dialogues: Sequence[Dialogue]) -> PlannedRollouts:
    """Choose the micro-batches of an update that are simulated; every prompt group is taken to teach something."""
    count = section.prompts_per_step * section.group_size
    size = min(section.micro_batch or count, count)
    chunks = -(-count // size)
    ordered = sorted(dialogues, key=lambda dialogue: len(dialogue[0].ids))
    usual, longest = ordered[len(ordered) // 2], ordered[-1]
    is_one = chunks == 1 or len(usual[0].ids) == len(longest[0].ids)
    chosen = (longest,) * size if is_one else (usual,) * size + (longest,) * size
    rows = min(section.rollout_batch, count)
    return PlannedRollouts(
        chosen, (chunks,) if is_one else (chunks - 1, 1), rows, section.prompts_per_step, -(-count // rows)
    )


class _PlannedCache(KVCache):
    """A cache whose keys and values are known to be those of a cache."""

    def __init__(self, rows: int, device: torch.device, memory: MemoryTracker) -> None:
        super().__init__(rows, device)
        self._memory = memory

    def get_layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values of a layer, as `KVCache` does."""
        found = super().get_layer(index, keys, values)
        self._memory.mark("cache", found)
        return found


class _PlannedBuffer(RolloutBuffer):
    """The rollouts of a step, whose batches a GPU would hold."""

    recorder: StepRecorder

    def collate_chunk(self, chunk: RolloutChunk, language_model: LanguageModel) -> Batch:
        """Return the rollouts of a chunk as a padded batch."""
        batch = super().collate_chunk(chunk, language_model)
        self.recorder.memory.mark_on_device(list(vars(batch).values()))
        return batch


class _PlannedModule(ReinforcementModule):
    """The stage's module with rollouts that are not sampled, since tokens without values say nothing."""

    recorder: StepRecorder
    planned: PlannedRollouts

    def fill_buffer(self, step: int) -> RolloutBuffer:
        """Simulate the rollouts of a step, and return those that are learned from."""
        self.recorder.begin_phase(ROLLOUT)
        with rollout_weights(self.model), torch.no_grad():
            _simulate_rollouts(self.model, self.planned, self.recorder)
        torch.clear_autocast_cache()
        self.recorder.begin_micro_batch(0)
        rollouts = [
            LearnedRollout("planned", trajectory, tuple(views), 1.0) for trajectory, views in self.planned.dialogues
        ]
        buffer = _PlannedBuffer.from_rollouts(rollouts, self.device)
        buffer.recorder = self.recorder
        return buffer

    def record_reference(self, buffer: RolloutBuffer) -> None:
        """Simulate the pass of the reference over the rollouts, before the update."""
        super().record_reference(buffer)
        self.recorder.begin_micro_batch(0)

    def record_reference_chunk(
        self, model: VisualChatModel, buffer: RolloutBuffer, number: int, chunk: RolloutChunk
    ) -> None:
        """Count what the reference takes for the micro-batch that the update makes of the chunk."""
        self.recorder.begin_micro_batch(number)
        super().record_reference_chunk(model, buffer, number, chunk)


def simulate_reinforcement_step(
    recipe: CheckedRecipe, model: VisualChatModel, dialogues: Sequence[Dialogue], rates: DeviceRates
) -> Simulation:
    """Simulate a round of rollouts and the first optimizer step on them.

    `dialogues` are whole rollouts. A prompt is read once for its group, and every rollout of a batch writes as many
    tokens as the longest, with the cache at its full length.
    """
    section = recipe.recipe.rl
    assert section is not None
    planned = plan_rollouts(section, dialogues)
    recorder = StepRecorder(model.language_model.vocab_size, rates)
    with run_on_shapes(recorder):
        give_weights(recipe, model, recorder)
        parts = PolicyParts(section.optimizer.build(), section.advantage.build(), section.policy_loss.build())
        # Without rollouts nothing is collected, so that no collector is asked for anything.
        module = _PlannedModule(model, cast(Any, None), parts, section, drawings=Path())
        if section.kl:
            module.reference = _plan_reference(recipe, section, model, recorder)
        store_frozen(model, section, recipe.recipe.train.precision, "rl")
        module.recorder, module.planned = recorder, planned
        parameters = count_parameters(model)
        if sum(planned.times) > 1:
            hold_gradients(module, recorder)
        fit(module, [0], replace(recipe.recipe.train, compile=False), recorder)
    written = max(sum(trajectory.produced) for trajectory, _ in planned.dialogues)
    times = dict(enumerate(planned.times)) | {_PREFILL: planned.prompts, _DECODE: planned.batches * written}
    return summarise(recorder, parameters, times)


def _plan_reference(
    recipe: CheckedRecipe, section: RLSection, policy: VisualChatModel, recorder: StepRecorder
) -> Reference:
    """Return the reference that a run would have, its copy counted as on the device."""
    if section.kl_reference == "auto" and trains_adapters_only(policy):
        return Reference()
    held = build_planned_model(recipe)
    give_weights(recipe, held, recorder)
    return Reference(held)


def _simulate_rollouts(model: VisualChatModel, planned: PlannedRollouts, recorder: StepRecorder) -> None:
    """Read the prompt of the longest rollout into every row of a KV cache, and one token behind whole rollouts."""
    longest, views = planned.dialogues[-1]
    prompt, shown = cut_prompt(longest, views)
    cache = _PlannedCache(planned.rows, model.device, recorder.memory)
    recorder.begin_micro_batch(_PREFILL)
    batch = collate([prompt], [shown], model.language_model)
    embedded = model.language_model.embed(batch.ids)
    if shown:
        features = model.encode(batch.views, batch.groups, batch.inquiries)
        embedded = model.embed(batch.ids, batch.slots, features)
    update = cache.prepare_update([0], [len(prompt.ids)], embedded.dtype)
    model.language_model(embedded, batch.positions, batch.mask, update, last=1)
    del embedded, update, cache
    recorder.begin_micro_batch(_DECODE)
    full = _PlannedCache(planned.rows, model.device, recorder.memory)
    full.lengths = [len(longest.ids) - 2] * planned.rows
    _read_token(model, full, planned.rows)
    # The first token has allocated the cache, which is no part of what a token takes.
    recorder.forget_cost(_DECODE)
    _read_token(model, full, planned.rows)


def _read_token(model: VisualChatModel, cache: KVCache, rows: int) -> None:
    """Read one token behind every row of a cache."""
    language_model = model.language_model
    ids = torch.full((rows, 1), language_model.end_of_turn)
    positions = torch.zeros(language_model.axes, rows, 1, dtype=torch.long)
    embedded = language_model.embed(ids)
    update = cache.prepare_update(range(rows), [1] * rows, embedded.dtype)
    language_model(embedded, positions, torch.ones(rows, 1, dtype=torch.bool), update, last=1)
    cache.commit(range(rows), [1] * rows, [0] * rows)


def cut_prompt(trajectory: Trajectory, views: Sequence[Any]) -> tuple[Trajectory, list[Any]]:
    """Return the part of a dialogue that comes before the model's first token, and its views."""
    end = trajectory.produced.index(True)
    regions = [region for region in trajectory.regions if region.start < end]
    groups = trajectory.groups[: 1 + max((region.group for region in regions), default=-1)]
    prompt = Trajectory(trajectory.ids[:end], trajectory.produced[:end], trajectory.logprobs[:end], regions, groups)
    return prompt, list(views[: len(regions)])
