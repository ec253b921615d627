"""Components by exact name: what is found, what is refused, and what the refusal says."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from vilavt_toolkit.errors import DuplicateName, UnknownName
from vilavt_toolkit.registry import REGISTRIES, Registry, modulators, registering_from
from vilavt_toolkit.settings import NoSettings, setting
from vilavt_toolkit.testing.isolation import isolated_registries


@dataclass(frozen=True)
class GateConfig:
    width: int = setting(8, help="how wide")


@pytest.fixture
def registry() -> Registry[object]:
    found: Registry[object] = Registry("modulator")
    with registering_from("my_package 2.0"):

        @found.register("film", GateConfig)
        class FiLM:
            """Scale and shift.

            More of it.
            """

    @found.register("none")
    class Nothing:
        """Change nothing."""

    return found


def test_a_registered_component_is_found_with_all_a_list_shows(registry: Registry[object]) -> None:
    entry = registry.get("film")
    assert (entry.kind, entry.name, entry.config, entry.summary) == (
        "modulator",
        "film",
        GateConfig,
        "Scale and shift.",
    )
    assert entry.origin == "my_package 2.0"
    assert "test_registry.py:" in entry.location
    assert registry.get("none").config is NoSettings
    assert [e.name for e in registry.entries()] == registry.names() == ["film", "none"]


def test_an_unknown_name_says_what_was_meant_what_there_is_and_where_from(registry: Registry[object]) -> None:
    with pytest.raises(UnknownName) as caught:
        registry.get("flim")
    lines = str(caught.value).splitlines()
    assert lines[0] == "no modulator named 'flim'. Did you mean 'film'?"
    assert lines[1] == "  registered modulators: film, none"
    assert lines[2].startswith("  loaded from: my_package 2.0, ")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("near", ["FiLM", "film ", "fil", "Film"])
def test_names_are_exact(registry: Registry[object], near: str) -> None:
    with pytest.raises(UnknownName):
        registry.get(near)


def test_an_empty_registry_says_so() -> None:
    with pytest.raises(UnknownName, match="registered policy losses: none\n  loaded from: nothing"):
        Registry("policy_loss", plural="policy losses").get("gspo")


def test_a_second_component_of_one_name_is_refused_naming_both_places(registry: Registry[object]) -> None:
    with pytest.raises(DuplicateName) as caught:

        @registry.register("film")
        class Other:
            """Another."""

    text = str(caught.value)
    assert text.count("test_registry.py:") == 2
    assert "my_package 2.0" in text
    assert registry.get("film").config is GateConfig


@pytest.mark.parametrize("name", ["FiLM", "lora-gated", "2d", "", "a__b", "_a"])
def test_names_are_lower_snake_case(registry: Registry[object], name: str) -> None:
    with pytest.raises(ValueError, match="lower_snake_case"):
        registry.register(name)


def test_a_config_is_a_dataclass_without_a_setting_called_name(registry: Registry[object]) -> None:
    @dataclass
    class Named:
        name: str = ""

    with pytest.raises(TypeError, match="dataclass"):
        registry.register("dictionary", dict)
    with pytest.raises(TypeError, match="'name'"):
        registry.register("named", Named)


def test_isolation_forgets_what_was_registered_inside() -> None:
    with isolated_registries():

        @modulators.register("only_for_a_test")
        class Gate:
            """A gate."""

        assert "only_for_a_test" in modulators
    assert "only_for_a_test" not in modulators


def test_every_kind_of_component_has_a_registry_under_its_own_name() -> None:
    assert {kind: registry.kind for kind, registry in REGISTRIES.items()} == {k: k for k in REGISTRIES}
    assert {"encoder", "modulator", "stopping", "optimizer"} <= set(REGISTRIES)
