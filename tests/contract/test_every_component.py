"""Every registered component is held to the contract of its kind; registering one adds it here."""

import pytest

from vilavt_toolkit.registry import REGISTRIES
from vilavt_toolkit.registry.plugins import load_builtin
from vilavt_toolkit.testing import CLAIMS

load_builtin()

CASES = [
    pytest.param(claim, name, id=f"{kind}-{name}-{claim.__name__}")
    for kind, claims in CLAIMS.items()
    for name in REGISTRIES[kind].names()
    for claim in claims
]


@pytest.mark.parametrize(("claim", "name"), CASES)
def test_component_keeps_its_contract(claim, name):
    claim(name)


def test_every_kind_of_component_has_claims():
    assert set(CLAIMS) == set(REGISTRIES)


def test_every_kind_has_a_component_to_check():
    empty = [kind for kind in CLAIMS if not REGISTRIES[kind].names()]
    assert not empty
