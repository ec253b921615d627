"""Which way imports run, and what importing the packages costs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLKIT = ROOT / "toolkit" / "vilavt_toolkit"
COMPONENTS = ROOT / "components" / "vilavt_components"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
FLOORS = {
    folder: int(floor)
    for floor, folders in re.findall(r"^\| (\d+) \| (.+?) \|", PAGE, re.MULTILINE)
    for folder in re.findall(r"`(\w+)`", folders)
}
ANNOTATIONS = set(re.findall(r"^\| `(\w+)` -> `(\w+)` \|", PAGE, re.MULTILINE))
"""(folder, folder above it) pairs that a `TYPE_CHECKING` import may connect."""
FACE = {"__init__"}
"""The root's own file, which imports what users call."""
KINDS = sorted(path.name for path in COMPONENTS.iterdir() if path.is_dir() and path.name[0] not in "_.")
BESIDE = {"formats": {*KINDS}, "tasks": {"sources", "common"}, "common": {"common"}}
# Seconds each to import: only the function that uses one may do so.
HEAVY = ("torchmetrics", "lightning", "pytorch_lightning", "timm", "open_clip", "transformers", "peft")


def imports(source: str) -> Iterator[tuple[int, str, bool]]:
    """Every module a file imports anywhere, absolute, with its line and whether it is for annotations only."""
    tree = ast.parse(source)
    annotations = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for line in range(node.lineno, node.end_lineno + 1)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write imports in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield node.lineno, name, node.lineno in annotations


def folder_of(name: str) -> str:
    """The folder, or the root's file, that a dotted name of either package lies in; empty for the package itself."""
    return name.split(".")[1] if "." in name else ""


def faults(room: str, source: str) -> list[str]:
    """The imports of a file in the toolkit's folder `room` that the table of floors does not allow."""
    found = []
    for line, name, annotation in imports(source):
        top, folder = name.split(".")[0], folder_of(name)
        if top == "vilavt_components":
            found.append(f"line {line}: the toolkit names no component, but imports {name}")
        if top != "vilavt_toolkit" or folder == room or (annotation and (room, folder) in ANNOTATIONS):
            continue
        if folder not in FLOORS or FLOORS[folder] >= FLOORS[room]:
            found.append(f"line {line}: {room} (floor {FLOORS[room]}) imports {name}, which is not below it")
    return found


def loaded_after(statement: str) -> set[str]:
    """Top-level modules in a fresh interpreter after one statement."""
    code = f"import sys\n{statement}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    paths = f"import sys; sys.path[:0] = {[str(ROOT / 'toolkit'), str(ROOT / 'components')]!r}\n"
    done = subprocess.run([sys.executable, "-c", paths + code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_every_folder_stands_on_a_floor():
    rooms = {path.stem for path in TOOLKIT.glob("*.py")} | {path.name for path in TOOLKIT.iterdir() if path.is_dir()}
    assert {room for room in rooms if room[0] not in "_."} == set(FLOORS)


@pytest.mark.parametrize("file", sorted(TOOLKIT.rglob("*.py")), ids=lambda file: str(file.relative_to(TOOLKIT)))
def test_the_toolkit_imports_only_floors_below_and_no_component(file):
    room = file.relative_to(TOOLKIT).parts[0].removesuffix(".py")
    if room not in FACE:
        assert faults(room, file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("room", "source", "told"),
    [
        ("packed", "from vilavt_toolkit.vision import dynamic_encoder", "not below it"),
        ("contracts", "def f():\n    from vilavt_toolkit.chat.chat import Chat", "line 2: contracts (floor 3)"),
        ("data", "from vilavt_toolkit.report.trace import draw_trace", "not below it"),
        ("contracts", "if TYPE_CHECKING:\n    from vilavt_toolkit.models.model import VisualChatModel", "not below it"),
        ("cli", "import vilavt_components", "names no component"),
    ],
)
def test_an_import_against_the_floors_is_found(room, source, told):
    (fault,) = faults(room, source)
    assert told in fault


def test_an_import_of_a_floor_below_is_right():
    assert faults("chat", "from vilavt_toolkit.generation.loop import Loop\nfrom vilavt_toolkit.chat import tool") == []


@pytest.mark.parametrize("file", sorted(COMPONENTS.rglob("*.py")), ids=lambda file: str(file.relative_to(COMPONENTS)))
def test_a_component_imports_its_own_kind_and_what_kinds_share(file):
    kind = file.relative_to(COMPONENTS).parts[0].removesuffix(".py")
    allowed = {kind, "common"} | BESIDE.get(kind, set())
    for line, name, _ in imports(file.read_text(encoding="utf-8")):
        if name.split(".")[0] == "vilavt_components":
            assert folder_of(name) in allowed, f"line {line}: {kind} imports {name}"


def test_no_file_is_longer_than_four_hundred_lines():
    files = [*TOOLKIT.rglob("*.py"), *COMPONENTS.rglob("*.py")]
    assert [f"{file}: {n}" for file in files if (n := len(file.read_text(encoding="utf-8").splitlines())) > 400] == []


def test_importing_the_components_loads_none_of_the_heavy_libraries():
    loaded = loaded_after("import vilavt_components")
    assert "vilavt_components" in loaded
    assert not loaded.intersection(HEAVY)


@pytest.mark.parametrize(
    "module", ["vilavt_toolkit", "vilavt_toolkit.cli", "vilavt_toolkit.config.recipe", "vilavt_toolkit.registry"]
)
def test_importing_the_toolkit_loads_no_torch(module):
    assert not loaded_after(f"import {module}").intersection({"torch", "omegaconf", *HEAVY})
