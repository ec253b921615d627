"""Evaluation: the same items under every arm, so that arms differ in one thing each."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vilavt_toolkit.config.schema import EvalSection
from vilavt_toolkit.contracts import Sample, Task, Trajectory
from vilavt_toolkit.dialogue.session import Session, opened
from vilavt_toolkit.errors import InputError, error_of
from vilavt_toolkit.generation.loop import Decoding, Loop, Rewrite
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.utils.files import write_text
from vilavt_toolkit.utils.progress import track

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Arm:
    """One way to ask: with or without images and tool, and what the encoder is told."""

    images: bool = True
    tool: bool = True
    inquiry: str = "own"
    """`own`, `none`, or `another` item's."""


ARMS: Mapping[str, Arm] = {
    "blind": Arm(images=False, tool=False),
    "single_pass": Arm(tool=False),
    "modulated": Arm(),
    "unmodulated": Arm(inquiry="none"),
    "shuffled": Arm(inquiry="another"),
}


@dataclass(frozen=True)
class Item:
    """One question under one arm; nothing as large as an image."""

    arm: str
    sample: Sample
    """Without originals and trace."""
    trajectory: Trajectory
    calls: int
    score: float

    def to_json(self) -> dict[str, Any]:
        """The item as a row of the JSONL file."""
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
            "encoded": sum(region.count for region in trajectory.regions),
            "tags": dict(sample.tags),
            "trajectory": trajectory.to_json(),
        }


Watch = Callable[[Item, Session], None]
"""Sees every item with the session it came from, which is not kept."""


def evaluate(
    model: VisualChatModel, task: Task, section: EvalSection, seed: int, watch: Watch | None = None
) -> dict[str, list[Item]]:
    """Ask every item under every arm; raises InputError naming the item that cannot be asked."""
    size = task.length(section.split)
    count = min(section.items or size, size)
    decoding = Decoding(section.max_new_tokens, seed=seed)
    results: dict[str, list[Item]] = {}
    for name in _ordered(section.arms):
        rewrite = _rewrites(ARMS[name], results.get("modulated", []), seed)
        asked: dict[int, Sample] = {}
        found: dict[int, Item] = {}
        sessions = _opened(model, ARMS[name], (task.sample(section.split, index) for index in range(count)), asked)
        seats = Loop(model, decoding, rewrite).run_sessions(sessions, section.batch_size)
        for seat in track(seats, count, name):
            sample = asked.pop(seat.number)
            if seat.error is not None:
                raise error_of(f"item {sample.id}", seat.error)
            found[seat.number] = _item(task, name, sample, seat.session)
            if watch is not None:
                watch(found[seat.number], seat.session)
        results[name] = [found[number] for number in range(count)]
    return {name: results[name] for name in section.arms}


def _ordered(arms: Sequence[str]) -> list[str]:
    """The arms, `modulated` before `shuffled`, which permutes its inquiries."""
    return sorted(arms, key=lambda arm: arm == "shuffled")


def _opened(model: VisualChatModel, arm: Arm, samples: Iterable[Sample], asked: dict[int, Sample]) -> Iterator[Session]:
    """The sessions of samples, each opened when there is room for it; `asked` remembers whose they are."""
    for number, sample in enumerate(samples):
        try:
            session = opened(model, sample, arm.images)
            session.open(sample.question, tool=arm.tool and sample.tool)
        except InputError as error:
            raise error_of(f"item {sample.id}", error) from None
        asked[number] = sample
        yield session


def _item(task: Task, arm: str, sample: Sample, session: Session) -> Item:
    score = task.score(sample, session.trajectory.answer)
    # Originals, sources and views would soon fill the memory of a machine.
    kept = replace(sample, originals=(), trace=(), conversation=None)
    return Item(arm, kept, session.trajectory, session.calls, score)


def _rewrites(arm: Arm, modulated: Sequence[Item], seed: int) -> Rewrite | None:
    if arm.inquiry == "own":
        return None
    if arm.inquiry == "none":
        return lambda number, ids: ()
    others = permuted_inquiries([_first_inquiry(item) for item in modulated], seed)
    return lambda number, ids: others.get(number, ids)


def _first_inquiry(item: Item) -> Ids:
    return next((group.ids for group in item.trajectory.groups if group.ids), ())


def permuted_inquiries(own: Sequence[Ids], seed: int) -> dict[int, Ids]:
    """For every item that asked something, the inquiry of another item, and another inquiry where there is one."""
    asked = [number for number, ids in enumerate(own) if ids]
    order = asked.copy()
    random.Random(seed).shuffle(order)
    for place, number in enumerate(asked):
        if own[order[place]] != own[number]:
            continue
        swaps = (
            other
            for other in range(len(asked))
            if own[order[other]] != own[number] and own[order[place]] != own[asked[other]]
        )
        other = next(swaps, None)
        if other is not None:
            order[place], order[other] = order[other], order[place]
    return {number: own[order[place]] for place, number in enumerate(asked)}


def write_items(path: Path, results: Mapping[str, Sequence[Item]]) -> None:
    """Write every item of every arm as a line of JSON; raises InputError."""
    write_text(path, "".join(_lines(results)))


def _lines(results: Mapping[str, Sequence[Item]]) -> Iterator[str]:
    for items in results.values():
        for item in items:
            yield json.dumps(item.to_json(), ensure_ascii=False) + "\n"
