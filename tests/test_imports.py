"""Which way imports run, and what importing the packages costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLKIT = sorted((ROOT / "toolkit").rglob("*.py"))
# Seconds each to import: only the function that uses one may do so.
HEAVY = ("torchmetrics", "lightning", "pytorch_lightning", "timm", "open_clip", "transformers", "peft")


def imported(file: Path) -> set[str]:
    """Every module a file imports anywhere, absolute."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
            assert node.level == 0, f"{file}:{node.lineno}: write imports in full"
    return found


def loaded_after(statement: str) -> set[str]:
    """Top-level modules in a fresh interpreter after one statement."""
    code = f"import sys\n{statement}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    paths = f"import sys; sys.path[:0] = {[str(ROOT / 'toolkit'), str(ROOT / 'components')]!r}\n"
    done = subprocess.run([sys.executable, "-c", paths + code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("file", TOOLKIT, ids=lambda file: str(file.relative_to(ROOT)))
def test_the_toolkit_names_no_component(file: Path) -> None:
    assert not {name for name in imported(file) if name.split(".")[0] == "vilavt_components"}


def test_the_toolkit_was_found() -> None:
    assert len(TOOLKIT) > 5


def test_importing_the_components_loads_none_of_the_heavy_libraries() -> None:
    loaded = loaded_after("import vilavt_components")
    assert "vilavt_components" in loaded
    assert not loaded.intersection(HEAVY)


@pytest.mark.parametrize(
    "module", ["vilavt_toolkit", "vilavt_toolkit.cli", "vilavt_toolkit.recipe", "vilavt_toolkit.registry"]
)
def test_importing_the_toolkit_loads_no_torch(module: str) -> None:
    assert not loaded_after(f"import {module}").intersection({"torch", "omegaconf", *HEAVY})
