"""The pages that show how to ask a model: their code runs, and docs/ask-and-chat.md tells all there is."""

from __future__ import annotations

import re
import typing
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vilavt_toolkit as vt
from vilavt_toolkit.chat.events import Event
from vilavt_toolkit.chat.terminal import COMMANDS
from vilavt_toolkit.cli.app import run
from vilavt_toolkit.contracts import RegionCall, ToolCall, Turn
from vilavt_toolkit.testing import check_stopping
from vilavt_toolkit.testing.isolation import isolated_registries
from vilavt_toolkit.testing.scripted import Scripted

ROOT = Path(__file__).parents[2]
SNIPPET = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
TURNS = (Turn("look", call=ToolCall((RegionCall(0, {"bbox_2d": [0, 0, 2, 2]}),), "red")), Turn("", answer="7"))


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture
def ran(request, tiny_run, tmp_path, monkeypatch):
    """What the code of a page leaves behind, beside a small run in the quickstart's place; it looks once and says 7."""

    def loop(model, decoding):
        written = "".join(model.dialogue.write(turn) for turn in TURNS)
        return Scripted(model, decoding, lambda number: model.language_model.tokenizer.encode(written))

    for user in ("chat", "ask"):
        monkeypatch.setattr(f"vilavt_toolkit.chat.{user}.Loop", loop)
    run = tmp_path / "runs" / "quickstart"
    (run / "eval").mkdir(parents=True)
    (run / "checkpoints").symlink_to(tiny_run / "checkpoints")
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(run / "eval" / "scene.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, typing.Any] = {}
    for snippet in SNIPPET.findall(page(request.param)):
        exec(compile(snippet, request.param, "exec"), names)
    return names


@pytest.mark.parametrize("ran", ["README.md", "docs/start.md"], indirect=True)
def test_the_first_pages_ask_and_encode(ran):
    assert ran["answer"].text == "7"
    assert Path("trace.png").is_file()
    assert [feature.ndim for feature in ran["features"]] == [3, 3]


@pytest.mark.parametrize("ran", ["docs/ask-and-chat.md"], indirect=True)
def test_the_page_of_chats_does_what_it_says(ran, capsys):
    one_by_one = [ran["first"], ran["second"], ran["drawn"], ran["held"], *ran["answers"], *ran["branches"]]
    assert [answer.text for answer in [*one_by_one, *ran["found"]]] == ["7"] * 14
    assert ran["number"] == 1
    assert ran["event"].answer.text == "7"
    assert ran["again"].trajectory.questions[1].text == "and on the blue square?"
    assert ran["schema"]["function"]["name"] == "look_closer"
    assert '"box": [0.0, 0.0, 128.0, 128.0]' in ran["result"].content
    assert {path.name for path in Path("kept").iterdir()} == {"chat.json"}


def test_the_policy_of_the_page_of_policies_is_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    Path("gained.py").write_text(SNIPPET.findall(page("docs/stopping.md"))[0])
    recipe = page("docs/stopping.md").split("plugins: [./gained.py]")[1].split("```")[0]
    Path("gained.yaml").write_text(f"inherits: quickstart\nplugins: [./gained.py]{recipe}")
    with isolated_registries():
        # The run that the page begins with is not trained here.
        assert run(["check", "gained.yaml", "train.init_from=''"]) == 0
        assert "model_decides, gained, max_turns" in capsys.readouterr().out
        check_stopping("gained")


def rows(heading: str) -> str:
    """The first column of the table below a heading of docs/ask-and-chat.md."""
    section = page("docs/ask-and-chat.md").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return "\n".join(line.split("|")[1] for line in section.splitlines() if line.startswith("|"))


@pytest.mark.parametrize("ran", ["docs/ask-and-chat.md"], indirect=True)
def test_the_page_of_chats_leaves_nothing_out(ran):
    told = {heading: re.findall(r"[`/]([\w]+)", rows(heading)) for heading in ("While it is written", "In a terminal")}
    assert told["While it is written"] == [event.__name__ for event in typing.get_args(Event)]
    assert set(told["In a terminal"]) == set(COMMANDS)
    decoding = re.findall(r"`(\w+)`", rows("How it is decoded"))
    assert decoding == [setting.name for setting in fields(vt.Decoding)]
    assert set(re.findall(r"`(\w+)`", rows("What it costs"))) == {*ran["first"].cost, "tokens_probed"}
