"""Rollouts drawn into the run while it trains: what the policy looked at, said, and earned for it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vilavt_toolkit.chat.answer import answer_of
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.report.trace import draw_trace
from vilavt_toolkit.training.reinforcement.rollouts import Group, Rollout
from vilavt_toolkit.utils.files import write_json

log = logging.getLogger(__name__)

_GROUPS = 2


def draw_rollouts(run: Path, step: int, groups: Sequence[Group], names: Sequence[str]) -> None:
    """Draw the best and the worst rollout of the step's first prompts into RUN/rollouts, with all of theirs as text.

    What the disk refuses is said, and training goes on.
    """
    folder = run / "rollouts" / f"step-{step:08d}"
    try:
        for number, group in enumerate(groups[:_GROUPS]):
            ranked = sorted(group, key=lambda rollout: rollout.reward)
            for name, rollout in (("worst", ranked[0]), ("best", ranked[-1])):
                _draw(folder / f"prompt-{number}-{name}.png", rollout, names)
        told = [_told(rollout, names) for group in groups[:_GROUPS] for rollout in group]
        write_json(folder / "rollouts.json", told)
    except InputError as error:
        log.warning("the rollouts of step %d are not drawn: %s", step, error)


def _draw(path: Path, rollout: Rollout, names: Sequence[str]) -> None:
    question = f"{rollout.sample.question} (right: {rollout.sample.answer})"
    trace = answer_of(rollout.session, question).trace
    draw_trace(replace(trace, cost={**trace.cost, **_earned(rollout, names)}), path)


def _earned(rollout: Rollout, names: Sequence[str]) -> dict[str, float]:
    return {"reward": rollout.reward, **dict(zip(names, rollout.scores, strict=True))}


def _told(rollout: Rollout, names: Sequence[str]) -> dict[str, Any]:
    sample, trajectory = rollout.sample, rollout.trajectory
    asked = {"sample": sample.id, "question": sample.question, "right": sample.answer}
    ended = {"answer": trajectory.answer, "why": trajectory.why, "earned": _earned(rollout, names)}
    return {**asked, **ended, "turns": trajectory.to_json()["turns"], "feedback": trajectory.feedback}
