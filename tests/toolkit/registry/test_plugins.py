"""Plugins: files and modules that bring components, and what happens when one cannot."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vilavt_toolkit.errors import BadRecipe, DuplicateName
from vilavt_toolkit.registry import modulators
from vilavt_toolkit.registry.plugins import load_plugins
from vilavt_toolkit.testing.isolation import isolated_registries

GATE = '''
from dataclasses import dataclass
from vilavt_toolkit.registry import modulators, setting

@dataclass(frozen=True)
class Config:
    scale: float = setting(1.0, help="how much")

@modulators.register("{name}", Config)
class Gate:
    """A gate from a plugin."""
'''


@pytest.fixture(autouse=True)
def _isolated() -> Iterator[None]:
    with isolated_registries():
        yield


def test_a_file_is_found_relative_to_the_recipe_and_named_as_the_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "my_gate.py").write_text(GATE.format(name="plugin_gate"))
    monkeypatch.chdir(tmp_path)
    load_plugins(["./my_gate.py"], relative_to=tmp_path / "recipes")
    assert modulators.get("plugin_gate").origin == "recipes/my_gate.py"
    assert modulators.get("plugin_gate").location.startswith(str(tmp_path / "recipes" / "my_gate.py"))


def test_loading_twice_is_once(tmp_path: Path) -> None:
    (tmp_path / "my_gate.py").write_text(GATE.format(name="plugin_gate"))
    load_plugins(["./my_gate.py", "my_gate.py"], relative_to=tmp_path)
    load_plugins([str(tmp_path / "my_gate.py")])
    assert "plugin_gate" in modulators


def test_a_module_is_loaded_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gate_module.py").write_text(GATE.format(name="module_gate"))
    monkeypatch.syspath_prepend(tmp_path)
    load_plugins(["gate_module"])
    assert modulators.get("module_gate").origin == "gate_module"


def test_two_files_of_one_name_in_two_folders_are_two_plugins(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "gate.py").write_text(GATE.format(name=f"gate_{folder}"))
    load_plugins(["a/gate.py", "b/gate.py"], relative_to=tmp_path)
    assert {"gate_a", "gate_b"} <= set(modulators.names())


@pytest.mark.parametrize("plugin", ["./nowhere.py", "no_such_module", "no.such.module", "json.nowhere", "", "a b"])
def test_a_plugin_that_is_not_there_is_a_mistake_in_the_recipe(tmp_path: Path, plugin: str) -> None:
    with pytest.raises(BadRecipe, match="there is no"):
        load_plugins([plugin], relative_to=tmp_path)


def test_a_plugin_that_fails_stops_with_its_own_error_naming_it_and_leaves_nothing(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text(GATE.format(name="half_a_plugin") + "\n1 / 0\n")
    with pytest.raises(ZeroDivisionError) as caught:
        load_plugins(["./broken.py"], relative_to=tmp_path)
    assert str(broken) in "".join(caught.value.__notes__)
    assert str(broken) in [str(entry.path) for entry in caught.traceback]
    assert "half_a_plugin" not in modulators
    broken.write_text(GATE.format(name="half_a_plugin"))
    load_plugins(["./broken.py"], relative_to=tmp_path)
    assert "half_a_plugin" in modulators


def test_a_plugin_whose_own_import_is_missing_is_not_taken_for_a_missing_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needs_more").mkdir()
    (tmp_path / "needs_more" / "__init__.py").write_text("import something_not_installed\n")
    (tmp_path / "needs_more" / "gate.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    for plugin in ("needs_more", "needs_more.gate"):
        with pytest.raises(ModuleNotFoundError, match="something_not_installed"):
            load_plugins([plugin])


def test_two_plugins_with_one_name_name_both_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("one.py", "two.py"):
        (tmp_path / file).write_text(GATE.format(name="twice"))
    with pytest.raises(DuplicateName) as caught:
        load_plugins(["one.py", "two.py"], relative_to=tmp_path)
    assert "one.py" in str(caught.value)
    assert "two.py" in str(caught.value)


def test_isolation_lets_a_plugin_be_loaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "again_module.py").write_text(GATE.format(name="again"))
    monkeypatch.syspath_prepend(tmp_path)
    for _ in range(2):
        with isolated_registries():
            load_plugins(["again_module"])
            assert "again" in modulators
        assert "again" not in modulators
    assert "again_module" not in sys.modules


def test_a_checkpoints_copy_of_a_part_that_is_installed_now_is_the_one_to_drop(tmp_path: Path) -> None:
    checkpoint = tmp_path / "step-00000010"
    (checkpoint / "plugins").mkdir(parents=True)
    (checkpoint / "recipe.yaml").write_text("plugins: [plugins/my_gate.py]")
    (tmp_path / "my_gate.py").write_text(GATE.format(name="plugin_gate"))
    # Equal files are one plugin, so the copy is of an earlier state.
    (checkpoint / "plugins" / "my_gate.py").write_text(GATE.format(name="plugin_gate") + "\n# Older.\n")
    load_plugins([str(tmp_path / "my_gate.py")])
    with pytest.raises(DuplicateName) as error:
        load_plugins([str(checkpoint / "plugins" / "my_gate.py")])
    assert f"remove plugins/my_gate.py from `plugins:` in {checkpoint / 'recipe.yaml'}." in str(error.value)
