"""The command line's light half: help, usage errors, `list` and `new`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from vilavt_toolkit.cli import app as cli
from vilavt_toolkit.cli import component_list
from vilavt_toolkit.config.recipe import parse_config
from vilavt_toolkit.errors import InputError, VilavtError
from vilavt_toolkit.registry import modulators
from vilavt_toolkit.registry.plugins import load_builtin, load_plugins
from vilavt_toolkit.testing.isolation import isolated_registries

ROOT = Path(__file__).parents[3]
LIGHT = [
    ["--help"],
    [],
    ["train", "--help"],
    ["chat", "--help"],
    ["no_such_command"],
    ["train"],
    ["train", "no_such_recipe"],
    ["check", "nowhere.yaml"],
    ["list", "modulatr"],
    ["ask", "runs/x", "only a question"],
    ["train", "quickstart", "--no-such-option"],
    ["eval", "runs/x", "not_an_override"],
    ["new", "modulator", "Not-A-Name"],
    ["new", "modulatr", "my_gate"],
    ["new", "modulator"],
]


def start(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in a fresh interpreter that tells on stderr whether torch was imported."""
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT / 'toolkit')!r}, {str(ROOT / 'components')!r}]\n"
        "from vilavt_toolkit.cli.app import run\n"
        f"code = run({arguments!r})\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
        "sys.exit(code)"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=False)


@pytest.mark.parametrize("arguments", LIGHT, ids=lambda arguments: " ".join(arguments) or "nothing")
def test_help_and_usage_errors_import_no_torch_and_end_in_one_sentence(arguments: list[str], tmp_path: Path) -> None:
    done = start(arguments, tmp_path)
    assert "Traceback" not in done.stderr, done.stderr
    if "--help" in arguments:
        assert done.returncode == 0
        assert "Usage: vilavt" in done.stdout
    elif not arguments:
        assert (done.stdout + done.stderr).startswith("Usage: vilavt")
    else:
        assert done.returncode == 2
        assert done.stdout == ""
        name, _, sentence = done.stderr.partition(": ")
        assert name in {"UsageError", "BadRecipe", "UnknownName"}
        assert sentence.strip()
    assert list(tmp_path.iterdir()) == []


def test_a_mistyped_command_is_told_what_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["trian", "quickstart"]) == 2
    assert capsys.readouterr().err == (
        "UsageError: No such command 'trian'. Did you mean 'train'? See `vilavt --help`.\n"
    )


