"""The code reads alike everywhere: docstrings say what a thing is or does, functions fit on a screen."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(file for package in ("toolkit", "components") for file in (ROOT / package).rglob("*.py"))
QUESTION = re.compile(r"(What|Whether|Which|Where|Why|How|Of)\b")
MOST_LINES = 50
"""Lines of a function without its docstring."""


def list_texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and text of every docstring, those behind fields and constants included."""
    for node in ast.walk(tree):
        for statement in getattr(node, "body", []) if not isinstance(node, ast.Lambda | ast.IfExp) else []:
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield statement.lineno, value.value


def count_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function from its name on, without its docstring."""
    docstring = function.body[0] if ast.get_docstring(function) else None
    shown = 0 if docstring is None else (docstring.end_lineno or 0) - docstring.lineno + 1
    return (function.end_lineno or 0) - function.lineno + 1 - shown


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_docstrings_begin_with_no_question_and_functions_are_short(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert [f"line {line}: {text[:60]}" for line, text in list_texts(tree) if QUESTION.match(text)] == []
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [each.name for each in functions if count_lines(each) > MOST_LINES] == []


def test_a_question_and_a_long_function_would_be_found():
    long = ast.parse("def f():\n    '''Return it.'''\n" + "    x = 1\n" * MOST_LINES).body[0]
    assert count_lines(long) == MOST_LINES + 1
    tree = ast.parse("'''What it is.'''\nclass A:\n    x = 1\n    '''How it is.'''\n")
    assert [text for _, text in list_texts(tree) if QUESTION.match(text)] == ["What it is.", "How it is."]
