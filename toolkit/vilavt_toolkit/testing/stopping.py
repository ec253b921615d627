"""The claims that every registered stopping policy must meet."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from vilavt_toolkit.contracts import LoopState, Probe, RegionCall, StoppingPolicy, ToolCall, Turn, Usage
from vilavt_toolkit.registry import stopping_policies
from vilavt_toolkit.testing import bench
from vilavt_toolkit.testing.bench import Instance

_WIDTH = 12
"""Width of the hidden states that the policies are given."""
_for_every_instance = bench.for_every_instance(stopping_policies)


def _example_states() -> list[LoopState]:
    """List states after turns, and before turns with everything that a policy may need."""
    call = Turn("closer", call=ToolCall((RegionCall(0, {"bbox_2d": [1, 2, 3, 4]}),), "red square"))
    answer, broken = Turn("I see a 7.", answer="7"), Turn(problem="not in the right form")
    dialogues = ((), (call,), (answer,), (broken,), (call, answer), (call, call), (call,) * 50)
    return [_example_state(turns, look) for turns in dialogues for look in (False, True) if turns or look]


def _example_state(turns: tuple[Turn, ...], look: bool) -> LoopState:
    # Costs grow with the calls, so that a budget is exceeded by the later states and not by the first.
    calls = sum(turn.call is not None for turn in turns)
    generator = torch.Generator().manual_seed(len(turns))
    spent = Usage(16 * (calls + 1), 4 * (calls + 1), 40 * (calls + 1), 20 * len(turns), 8 * calls, 1e6 * calls, 0.1)
    planned = Usage(patches=16, features=4, read=40) if turns and turns[-1].call and not look else Usage()
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


@_for_every_instance
def builds_quickly_and_on_the_meta_device(instance: Instance[StoppingPolicy]) -> None:
    """Building reads nothing, and takes no memory on the meta device."""
    bench.assert_builds_quickly(lambda: instance.build(_WIDTH))


@_for_every_instance
def decides_and_gives_a_reason(instance: Instance[StoppingPolicy]) -> None:
    """Every decision is a legal one, the same for the same state, and has a reason if it ends the dialogue."""
    policy = instance.build(_WIDTH)
    assert policy.needs <= {"probe", "features", "hidden"}, f"the loop finds out none of {sorted(policy.needs)}"
    for state in _example_states():
        decision = policy.decide(state)
        assert decision.action in ("go_on", "answer", "stop"), f"'{decision.action}' is no action"
        assert decision.action == "go_on" or decision.why, f"'{decision.action}' has no reason"
        assert decision == policy.decide(state), "the same state gets another decision"


@_for_every_instance
def reads_only_what_it_needs(instance: Instance[StoppingPolicy]) -> None:
    """Leaving out what the policy does not declare in `needs` changes no decision."""
    policy = instance.build(_WIDTH)
    missing: dict[str, tuple[str, Any]] = {
        "probe": ("probes", ()),
        "features": ("features", ()),
        "hidden": ("hidden", None),
    }
    bare = dict(value for need, value in missing.items() if need not in policy.needs)
    for state in _example_states():
        assert policy.decide(replace(state, **bare)) == policy.decide(state), f"it reads {', '.join(bare)} unasked"


@_for_every_instance
def sums_its_loss_over_turns(instance: Instance[StoppingPolicy]) -> None:
    """A policy with parameters has a finite loss, a sum over turns, that sends no gradient to the model."""
    policy = instance.build(_WIDTH)
    hidden = torch.randn(6, _WIDTH, generator=torch.Generator().manual_seed(0), requires_grad=True)
    answered = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0])
    loss = policy.loss(hidden, answered)
    learns = any(weight.requires_grad for weight in policy.parameters())
    assert (loss is not None) == learns, "it has a loss and no parameter that learns, or the other way round"
    if loss is None:
        return
    # Over parts, an empty one among them, as gradient accumulation splits a step.
    parts = [policy.loss(hidden[rows], answered[rows]) for rows in (slice(0, 4), slice(4, 6), slice(6, 6))]
    summed = torch.stack([part for part in parts if part is not None]).sum()
    assert loss.shape == () and loss.isfinite(), f"the loss is {loss}"
    bench.assert_close(summed, loss, "the losses of two parts of the turns and of none, and of all")
    bench.backpropagate(loss)
    bench.assert_gradients(policy)
    assert hidden.grad is None or not hidden.grad.any(), "it changes the model whose hidden states it reads"


@_for_every_instance
def keeps_its_state(instance: Instance[StoppingPolicy]) -> None:
    """A state dict carries everything: another instance that loads it decides the same."""
    first, second = instance.build(_WIDTH, seed=0), instance.build(_WIDTH, seed=1)
    second.load_state_dict(first.state_dict())
    for state in _example_states():
        assert second.decide(state) == first.decide(state), "it decides otherwise after loading another's state"


CLAIMS = (
    builds_quickly_and_on_the_meta_device,
    decides_and_gives_a_reason,
    reads_only_what_it_needs,
    sums_its_loss_over_turns,
    keeps_its_state,
)
