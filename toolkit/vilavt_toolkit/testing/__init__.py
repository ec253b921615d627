"""The contract tests: the claims that every registered component must meet, ours and those of third parties.

A claim is a function that takes a component's registered name and raises AssertionError, saying what it saw. Each kind
has its claims in one module, and one function here that runs them: `check_modulator("film")`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vilavt_toolkit.registry.plugins import load_builtin
from vilavt_toolkit.testing import (
    advantages,
    dialogues,
    encoders,
    formats,
    inquiry_encoders,
    language_models,
    modulators,
    optimizers,
    policy_losses,
    projectors,
    rewards,
    sources,
    stopping,
    tasks,
)
from vilavt_toolkit.testing.bench import no_synchronisation

Claim = Callable[[str], None]

CLAIMS: Mapping[str, tuple[Claim, ...]] = {
    "source": sources.CLAIMS,
    "encoder": encoders.CLAIMS,
    "modulator": modulators.CLAIMS,
    "inquiry_encoder": inquiry_encoders.CLAIMS,
    "projector": projectors.CLAIMS,
    "language_model": language_models.CLAIMS,
    "dialogue": dialogues.CLAIMS,
    "stopping": stopping.CLAIMS,
    "task": tasks.CLAIMS,
    "optimizer": optimizers.CLAIMS,
    "reward": rewards.CLAIMS,
    "advantage": advantages.CLAIMS,
    "policy_loss": policy_losses.CLAIMS,
    "format": formats.CLAIMS,
}
"""The claims of every kind of component, by the registry's kind."""


def check(kind: str, name: str) -> None:
    """Run every claim of its kind on the component registered as `name`; raises AssertionError."""
    load_builtin()
    for claim in CLAIMS[kind]:
        claim(name)


def _check_of(kind: str) -> Claim:
    """Return `check` of one kind, under a name and with a docstring of its own."""

    def check_component(name: str) -> None:
        check(kind, name)

    check_component.__name__ = check_component.__qualname__ = f"check_{kind}"
    check_component.__doc__ = f"Run every claim on the {kind.replace('_', ' ')} of that name; raises AssertionError."
    return check_component


# One assignment a kind, not a loop over CLAIMS: type checkers and editors only see names that are written down.
check_source = _check_of("source")
check_encoder = _check_of("encoder")
check_modulator = _check_of("modulator")
check_inquiry_encoder = _check_of("inquiry_encoder")
check_projector = _check_of("projector")
check_language_model = _check_of("language_model")
check_dialogue = _check_of("dialogue")
check_stopping = _check_of("stopping")
check_task = _check_of("task")
check_optimizer = _check_of("optimizer")
check_reward = _check_of("reward")
check_advantage = _check_of("advantage")
check_policy_loss = _check_of("policy_loss")
check_format = _check_of("format")

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
