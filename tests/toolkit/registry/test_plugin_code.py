"""The code of plugins: read once, run as it was read, with the files beside it that it imports."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vilavt_toolkit.errors import BadRecipe
from vilavt_toolkit.registry import modulators
from vilavt_toolkit.registry.plugin_code import read_code
from vilavt_toolkit.registry.plugins import load_plugins
from vilavt_toolkit.testing.isolation import isolated_registries

GATE = '''
from vilavt_toolkit.registry import modulators

@modulators.register("{name}")
class Gate:
    """A gate from a plugin."""
'''


@pytest.fixture(autouse=True)
def _isolated() -> Iterator[None]:
    with isolated_registries():
        yield


@pytest.mark.parametrize(
    "statement",
    [
        "import beside",
        "import beside as helper; beside = helper",
        "from beside import VALUE, deeper; import beside",
        "from . import beside",
        "from .beside import *; from . import beside as helper; beside = helper",
        "def late():\n    import beside\n    return beside\nbeside = late()",
    ],
)
def test_a_plugin_may_import_a_file_beside_it_in_any_way(tmp_path: Path, statement: str) -> None:
    (tmp_path / "mine.py").write_text(f"from __future__ import annotations\nimport json\n{statement}\n")
    (tmp_path / "beside.py").write_text("import deeper\nVALUE = deeper.VALUE\n")
    (tmp_path / "deeper.py").write_text("import beside\nVALUE = 3\n")
    (tmp_path / "json.py").write_text("1 / 0\n")
    (tmp_path / "unrelated.py").write_text("1 / 0\n")
    code = read_code(tmp_path / "mine.py")
    assert code.import_module().beside.VALUE == 3
    assert set(code.files) == {"mine.py", "beside.py", "deeper.py"}


def test_code_is_what_was_read_and_not_what_the_files_hold_when_it_runs(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import beside\nVALUE = beside.VALUE\n")
    (tmp_path / "beside.py").write_text("VALUE = 'read'\n")
    code = read_code(tmp_path / "mine.py")
    (tmp_path / "mine.py").write_text("1 / 0")
    (tmp_path / "beside.py").unlink()
    assert code.import_module().VALUE == "read"


def test_equal_code_is_one_module_wherever_it_lies_and_a_changed_helper_makes_another(tmp_path: Path) -> None:
    codes = []
    for folder, value in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text("import beside\nVALUE = beside.VALUE\n")
        (tmp_path / folder / "beside.py").write_text(f"VALUE = {value}\n")
        codes.append(read_code(tmp_path / folder / "mine.py"))
    first, same, other = codes
    assert first.digest == same.digest != other.digest
    assert first.import_module() is same.import_module()
    assert (first.import_module().VALUE, other.import_module().VALUE) == (1, 2)
    assert "beside" not in sys.modules


def test_a_helper_of_two_plugins_is_one_module(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text(GATE.format(name="helper_gate"))
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text("from beside import Gate\n")
    load_plugins(["one.py", "two.py", "beside.py"], relative_to=tmp_path)
    assert "helper_gate" in modulators


@pytest.mark.parametrize("plugin_first", [True, False])
def test_a_script_may_import_the_plugin_that_is_loaded_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugin_first: bool
) -> None:
    (tmp_path / "gate_of_script.py").write_text(GATE.format(name="plugin_gate"))
    monkeypatch.syspath_prepend(tmp_path)
    steps = [
        lambda: load_plugins(["gate_of_script.py"], relative_to=tmp_path),
        lambda: load_plugins(["gate_of_script"]),
    ]
    for step in steps if plugin_first else reversed(steps):
        step()
    assert "plugin_gate" in modulators


def test_what_is_no_file_or_too_large_for_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.py").mkdir()
    with (tmp_path / "large.py").open("wb") as file:
        file.truncate(10_000_001)
    for name, said in (("folder.py", "there is no file"), ("large.py", "larger than 10,000,000 bytes")):
        with pytest.raises(BadRecipe, match=said):
            read_code(tmp_path / name)
