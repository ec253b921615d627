"""Evaluation: the same items under every arm. Arms differ in one thing each, so that a difference has one cause."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vilavt_toolkit.config.schema import EvalSection
from vilavt_toolkit.contracts import Sample, Task, Trajectory
from vilavt_toolkit.data.splits import require_samples
from vilavt_toolkit.dialogue.session import Session, session_for
from vilavt_toolkit.errors import InputError, add_context
from vilavt_toolkit.generation.loop import Decoding, InquiryRewrite, Loop
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.utils.files import write_text
from vilavt_toolkit.utils.progress import track_progress

InquiryIds = tuple[int, ...]


@dataclass(frozen=True)
class Arm:
    """One way to ask the items: with or without images and tool, and with which inquiry for the encoder."""

    images: bool = True
    tool: bool = True
    inquiry: Literal["own", "none", "shuffled"] = "own"
    """The inquiry that the encoder gets: the model's own, none, or that of another item."""


ARMS: Mapping[str, Arm] = {
    "blind": Arm(images=False, tool=False),
    "single_pass": Arm(tool=False),
    "modulated": Arm(),
    "unmodulated": Arm(inquiry="none"),
    "shuffled": Arm(inquiry="shuffled"),
}


@dataclass(frozen=True)
class EvaluatedItem:
    """One question under one arm, without images or anything else that large."""

    arm: str
    sample: Sample
    """Without originals and trace."""
    trajectory: Trajectory
    calls: int
    score: float

    def to_json(self) -> dict[str, Any]:
        """Return the item as a row of the JSONL file."""
        trajectory, sample = self.trajectory, self.sample
        return {
            "arm": self.arm,
            "id": sample.id,
            "question": sample.question,
            "answer": sample.answer,
            "predicted": trajectory.answer,
            "score": self.score,
            "why": trajectory.why,
            "calls": self.calls,
            "produced": sum(trajectory.produced),
            # The cost of looking: features that the language model read.
            "encoded": sum(region.count for region in trajectory.regions),
            "tags": dict(sample.tags),
            "trajectory": trajectory.to_json(),
        }


ItemCallback = Callable[[EvaluatedItem, Session], None]
"""Called with every item and the session it came from, which is dropped afterwards."""


def evaluate_arms(
    model: VisualChatModel, task: Task, section: EvalSection, seed: int, on_item: ItemCallback | None = None
) -> dict[str, list[EvaluatedItem]]:
    """Ask every item under every arm, and return the items of each arm in the task's order.

    `on_item` is called with each item as it ends. Raises InputError naming an item that cannot be asked, and UsageError
    for a split without samples.
    """
    # Every arm asks the first items of the split, so that arms can be compared item by item.
    size = require_samples(task, "the task", section.split)
    count = min(section.items or size, size)
    decoding = Decoding(section.max_new_tokens, seed=seed)
    results: dict[str, list[EvaluatedItem]] = {}
    for name in _order_arms(section.arms):
        rewrite = _inquiry_rewrite(ARMS[name], results.get("modulated", []), seed)
        samples: dict[int, Sample] = {}
        found: dict[int, EvaluatedItem] = {}
        drawn = (task.sample(section.split, index) for index in range(count))
        sessions = _open_sessions(model, ARMS[name], drawn, samples)
        requests = Loop(model, decoding, rewrite).run_sessions(sessions, section.batch_size)
        # Requests come as they end, not in order. A sample is held from its start to its end only.
        for request in track_progress(requests, count, name):
            sample = samples.pop(request.number)
            if request.error is not None:
                raise add_context(f"item {sample.id}", request.error)
            found[request.number] = _score_item(task, name, sample, request.session)
            if on_item is not None:
                on_item(found[request.number], request.session)
        results[name] = [found[number] for number in range(count)]
    return {name: results[name] for name in section.arms}


def _order_arms(arms: Sequence[str]) -> list[str]:
    """Put `shuffled` last, because it permutes the inquiries that `modulated` has written."""
    return sorted(arms, key=lambda arm: arm == "shuffled")


def _open_sessions(
    model: VisualChatModel, arm: Arm, samples: Iterable[Sample], opened: dict[int, Sample]
) -> Iterator[Session]:
    """Open the sessions of samples one by one, as the loop has room; `opened` gets each one's sample by number."""
    for number, sample in enumerate(samples):
        try:
            session = session_for(model, sample, arm.images)
            session.ask(sample.question, tool=arm.tool and sample.tool)
        except InputError as error:
            raise add_context(f"item {sample.id}", error) from None
        opened[number] = sample
        yield session


def _score_item(task: Task, arm: str, sample: Sample, session: Session) -> EvaluatedItem:
    trajectory = session.trajectory
    score = task.score_turn(sample, _read_last_turn(session), trajectory.answer)
    # Originals, sources and views of thousands of items would fill the memory.
    light = replace(sample, originals=(), trace=(), conversation=None)
    return EvaluatedItem(arm, light, trajectory, session.calls, score)


def _read_last_turn(session: Session) -> str:
    """Return the text of the last turn, without the token that ends it; empty without a turn."""
    return session.read_turn_text(-1) if session.trajectory.turns else ""


def _inquiry_rewrite(arm: Arm, modulated: Sequence[EvaluatedItem], seed: int) -> InquiryRewrite | None:
    if arm.inquiry == "own":
        return None
    if arm.inquiry == "none":
        return lambda number, ids: ()
    others = permute_inquiries([_first_inquiry(item) for item in modulated], seed)
    # An item that wrote no inquiry in the arm `modulated` may write one here; it keeps its own.
    return lambda number, ids: others.get(number, ids)


def _first_inquiry(item: EvaluatedItem) -> InquiryIds:
    return next((group.ids for group in item.trajectory.groups if group.ids), ())


def permute_inquiries(own: Sequence[InquiryIds], seed: int) -> dict[int, InquiryIds]:
    """Return an inquiry of another item for every item that wrote one, with other words where there are any.

    `own` holds the first inquiry of every item, () for none. The result is a permutation of the inquiries, so that
    the encoder sees the same ones as in the arm `modulated`, under the wrong items.
    """
    asked = [number for number, ids in enumerate(own) if ids]
    order = asked.copy()
    random.Random(seed).shuffle(order)
    # Many items ask in the same words. A place that got its own words is swapped with one where both then differ.
    for place, number in enumerate(asked):
        if own[order[place]] != own[number]:
            continue
        for other in range(len(asked)):
            if own[order[other]] != own[number] and own[order[place]] != own[asked[other]]:
                order[place], order[other] = order[other], order[place]
                break
    return {number: own[order[place]] for place, number in enumerate(asked)}


def write_items(path: Path, results: Mapping[str, Sequence[EvaluatedItem]]) -> None:
    """Write every item of every arm as a line of JSON; raises InputError."""
    lines = [json.dumps(item.to_json(), ensure_ascii=False) + "\n" for items in results.values() for item in items]
    write_text(path, "".join(lines))