def test_an_unknown_kind_is_told_with_the_kinds_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["list", "modulatr"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("UnknownName: no kind of component named 'modulatr'. Did you mean 'modulator'?")
    assert "inquiry_encoder" in error


@pytest.mark.parametrize("kind", ["modulator", "modulators", "stopping policy"])
def test_list_shows_names_summaries_settings_defaults_help_and_origin(
    kind: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with isolated_registries():
        load_builtin()
        registry_file = tmp_path / "listed.py"
        registry_file.write_text(
            "from dataclasses import dataclass\n"
            "from vilavt_toolkit.registry import modulators, setting, stopping_policies\n"
            "@dataclass(frozen=True)\n"
            "class Config:\n    gain: float = setting(0.25, help='how [loud] it is')\n"
            "class Part:\n    '''Turn it up.'''\n"
            "modulators.register('listed', Config)(Part)\n"
            "stopping_policies.register('listed', Config)(Part)\n"
        )
        load_plugins([str(registry_file)])
        assert cli.run(["list", kind]) == 0
    shown = capsys.readouterr().out
    assert f"listed  Turn it up.  [{registry_file}]" in shown
    (line,) = [line for line in shown.splitlines() if line.split()[:1] == ["gain"]]
    assert line.strip() == "gain  a float, default 0.25: how [loud] it is"


@pytest.mark.parametrize(("error", "code"), [(InputError("a.png is no image."), 1), (KeyboardInterrupt(), 130)])
def test_a_failure_inside_a_command_is_one_line_and_its_exit_code(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(kind: str | None) -> None:
        raise error

    monkeypatch.setattr(component_list, "find_registries", fail)
    assert cli.run(["list"]) == code
    shown = capsys.readouterr().err
    assert shown == ("InputError: a.png is no image.\n" if isinstance(error, VilavtError) else "interrupted\n")


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(kind: str | None) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(component_list, "find_registries", fail)
    with pytest.raises(ZeroDivisionError):
        cli.run(["list"])


def test_new_modulator_writes_a_plugin_that_registers_itself_and_its_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["new", "modulator", "my_gate", "--dir", "mine"]) == 0
    assert sorted(file.name for file in (tmp_path / "mine").iterdir()) == ["my_gate.py", "test_my_gate.py"]
    with isolated_registries():
        load_plugins(["./mine/my_gate.py"])
        entry = modulators.get("my_gate")
        assert entry.origin == "mine/my_gate.py"
        assert parse_config(entry.config, {"hidden_dim": 3}).hidden_dim == 3
        assert isinstance(entry.cls.tiny(), entry.config)


def test_the_new_modulator_gates_by_inquiry_and_begins_as_nothing(tmp_path: Path) -> None:
    import torch

    from vilavt_toolkit.contracts import BlockSpec, Inquiry
    from vilavt_toolkit.packed.tokens import Layout

    assert cli.run(["new", "modulator", "my_gate", "--dir", str(tmp_path)]) == 0
    with isolated_registries():
        load_plugins([str(tmp_path / "my_gate.py")])
        cls = modulators.get("my_gate").cls
    block = BlockSpec(width=8, sites={"mlp": 8})
    gate = cls(cls.tiny(), block, 6)
    y, layout = torch.randn(5, 8), Layout.build([(1, 2), (1, 3)], [2, 3], [0, 1])
    inquiry = Inquiry(torch.randn(3, 6), torch.randn(2, 6), (1, 2), layout)
    assert torch.equal(gate.modulate("mlp", y, y, inquiry), y)
    for parameter in gate.parameters():
        torch.nn.init.normal_(parameter)
    scale = gate.modulate("mlp", y, y, inquiry) / y
    torch.testing.assert_close(scale[0], scale[1])
    assert not torch.allclose(scale[1], scale[2])
    assert cls.unsupported_reason(cls.tiny(), block) == ""
    assert "mlp" in cls.unsupported_reason(cls.tiny(), BlockSpec(width=8, sites={"block": 8}))


def test_new_modulator_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test_my_gate.py").write_text("mine")
    assert cli.run(["new", "modulator", "my_gate", "--dir", str(tmp_path)]) == 2
    assert "test_my_gate.py exists already" in capsys.readouterr().err
    assert [file.read_text() for file in tmp_path.iterdir()] == ["mine"]


def test_new_modulator_refuses_the_name_of_one_that_is_installed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["new", "modulator", "film", "--dir", str(tmp_path)]) == 2
    assert "there is a modulator 'film' already, of vilavt_components" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("length", [242, 300])
def test_new_modulator_leaves_nothing_where_it_cannot_write_both_files(
    length: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 242 letters the module's name is short enough for a file, the test's is not."""
    assert cli.run(["new", "modulator", "x" * length, "--dir", str(tmp_path)]) in (1, 2)
    assert "File name too long" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["My-Gate", "class", "2d", "a b", "../x", "", "tensor", "modulator"])
def test_new_modulator_refuses_what_cannot_be_a_name(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["new", "modulator", name, "--dir", str(tmp_path)]) == 2
    assert "cannot name a modulator" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["json", "torch"])
def test_new_writes_no_file_that_hides_a_module(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["new", "modulator", name, "--dir", str(tmp_path)]) == 2
    assert f"would hide the Python module '{name}'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_every_help_says_what_its_command_and_options_are_for(capsys: pytest.CaptureFixture[str]) -> None:
    commands = ["list", "check", "train", "rl", "eval", "compare", "ask", "chat", "export", "new", "data"]
    assert cli.run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "..." not in shown.partition("Commands:")[2], "a summary is cut short"
    for command in [[command] for command in commands] + [["data", "check"]]:
        assert f"  {command[0]} " in shown
        assert cli.run([*command, "--help"]) == 0
        text = capsys.readouterr().out
        assert ";" not in re.sub(r"\[default[^]]*\]", "", text) and text.startswith(
            f"Usage: vilavt {' '.join(command)}"
        )
