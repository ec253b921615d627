"""Whose plugins run: a user's own, and those of a checkpoint only if they have run here before or are allowed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vilavt_toolkit.cli import app as cli
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.errors import BadRecipe, RecipeErrors, UntrustedPlugins
from vilavt_toolkit.registry.plugins import load_plugins
from vilavt_toolkit.testing.isolation import isolated_registries

RUNS = "from pathlib import Path\nPath({0!r}).write_text('it ran')\n"


@pytest.fixture(autouse=True)
def _fresh_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("VILAVT_CONFIG_HOME", str(tmp_path / "settings"))
    monkeypatch.chdir(tmp_path)
    with isolated_registries():
        yield


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """The file that a plugin writes when it runs."""
    return tmp_path / "ran"


@pytest.fixture
def checkpoint(tmp_path: Path, ran: Path) -> Path:
    """The folder of a stranger's checkpoint, as far as a recipe needs one."""
    folder = tmp_path / "stranger"
    (folder / "plugins").mkdir(parents=True)
    (folder / "checkpoint.json").write_text('{"format": 2, "step": 1}')
    (folder / "plugins" / "gate.py").write_text("import beside\n")
    (folder / "plugins" / "beside.py").write_text(RUNS.format(str(ran)))
    return folder


def recipe_of(folder: Path, tiny_recipe: Path, *plugins: str, **more: str) -> Path:
    lines = [f"plugins: {list(plugins)}", *(f"{key}: {value}" for key, value in more.items())]
    path = folder / "recipe.yaml"
    path.write_text("\n".join([*lines, tiny_recipe.read_text()]))
    return path


def test_a_strangers_plugin_runs_only_when_allowed_and_is_then_remembered_by_its_content(
    tiny_recipe: Path, checkpoint: Path, ran: Path
) -> None:
    recipe = recipe_of(checkpoint, tiny_recipe, "plugins/gate.py")
    with pytest.raises(UntrustedPlugins) as caught:
        load_recipe(recipe)
    assert str(caught.value) == (
        f"{checkpoint} brings code that has not run here before: stranger/plugins/gate.py, "
        "stranger/plugins/beside.py. Read it, and if you trust it, add --trust-plugins (in Python trust_plugins=True)."
    )
    assert not ran.exists()
    with isolated_registries():
        load_recipe(recipe, trust_plugins=True)
        assert ran.exists()
    with isolated_registries():
        load_recipe(checkpoint.rename(checkpoint.with_name("moved")) / "recipe.yaml")
    moved = checkpoint.with_name("moved")
    (moved / "plugins" / "beside.py").write_text("print('another')\n")
    with isolated_registries(), pytest.raises(UntrustedPlugins, match=r"gate\.py"):
        load_recipe(moved / "recipe.yaml")


