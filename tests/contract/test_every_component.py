"""Every registered component is held to the contract of its kind; registering one adds it here."""

from contextlib import nullcontext

import pytest

from vilavt_toolkit.registry import REGISTRIES
from vilavt_toolkit.registry.plugins import load_builtin
from vilavt_toolkit.testing import CLAIMS
from vilavt_toolkit.testing.modulators import tiny_encoders_only

load_builtin()

# One changes sites, the other attention and what a region sees. They meet every variant of every encoder in each run
# of the tests, all other modulators do so in the nightly one.
ON_EVERY_VARIANT = {"film", "joint_attention"}

CASES = [
    # The claims of a component share what was trained for them, so one worker runs them all.
    pytest.param(claim, name, id=f"{kind}-{name}-{claim.__name__}")
    for kind, claims in CLAIMS.items()
    for name in REGISTRIES[kind].names()
    for claim in claims
]


@pytest.mark.parametrize(("claim", "name"), CASES)
def test_component_keeps_its_contract(claim, name):
    with nullcontext() if name in ON_EVERY_VARIANT else tiny_encoders_only():
        claim(name)


@pytest.mark.nightly
@pytest.mark.parametrize("claim", CLAIMS["modulator"])
@pytest.mark.parametrize("name", sorted(set(REGISTRIES["modulator"].names()) - ON_EVERY_VARIANT))
def test_modulator_keeps_its_contract_on_every_variant_of_the_encoders(claim, name):
    claim(name)


def test_the_modulators_that_meet_every_variant_are_registered():
    assert set(REGISTRIES["modulator"].names()) >= ON_EVERY_VARIANT


def test_every_kind_of_component_has_claims():
    assert set(CLAIMS) == set(REGISTRIES)


def test_every_kind_has_a_component_to_check():
    empty = [kind for kind in CLAIMS if not REGISTRIES[kind].names()]
    assert not empty
