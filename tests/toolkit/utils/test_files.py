"""Web addresses in the place of paths keep their slashes, and nothing is written under their name."""

from __future__ import annotations

from pathlib import Path

import pytest

from vilavt_toolkit.chat.chat import Chat
from vilavt_toolkit.checkpoints.run_folder import expand_home
from vilavt_toolkit.errors import BadRecipe, InputError, RunError
from vilavt_toolkit.evaluation.saved import read_summary
from vilavt_toolkit.registry.plugins import find_plugin
from vilavt_toolkit.utils.files import check_writable, find_address, resolve_address, write_text

ADDRESS = "https://a.example/runs/x"


@pytest.mark.parametrize("name", [ADDRESS, Path(ADDRESS)], ids=["text", "path"])
def test_an_address_for_a_folder_is_told_with_both_slashes(name, tiny_model):
    for use in (expand_home, lambda path: read_summary(Path(path)), lambda path: Chat.load(path, tiny_model)):
        with pytest.raises(RunError, match=f"^{ADDRESS} is a web address"):
            use(name)


@pytest.mark.parametrize("name", [ADDRESS, Path(ADDRESS)], ids=["text", "path"])
def test_nothing_is_written_under_an_address(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"^{ADDRESS} is a web address and cannot be written"):
        write_text(name, "x")
    assert not list(tmp_path.iterdir())


def test_a_plugin_is_no_address(tmp_path):
    with pytest.raises(BadRecipe, match=f"{ADDRESS}.py is a web address. Download it, read it"):
        find_plugin(f"{ADDRESS}.py", tmp_path)


def test_a_place_is_checked_before_anything_is_written(tmp_path, monkeypatch):
    check_writable(tmp_path / "a" / "b" / "new.png")
    (tmp_path / "file").write_text("x")
    check_writable(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    # Root may write everywhere, so the system's answer is given.
    monkeypatch.setattr("os.access", lambda place, mode: False)
    with pytest.raises(InputError, match=f"new.png cannot be written .nothing may be written in {tmp_path}"):
        check_writable(tmp_path / "new.png")


@pytest.mark.parametrize("name", ["file:///a b/c", Path("file:///a b/c"), "file://localhost/a%20b/c", "/a b/c"])
def test_a_file_address_is_its_path(name):
    assert find_address(name) is None and resolve_address(name) == "/a b/c"


@pytest.mark.parametrize("name", ["a:/b", Path("a:/b"), Path("http/b"), "x/https:/b", Path("data:/x"), "c:\\b"])
def test_a_colon_in_a_path_makes_no_address(name):
    assert find_address(name) is None and resolve_address(name) == str(name)
