"""The budget of a row that dialogues share in training, and samples that are larger than it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from vilavt_toolkit.config.schema import RLSection, TrainSection
from vilavt_toolkit.contracts import ShownRegion, Trajectory, View
from vilavt_toolkit.errors import BadConfig, InputError
from vilavt_toolkit.models.model import VisualChatModel


@dataclass(frozen=True)
class RowSize:
    """Counts what takes memory in a row: tokens of the language model, and patches of the encoder."""

    tokens: int
    patches: int


@dataclass(frozen=True)
class RowBudget:
    """Holds the most tokens and patches of a row, and what becomes of a sample that is larger."""

    tokens: int
    patches: int | None
    """None: any number."""
    long_samples: Literal["refuse", "cut", "alone"]
    count_patches: Callable[[View], int]
    context: int | None = None
    """Most tokens of the language model, where samples are cut to them; None: a longer sample is refused before."""

    def measure(self, trajectory: Trajectory, views: Sequence[View]) -> RowSize:
        """Return the size of a sample."""
        return RowSize(len(trajectory.ids), sum(map(self.count_patches, views)))

    def fill(self, size: RowSize) -> float:
        """Return how full a size makes a row: 1 is a row that is full by tokens or by patches."""
        return max(size.tokens / self.tokens, size.patches / self.patches if self.patches is not None else 0.0)

    def fit(self, trajectory: Trajectory, views: Sequence[View]) -> tuple[Trajectory, list[View]]:
        """Return a sample as it is trained on, by `long_samples`; raises InputError for one that is too large."""
        size = self.measure(trajectory, views)
        if self._holds(size) or self.long_samples == "alone":
            return trajectory, list(views)
        problem = f"{size.tokens:,} tokens and {size.patches:,} patches are more than {self._describe_limit(size)}"
        if self.long_samples == "refuse":
            raise InputError(f"{problem}. Raise that, or set train.long_samples to cut or to alone.")
        # The last end that fits keeps the most turns.
        for end in reversed(list(_list_ends(trajectory))):
            cut = cut_trajectory(trajectory, end)
            kept = list(views[: len(cut.regions)])
            if self._holds(self.measure(cut, kept)):
                return cut, kept
        remedy = "Shorten the sample or show smaller images"
        if self.context is None or size.tokens <= self.context:
            remedy = "Raise that, or set train.long_samples=alone"
        raise InputError(f"{problem}, and so is its first turn alone. {remedy}.")

    def _holds(self, size: RowSize) -> bool:
        return self.fill(size) <= 1 and (self.context is None or size.tokens <= self.context)

    def _describe_limit(self, size: RowSize) -> str:
        if self.context is not None and size.tokens > self.context:
            return f"the model's context of {self.context:,} tokens"
        patches = f" and train.pack_patches={self.patches:,}" if self.patches is not None else ""
        return f"a row of train.pack_tokens={self.tokens:,}{patches} takes"


def _list_ends(trajectory: Trajectory) -> Iterator[int]:
    """Yield the end of every turn that is learned from: the place after its last token."""
    for start, following in pairwise([*trajectory.starts, len(trajectory.ids)]):
        written = [place for place in range(start, following) if trajectory.produced[place]]
        if written:
            yield written[-1] + 1


def cut_trajectory(trajectory: Trajectory, end: int) -> Trajectory:
    """Return the beginning of a trajectory, up to the token before `end`, which is the end of a turn."""
    regions = [region for region in trajectory.regions if region.start < end]
    # Inquiries of what is left out would be encoded for nothing. Those that stay are numbered anew.
    groups = sorted({region.group for region in regions})
    numbers = {group: number for number, group in enumerate(groups)}
    turns = sum(start < end for start in trajectory.starts)
    return replace(
        trajectory,
        ids=trajectory.ids[:end],
        produced=trajectory.produced[:end],
        logprobs=trajectory.logprobs[:end],
        regions=[_renumber(region, numbers) for region in regions],
        groups=[trajectory.groups[group] for group in groups],
        turns=trajectory.turns[:turns],
        starts=trajectory.starts[:turns],
        questions=[asked for asked in trajectory.questions if asked.start < end],
        feedback=trajectory.feedback[:turns],
    )


def _renumber(region: ShownRegion, numbers: dict[int, int]) -> ShownRegion:
    return replace(region, group=numbers[region.group])


def build_row_budget(section: TrainSection, model: VisualChatModel) -> RowBudget | None:
    """Build the budget of rows that dialogues share, or None if each has its own."""
    if section.pack_tokens is None:
        return None
    encoder = model.vision.backbone
    return RowBudget(
        section.pack_tokens,
        section.pack_patches,
        section.long_samples,
        lambda view: encoder.token_count(view.size),
        model.language_model.context_length if section.long_samples == "cut" else None,
    )


def build_sample_budget(section: TrainSection, model: VisualChatModel) -> RowBudget | None:
    """Build the budget of one sample: that of a row, or the model's context where samples are cut to that alone.

    None if the only limit is the context, past which samples are refused.
    """
    context, encoder = model.language_model.context_length, model.vision.backbone
    if section.pack_tokens is None and section.long_samples == "cut":
        return RowBudget(context, None, "cut", lambda view: encoder.token_count(view.size), context)
    return build_row_budget(section, model)


def build_rollout_budget(section: RLSection, model: VisualChatModel) -> RowBudget | None:
    """Build the budget of rows that rollouts share in an update, or None if each has its own.

    A rollout that is larger has a row alone: it was sampled, and all of it counts.
    """
    if section.pack_tokens is None:
        return None
    encoder = model.vision.backbone
    return RowBudget(section.pack_tokens, section.pack_patches, "alone", lambda view: encoder.token_count(view.size))


def require_packing(model: VisualChatModel, stage: str = "train") -> None:
    """Raise BadConfig if the language model cannot read rows of several dialogues, as `stage` is to give it."""
    if problem := model.language_model.describe_packing_problem():
        raise BadConfig(
            f"the language model takes no row of several dialogues, since {problem}. Set {stage}.micro_batch instead."
        )