def test_the_command_line_says_the_words_and_takes_them(
    tiny_recipe: Path, checkpoint: Path, ran: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(recipe_of(checkpoint, tiny_recipe, "plugins/gate.py"))
    assert cli.run(["check", recipe]) == 2
    assert "--trust-plugins" in capsys.readouterr().err and not ran.exists()
    assert cli.run(["check", recipe, "--trust-plugins"]) == 0
    assert ran.exists()


@pytest.mark.parametrize("command", ["ask", "chat", "check", "data check", "eval", "export", "rl", "train"])
def test_every_command_that_loads_a_model_can_allow_its_plugins(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.run([*command.split(), "--help"])
    assert "--trust-plugins" in capsys.readouterr().out


def test_what_ran_from_a_recipe_of_the_user_is_trusted_in_a_checkpoint(
    tiny_recipe: Path, checkpoint: Path, ran: Path, tmp_path: Path
) -> None:
    (tmp_path / "gate.py").write_text("import beside\n")
    (tmp_path / "beside.py").write_text(RUNS.format(str(ran)))
    with isolated_registries():
        load_recipe(tiny_recipe, ["plugins=[gate.py]"])
    with isolated_registries():
        found = load_recipe(recipe_of(checkpoint, tiny_recipe, "plugins/gate.py"))
    assert [plugin.code is not None for plugin in found.plugins] == [True]


def test_what_this_process_has_loaded_needs_no_trust(tiny_recipe: Path, checkpoint: Path) -> None:
    load_plugins(["plugins/gate.py"], relative_to=checkpoint)
    found = load_recipe(recipe_of(checkpoint, tiny_recipe, "plugins/gate.py"))
    assert [plugin.code is not None for plugin in found.plugins] == [True]


def link_out(checkpoint: Path) -> str:
    (checkpoint / "plugins" / "link.py").symlink_to(checkpoint.parent / "evil.py")
    return "plugins/link.py"


def link_helper_out(checkpoint: Path) -> str:
    (checkpoint / "plugins" / "evil.py").symlink_to(checkpoint.parent / "evil.py")
    (checkpoint / "plugins" / "mine.py").write_text("import evil\n")
    return "plugins/mine.py"


def link_folder_out(checkpoint: Path) -> str:
    (checkpoint / "plugins").rename(checkpoint.parent / "elsewhere")
    (checkpoint / "plugins").symlink_to(checkpoint.parent / "elsewhere")
    return "plugins/gate.py"


@pytest.mark.parametrize(
    "name",
    [
        lambda folder: "../evil.py",
        lambda folder: str(folder.parent / "evil.py"),
        lambda folder: "plugins/../../evil.py",
        lambda folder: "evil.py",
        lambda folder: "~/evil.py",
        link_out,
        link_helper_out,
        link_folder_out,
    ],
)
def test_plugins_of_a_checkpoint_lie_in_its_own_folder_whatever_is_allowed(
    tiny_recipe: Path, checkpoint: Path, ran: Path, name: Any
) -> None:
    for folder in (checkpoint, checkpoint.parent):
        (folder / "evil.py").write_text(RUNS.format(str(ran)))
    recipe = recipe_of(checkpoint, tiny_recipe, name(checkpoint))
    with pytest.raises(RecipeErrors, match=r"outside the checkpoint|does not lie in|out of the checkpoint"):
        load_recipe(recipe, trust_plugins=True)
    assert not ran.exists()


def test_a_checkpoint_names_no_module_that_has_not_run_here(
    tiny_recipe: Path, checkpoint: Path, ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_module_of_mine.py").write_text(RUNS.format(str(ran)))
    monkeypatch.syspath_prepend(tmp_path)
    recipe = recipe_of(checkpoint, tiny_recipe, "a_module_of_mine")
    with pytest.raises(UntrustedPlugins, match="'a_module_of_mine'"):
        load_recipe(recipe, trust_plugins=True)
    assert not ran.exists()
    with isolated_registries():
        load_recipe(tiny_recipe, ["plugins=[a_module_of_mine]"])
    with isolated_registries():
        load_recipe(recipe)
    load_recipe(recipe_of(checkpoint, tiny_recipe, "vilavt_components"))


def test_what_a_checkpoint_inherits_is_of_the_checkpoint(tiny_recipe: Path, checkpoint: Path, ran: Path) -> None:
    (checkpoint / "more.yaml").write_text("plugins: [plugins/gate.py]\n")
    with pytest.raises(UntrustedPlugins):
        load_recipe(recipe_of(checkpoint, tiny_recipe, inherits="more.yaml"))
    (checkpoint.parent / "outside.yaml").write_text(f"plugins: [{checkpoint}/plugins/gate.py]\n")
    with pytest.raises(BadRecipe, match="outside the checkpoint"):
        load_recipe(recipe_of(checkpoint, tiny_recipe, inherits="../outside.yaml"))
    own = checkpoint.parent / "own.yaml"
    own.write_text("inherits: stranger/recipe.yaml\n")
    recipe_of(checkpoint, tiny_recipe, "plugins/gate.py")
    with pytest.raises(UntrustedPlugins):
        load_recipe(own)
    assert not ran.exists()


def test_a_home_that_cannot_be_written_is_a_warning(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "gate.py").write_text("")
    monkeypatch.setenv("VILAVT_CONFIG_HOME", str(tmp_path / "file" / "settings"))
    load_recipe(tiny_recipe, ["plugins=[gate.py]"])
    (record,) = caplog.records
    assert "VILAVT_CONFIG_HOME" in record.getMessage()
