"""all_of and any_of: policies made of policies, from a recipe to a decision."""

from __future__ import annotations

import pytest
import torch

from vilavt_components.stopping.all_of import AllOf, AllOfConfig
from vilavt_components.stopping.any_of import AnyOf, AnyOfConfig
from vilavt_toolkit.config.parsing import parse_config
from vilavt_toolkit.contracts import GO_ON, Decision, LoopState, StoppingPolicy, Turn
from vilavt_toolkit.registry import Part, stopping_policies
from vilavt_toolkit.settings import NoSettings
from vilavt_toolkit.testing.isolation import isolated_registries

STATE = LoopState((Turn(problem="no tag"),), 0)
STOP, DEMAND, REFUSE = Decision("stop", "s"), Decision("answer", "a"), Decision("answer", "r", carry_out_call=False)


@pytest.fixture
def parts():
    """Parts by what each always says."""
    with isolated_registries():
        for name, decision in {"on": GO_ON, "stop": STOP, "demand": DEMAND, "refuse": REFUSE}.items():
            always = type(name, (Always,), {"decision": decision})
            stopping_policies.register(f"always_{name}", NoSettings)(always)
        yield lambda *names: [Part("stopping", f"always_{name}", NoSettings()) for name in names]


class Always(StoppingPolicy):
    """Says one thing."""

    def __init__(self, config, width):
        super().__init__()

    @classmethod
    def tiny(cls):
        return NoSettings()

    def decide(self, state):
        return self.decision


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["stop", "on"], GO_ON),
        (["stop", "stop"], Decision("stop", "s and s")),
        (["stop", "demand"], Decision("answer", "s and a")),
        (["refuse", "demand"], Decision("answer", "r and a")),
        (["refuse", "refuse"], Decision("answer", "r and r", carry_out_call=False)),
    ],
)
def test_all_of_ends_what_all_end_and_refuses_what_all_refuse(parts, names, said):
    assert AllOf(AllOfConfig(parts(*names)), 8).decide(STATE) == said


def test_any_of_says_what_the_first_says_that_ends(parts):
    assert AnyOf(AnyOfConfig(parts("on", "refuse", "stop")), 8).decide(STATE) == REFUSE
    assert AnyOf(AnyOfConfig(parts("on", "on")), 8).decide(STATE) == GO_ON


NESTED = {
    "policies": [
        "model_decides",
        {"name": "all_of", "policies": [{"name": "learned_halt", "hidden_dim": 4}, "confidence"]},
        {"name": "converged", "signal": "features"},
    ]
}


def test_nested_policies_need_and_learn_what_their_parts_do():
    policy = AnyOf(parse_config(AnyOfConfig, NESTED), 6)
    assert policy.needs == {"hidden", "probe", "features"}
    loss = policy.loss(torch.randn(3, 6), torch.tensor([0.0, 1.0, 1.0]))
    loss.backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in policy.parameters())
    assert all(name.startswith("policies.1.policies.0.head.") for name, _ in policy.named_parameters())


def test_an_answer_of_the_models_own_ends_nested_policies_too():
    said = AnyOf(parse_config(AnyOfConfig, NESTED), 6).decide(LoopState((Turn(answer="7"),), 0))
    assert said == Decision("stop", "answered")
