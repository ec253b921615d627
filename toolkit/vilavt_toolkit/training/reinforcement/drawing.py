"""Rollouts drawn into the run while it trains: the regions the policy looked at, its answers, and their rewards."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vilavt_toolkit.chat.answer import build_answer
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.report.trace import draw_trace
from vilavt_toolkit.training.reinforcement.rollouts import PromptGroup, Rollout
from vilavt_toolkit.utils.files import write_json

log = logging.getLogger(__name__)

_DRAWN_GROUPS = 2
"""Prompt groups of a step that are drawn."""


def draw_rollouts(run: Path, step: int, groups: Sequence[PromptGroup], names: Sequence[str]) -> None:
    """Draw the best and the worst rollout of the step's first prompts into RUN/rollouts, and write all of theirs.

    `names` are those of the rewards. If a file cannot be written, only a warning says so.
    """
    folder = run / "rollouts" / f"step-{step:08d}"
    # A full disk must not end a training run for the sake of a picture.
    try:
        for number, group in enumerate(groups[:_DRAWN_GROUPS]):
            ranked = sorted(group, key=lambda rollout: rollout.reward)
            for rank, rollout in (("worst", ranked[0]), ("best", ranked[-1])):
                _draw_rollout(folder / f"prompt-{number}-{rank}.png", rollout, names)
        rows = [_rollout_to_json(rollout, names) for group in groups[:_DRAWN_GROUPS] for rollout in group]
        write_json(folder / "rollouts.json", rows)
    except InputError as error:
        log.warning("the rollouts of step %d are not drawn: %s", step, error)


def _draw_rollout(path: Path, rollout: Rollout, names: Sequence[str]) -> None:
    question = f"{rollout.sample.question} (right: {rollout.sample.answer})"
    trace = build_answer(rollout.session, question).trace
    draw_trace(replace(trace, cost={**trace.cost, **_named_scores(rollout, names)}), path)


def _named_scores(rollout: Rollout, names: Sequence[str]) -> dict[str, float]:
    return {"reward": rollout.reward, **dict(zip(names, rollout.scores, strict=True))}


def _rollout_to_json(rollout: Rollout, names: Sequence[str]) -> dict[str, Any]:
    sample, trajectory = rollout.sample, rollout.trajectory
    return {
        "sample": sample.id,
        "question": sample.question,
        "right": sample.answer,
        "answer": trajectory.answer,
        "why": trajectory.why,
        "earned": _named_scores(rollout, names),
        "turns": trajectory.to_json()["turns"],
        "feedback": trajectory.feedback,
    }
