"""Where it is remembered which code may run."""

from __future__ import annotations

from pathlib import Path

import pytest

from vilavt_toolkit.registry.trust import read_trusted, remember_code, settings_folder, trusting_plugins, trusts_all


def test_settings_lie_where_the_variable_or_the_platform_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("VILAVT_CONFIG_HOME")
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    assert settings_folder() == tmp_path / ".config" / "vilavt"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert settings_folder() == tmp_path / "xdg" / "vilavt"
    monkeypatch.setenv("VILAVT_CONFIG_HOME", str(tmp_path / "mine"))
    assert settings_folder() == tmp_path / "mine"


def test_code_is_remembered_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VILAVT_CONFIG_HOME", str(tmp_path / "mine"))
    assert read_trusted() == frozenset()
    for _ in range(2):
        remember_code({"ab": "one", "cd": "two"})
    assert read_trusted() == {"ab", "cd"}
    (file,) = (tmp_path / "mine").iterdir()
    assert file.read_text().splitlines() == ["ab  one", "cd  two"]


def test_all_plugins_are_allowed_only_inside() -> None:
    with trusting_plugins(False):
        assert not trusts_all()
    with trusting_plugins(), trusting_plugins(False):
        assert trusts_all()
    assert not trusts_all()
