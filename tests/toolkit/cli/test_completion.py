"""What the shell completes, and the version."""

from __future__ import annotations

from pathlib import Path

import pytest

from vilavt_toolkit.cli import app as cli
from vilavt_toolkit.cli.completion import complete_folder, complete_kind, complete_recipe
from vilavt_toolkit.utils.versions import collect_versions


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "quick").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    for name in ("quiet.yaml", "quiz.json", "runs/mine.yml"):
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)


def test_recipes_are_completed_by_name_and_by_path() -> None:
    assert complete_recipe("qui") == ["quickstart", "quiet.yaml"]
    assert complete_recipe("modulation/fi") == ["modulation/film"]
    assert complete_recipe("runs/") == ["runs/mine.yml", "runs/quick/"]
    assert complete_recipe("no/such") == []


def test_runs_and_kinds_are_completed() -> None:
    assert complete_folder("") == ["runs/"]
    assert complete_folder("./runs/q") == ["./runs/quick/"]
    assert complete_kind("st") == ["stopping"]


def test_the_shell_asks_the_program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("_VILAVT_COMPLETE", "complete_bash")
    for words, offered in (("vilavt tra", "train"), ("vilavt check quicks", "quickstart"), ("vilavt eval r", "runs/")):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        with pytest.raises(SystemExit):
            cli.run([])
        assert capsys.readouterr().out.split() == [offered]


def test_the_version_is_printed_without_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"vilavt {collect_versions()['vilavt-toolkit']}\n"


def test_one_component_is_listed_with_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["list", "modulator", "film"]) == 0
    shown = capsys.readouterr().out
    assert "hidden_dim" in shown and "lora_gated" not in shown
    assert cli.run(["list", "modulator", "flim"]) == 2
    assert "Did you mean 'film'?" in capsys.readouterr().err
