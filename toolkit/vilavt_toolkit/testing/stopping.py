"""What every registered stopping policy must do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import torch

from vilavt_toolkit.contracts import LoopState, Probe, RegionCall, Spent, StoppingPolicy, ToolCall, Turn
from vilavt_toolkit.registry import Entry, stopping_policies
from vilavt_toolkit.testing import bench

_WIDTH = 12
"""Of the hidden states that stopping policies are shown."""


@dataclass(frozen=True)
class _SmallPolicy:
    """A small instance of a stopping policy: its tiny one, or one of its variants."""

    entry: Entry[StoppingPolicy]
    config: Any

    def build(self, seed: int = 0) -> StoppingPolicy:
        """Build it for hidden states of `_WIDTH` numbers."""
        made: StoppingPolicy = bench.build(self.entry, _WIDTH, seed=seed, config=self.config)
        return made


def _of_every_policy(claim: Callable[[_SmallPolicy], None]) -> Callable[[str], None]:
    """Make a claim about one small policy one about the tiny one of a name and all its variants."""

    @wraps(claim)
    def claim_of_all(name: str) -> None:
        entry = stopping_policies.get(name)
        for variant, config in {"": entry.cls.tiny(), **entry.cls.variants()}.items():
            try:
                claim(_SmallPolicy(entry, config))
            except AssertionError as error:
                raise AssertionError(f"{name}, {variant}: {error}" if variant else str(error)) from error

    return claim_of_all


def _states() -> list[LoopState]:
    """States after turns, and at looks between them with all that a policy may need."""
    call = Turn("closer", call=ToolCall((RegionCall(0, {"bbox_2d": [1, 2, 3, 4]}),), "red square"))
    answer, broken = Turn("I see a 7.", answer="7"), Turn(problem="not in the right form")
    dialogues = ((), (call,), (answer,), (broken,), (call, answer), (call, call), (call,) * 50)
    return [_state_after(turns, look) for turns in dialogues for look in (False, True) if turns or look]


def _state_after(turns: tuple[Turn, ...], look: bool) -> LoopState:
    calls = sum(turn.call is not None for turn in turns)
    generator = torch.Generator().manual_seed(len(turns))
    spent = Spent(16 * (calls + 1), 4 * (calls + 1), 40 * (calls + 1), 20 * len(turns), 8 * calls, 1e6 * calls, 0.1)
    planned = Spent(patches=16, features=4, read=40) if turns and turns[-1].call and not look else Spent()
    seen: dict[str, Any] = {}
    if look:
        answers = [Probe("7", 0.95, 0.9), Probe(None, 0.0), *([Probe("7", 0.95, 0.9)] * len(turns))]
        mean = torch.randn(_WIDTH, generator=generator)
        seen = {
            "probes": tuple(answers[: len(turns) + 1]),
            "features": (torch.zeros(_WIDTH), *[mean] * calls),
            "hidden": torch.randn(_WIDTH, generator=generator),
        }
    return LoopState(turns, calls, spent, planned, look, **seen)


@_of_every_policy
def stopping_builds_on_the_meta_device(small: _SmallPolicy) -> None:
    """Building it reads nothing and can be free of memory."""
    bench.assert_builds_quickly(small.build)


@_of_every_policy
def stopping_decides_and_says_why(small: _SmallPolicy) -> None:
    """Every decision, after turns and at looks, is a legal one, the same for the same state; one to end says why."""
    policy = small.build()
    assert policy.needs <= {"probe", "features", "hidden"}, f"the loop finds out none of {sorted(policy.needs)}"
    for state in _states():
        decision = policy.decide(state)
        assert decision.action in ("go_on", "answer", "stop"), f"'{decision.action}' is no action"
        assert decision.action == "go_on" or decision.why, f"'{decision.action}' has no reason"
        assert decision == policy.decide(state), "the same state gets another decision"


@_of_every_policy
def stopping_looks_only_at_what_it_needs(small: _SmallPolicy) -> None:
    """What a policy does not say it needs may be missing at a look, and changes no decision."""
    policy = small.build()
    missing: dict[str, tuple[str, Any]] = {
        "probe": ("probes", ()),
        "features": ("features", ()),
        "hidden": ("hidden", None),
    }
    bare = dict(value for need, value in missing.items() if need not in policy.needs)
    for state in _states():
        assert policy.decide(replace(state, **bare)) == policy.decide(state), f"it reads {', '.join(bare)} unasked"


@_of_every_policy
def stopping_learns_from_all_turns_alike(small: _SmallPolicy) -> None:
    """What learns has a finite loss, a sum over turns that may be none, and passes no gradient to the model."""
    policy = small.build()
    hidden = torch.randn(6, _WIDTH, generator=torch.Generator().manual_seed(0), requires_grad=True)
    answered = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0])
    loss = policy.loss(hidden, answered)
    learns = any(weight.requires_grad for weight in policy.parameters())
    assert (loss is not None) == learns, "it has a loss and no parameter that learns, or the other way round"
    if loss is None:
        return
    parts = [policy.loss(hidden[rows], answered[rows]) for rows in (slice(0, 4), slice(4, 6), slice(6, 6))]
    summed = torch.stack([part for part in parts if part is not None]).sum()
    assert loss.shape == () and loss.isfinite(), f"the loss is {loss}"
    bench.assert_close(summed, loss, "the losses of two parts of the turns and of none, and of all")
    bench.backpropagate(loss)
    bench.assert_gradients(policy)
    assert hidden.grad is None or not hidden.grad.any(), "it changes the model whose hidden states it reads"


@_of_every_policy
def stopping_keeps_what_it_learned(small: _SmallPolicy) -> None:
    """A state dict carries everything: another instance with it decides alike."""
    first, second = small.build(seed=0), small.build(seed=1)
    second.load_state_dict(first.state_dict())
    for state in _states():
        assert second.decide(state) == first.decide(state), "it decides otherwise after loading another's state"


CLAIMS = (
    stopping_builds_on_the_meta_device,
    stopping_decides_and_says_why,
    stopping_looks_only_at_what_it_needs,
    stopping_learns_from_all_turns_alike,
    stopping_keeps_what_it_learned,
)
