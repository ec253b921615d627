"""YAML that is legal and means something else than it says, or that YAML's own reader stumbles over."""

from __future__ import annotations

from pathlib import Path

import pytest

from vilavt_toolkit.config.yaml_reading import parse_value, read_yaml
from vilavt_toolkit.errors import BadRecipe


def read(folder: Path, text: str) -> dict:
    file = folder / "my.yaml"
    file.write_text(text)
    return read_yaml(file)


@pytest.mark.parametrize(("written", "read_as"), [("010", "8"), ("-017", "-15"), ("1:30", "90"), ("1:30.5", "90.5")])
def test_a_number_in_base_8_or_60_is_refused_with_what_yaml_reads(tmp_path, written, read_as):
    with pytest.raises(
        BadRecipe, match=rf"my\.yaml, line 2: YAML reads {written} as {read_as}\. Write the number in base"
    ):
        read(tmp_path, f"a: 1\ntrain: {{steps: [{written}]}}\n")
    with pytest.raises(BadRecipe, match=rf"^steps: YAML reads {written} as {read_as}\."):
        parse_value(written, "steps")


@pytest.mark.parametrize(
    "text", ["'010'", "010.5", "0", "0.5", "-0.0", "1e-3", "09", "0x10", "a:30", "2024-01-01", "12"]
)
def test_text_in_quotes_and_other_numbers_are_read(tmp_path, text):
    assert read(tmp_path, f"a: {text}\n")["a"] == parse_value(text, "a")


@pytest.mark.parametrize("value", ["!!bool x", "!!timestamp x", "!!int ''", "!!float ''", "!!int x", "!!set {a}"])
def test_a_value_that_does_not_fit_its_tag_is_told_in_a_sentence(tmp_path, value):
    with pytest.raises(BadRecipe, match=r"my\.yaml"):
        read(tmp_path, f"a: {value}\n")
    with pytest.raises(BadRecipe, match="steps"):
        parse_value(value, "steps")


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("a:\n\tb: 1\n", "Indent with blanks, not tabs"),
        ("~: 4\n", "Write the key as text"),
        ("a: ${b\n", "Write a reference like"),
        ("a: &a [*a]\n", "Write the values themselves"),
        ("a: !mine 3\n", "Leave the tag out"),
        ("---\na: 1\n---\nb: 2\n", "Remove the second ---"),
        ("a: b: c\n", "Put text that holds a colon in quotes"),
    ],
)
def test_what_yaml_says_comes_with_what_to_type(tmp_path, text, remedy):
    with pytest.raises(BadRecipe) as error:
        read(tmp_path, text)
    assert remedy in str(error.value) and str(error.value).endswith(".") and ".." not in str(error.value)
