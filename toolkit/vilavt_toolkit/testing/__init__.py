"""The contract tests: what every registered component must do, for ours and for third parties' tests.

A claim is a function that takes a component's registered name and raises AssertionError, saying what it saw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vilavt_toolkit.registry.plugins import load_builtin
from vilavt_toolkit.testing import encoders, formats, language, learning, modulators, parts, reinforcement, stopping
from vilavt_toolkit.testing.bench import no_synchronisation

Claim = Callable[[str], None]

CLAIMS: Mapping[str, tuple[Claim, ...]] = {
    "source": learning.SOURCE_CLAIMS,
    "encoder": encoders.CLAIMS,
    "modulator": modulators.CLAIMS,
    "inquiry_encoder": parts.INQUIRY_ENCODER_CLAIMS,
    "projector": parts.PROJECTOR_CLAIMS,
    "language_model": language.LANGUAGE_MODEL_CLAIMS,
    "dialogue": language.DIALOGUE_CLAIMS,
    "stopping": stopping.CLAIMS,
    "task": learning.TASK_CLAIMS,
    "optimizer": learning.OPTIMIZER_CLAIMS,
    "reward": reinforcement.REWARD_CLAIMS,
    "advantage": reinforcement.ADVANTAGE_CLAIMS,
    "policy_loss": reinforcement.POLICY_LOSS_CLAIMS,
    "format": formats.CLAIMS,
}
"""The claims of every kind of component, by the registry's kind."""


def check(kind: str, name: str) -> None:
    """Run every claim of its kind on the component registered as `name`; raises AssertionError."""
    load_builtin()
    for claim in CLAIMS[kind]:
        claim(name)


def check_source(name: str) -> None:
    """Hold the registered source to its contract."""
    check("source", name)


def check_encoder(name: str) -> None:
    """Hold the registered encoder to its contract."""
    check("encoder", name)


def check_modulator(name: str) -> None:
    """Hold the registered modulator to its contract, on every registered encoder that takes it."""
    check("modulator", name)


def check_inquiry_encoder(name: str) -> None:
    """Hold the registered inquiry encoder to its contract."""
    check("inquiry_encoder", name)


def check_projector(name: str) -> None:
    """Hold the registered projector to its contract."""
    check("projector", name)


def check_language_model(name: str) -> None:
    """Hold the registered language model to its contract."""
    check("language_model", name)


def check_dialogue(name: str) -> None:
    """Hold the registered dialogue to its contract."""
    check("dialogue", name)


def check_stopping(name: str) -> None:
    """Hold the registered stopping policy to its contract."""
    check("stopping", name)


def check_task(name: str) -> None:
    """Hold the registered task to its contract."""
    check("task", name)


def check_optimizer(name: str) -> None:
    """Hold the registered optimizer to its contract."""
    check("optimizer", name)


def check_reward(name: str) -> None:
    """Hold the registered reward to its contract."""
    check("reward", name)


def check_advantage(name: str) -> None:
    """Hold the registered advantage to its contract."""
    check("advantage", name)


def check_policy_loss(name: str) -> None:
    """Hold the registered policy loss to its contract."""
    check("policy_loss", name)


def check_format(name: str) -> None:
    """Hold the registered checkpoint format to its contract."""
    check("format", name)


__all__ = [
    "CLAIMS",
    "Claim",
    "check",
    "check_advantage",
    "check_dialogue",
    "check_encoder",
    "check_format",
    "check_inquiry_encoder",
    "check_language_model",
    "check_modulator",
    "check_optimizer",
    "check_policy_loss",
    "check_projector",
    "check_reward",
    "check_source",
    "check_stopping",
    "check_task",
    "no_synchronisation",
]
