"""Validation while training: the loss on samples of split val, and dialogues that the model leads there, scored."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vilavt_toolkit.chat.answer import build_answer
from vilavt_toolkit.config.schema import EvalSection, TrainSection
from vilavt_toolkit.contracts import Sample, Task
from vilavt_toolkit.data.row_budget import build_row_budget, build_sample_budget
from vilavt_toolkit.dialogue.session import Session, ask_sample
from vilavt_toolkit.errors import UsageError, add_context
from vilavt_toolkit.generation.loop import Decoding, Loop
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.report.trace import render_trace
from vilavt_toolkit.training.losses import target_logprobs_and_hits
from vilavt_toolkit.training.reinforcement.rollout_weights import rollout_weights
from vilavt_toolkit.training.supervised.data import StepBatch, StepCollator, TraceDataset, prepare_samples
from vilavt_toolkit.training.supervised.workers import BeginSample, WorkerPool

if TYPE_CHECKING:
    from PIL.Image import Image

    from vilavt_toolkit.models.batch import Batch

log = logging.getLogger(__name__)

SPLIT = "val"
_LOSS_DRAW, _DIALOGUE_DRAW = 1, 2
"""Streams of random numbers by which the samples of either half are chosen."""
_MOST_DRAWN = 4
"""Dialogues of a validation that are drawn."""


@dataclass
class TargetSums:
    """Sums over the tokens of the model; several processes add theirs."""

    logprobs: float = 0.0
    hits: float = 0.0
    count: float = 0.0


@dataclass(frozen=True)
class ScoredDialogue:
    """A dialogue that the model led, with the task's score."""

    sample: Sample
    session: Session
    score: float

    def draw(self) -> tuple[Image, str]:
        """Return its picture, with every crop and its inquiry, and a caption."""
        question = f"{self.sample.question} (right: {self.sample.answer})"
        answer = build_answer(self.session, question)
        trace = replace(answer.trace, is_right=self.score >= 1)
        return render_trace(trace), f"{self.sample.id}: {question} {answer}"


class Validator:
    """Measures a model on a few samples of split val, the same at every validation. Changes no weight."""

    def __init__(
        self, model: VisualChatModel, task: Task, section: TrainSection, asking: EvalSection, seed: int
    ) -> None:
        self.model, self.task, self.section, self.asking = model, task, section, asking
        length = task.length(SPLIT)
        self.loss_indices = choose_indices(length, section.validate_samples, seed, _LOSS_DRAW)
        self.dialogue_indices = choose_indices(length, section.validate_dialogues, seed, _DIALOGUE_DRAW)
        self.check_stop: Callable[[], None] = lambda: None
        """Called between samples; raises an error if the run is to end now."""
        self._decoding = Decoding(asking.max_new_tokens, seed=seed)
        self._refuse_untraced()

    def _refuse_untraced(self) -> None:
        """Raise UsageError before training if the split has questions without anything to compute a loss on."""
        sample = self.task.training_sample(SPLIT, self.loss_indices[0])
        if not sample.trace and sample.conversation is None:
            raise UsageError(
                f"train.validate_every: sample {sample.id} of split '{SPLIT}' has no trace or conversation, and so no "
                "loss. Give the split traces, or set train.validate_every=null."
            )

    def measure_targets(self, rank: int = 0, size: int = 1) -> TargetSums:
        """Return the sums over this process's share of the samples; raises InputError for one that cannot be read.

        Up to `train.max_bad_samples` of them are left out.
        """
        section, sums, spares_bad = self.section, TargetSums(), self.section.max_bad_samples > 0
        # Rows that are packed come one at a time, so that a whole step of samples may share them.
        budget = build_row_budget(section, self.model)
        at_once = section.micro_batch if section.micro_batch and budget is None else section.batch_size
        limits = build_sample_budget(section, self.model)
        dataset = TraceDataset(self.model, self.task, len(self.loss_indices), limits, SPLIT)
        collator = StepCollator(at_once, self.model.language_model, budget)

        def prepare_chunk(chunk: Sequence[int], begin_sample: BeginSample) -> StepBatch:
            prepared = prepare_samples(dataset, chunk, begin_sample, spares_bad)
            return collator([sample for sample in prepared if isinstance(sample, tuple)])

        starts = range(0, len(self.loss_indices), at_once)
        chunks = [self.loss_indices[start : start + at_once] for start in starts][rank::size]
        with WorkerPool(prepare_chunk, section.workers, section.worker_seconds, self.check_stop) as pool:
            for batch in pool.map(chunks):
                for micro_batch in batch.to(self.model.device).micro_batches:
                    logprobs, is_hit = score_targets(self.model, micro_batch)
                    sums.logprobs += float(logprobs.double().sum())
                    sums.hits += float(is_hit.sum())
                    sums.count += len(logprobs)
        return sums

    def lead_dialogues(self, rank: int = 0, size: int = 1) -> list[ScoredDialogue]:
        """Ask this process's share of the dialogues, greedily as an evaluation does; raises InputError."""
        indices = self.dialogue_indices[rank::size]
        samples = [self.task.sample(SPLIT, index) for index in indices]
        sessions = [ask_sample(self.model, sample) for sample in samples]
        with rollout_weights(self.model):
            for request in Loop(self.model, self._decoding).run_sessions(sessions, self.asking.batch_size):
                if request.error is not None:
                    raise add_context(f"sample {samples[request.number].id}", request.error)
                self.check_stop()
        # Autocast caches casts of weights. The loop's have no gradient, and the next step must not get them.
        torch.clear_autocast_cache()
        return [self._score(sample, session) for sample, session in zip(samples, sessions, strict=True)]

    def _score(self, sample: Sample, session: Session) -> ScoredDialogue:
        text = session.read_turn_text(-1) if session.trajectory.turns else ""
        return ScoredDialogue(sample, session, self.task.score_turn(sample, text, session.trajectory.answer))


def score_targets(model: VisualChatModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the log-probability [N] of every token that the model wrote, and whether it is the likeliest one."""
    return target_logprobs_and_hits(model.language_model, model.run_layers(batch), batch)


def choose_indices(length: int, most: int, seed: int, draw: int) -> list[int]:
    """Draw at most `most` indices of a split, in its order. Files are often sorted, so its beginning would not do."""
    drawn: Any = np.random.default_rng([seed, draw]).permutation(length)[:most]
    return sorted(int(index) for index in drawn)


def select_drawn(dialogues: Sequence[ScoredDialogue]) -> list[ScoredDialogue]:
    """Return the dialogues that are drawn: those that zoomed before the others, without any that shows nothing."""
    shown = [dialogue for dialogue in dialogues if dialogue.session.sources]
    return sorted(shown, key=lambda dialogue: not dialogue.session.calls)[:_MOST_DRAWN]
