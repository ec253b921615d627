"""docs/architecture.md names files and functions that are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
FLOWS = PAGE.split("## The four flows")[1].split("## Where a new thing goes")[0]
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)` `([\w.]+)`", FLOWS)))


def defined(file: Path) -> set[str]:
    """Functions, classes and methods of a file, methods as `Class.method`."""
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
    return names


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_what_a_flow_passes_is_there(file, name):
    assert name in defined(ROOT / "toolkit" / "vilavt_toolkit" / file)


def test_each_flow_has_ten_lines():
    flows = [flow for flow in re.split(r"^### ", FLOWS, flags=re.MULTILINE)[1:] if flow]
    assert [len(re.findall(r"^\d+\. ", flow, re.MULTILINE)) for flow in flows] == [10] * 4
