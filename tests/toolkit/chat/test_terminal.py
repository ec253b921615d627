"""A conversation in a terminal or over a pipe: what is shown of it, its commands, and what becomes of faults."""

from __future__ import annotations

import io
import re
import signal
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

import vilavt_toolkit as vt
from vilavt_components.dialogues.native import Native, NativeConfig
from vilavt_components.dialogues.vilavt import VilavtDialogue, VilavtDialogueConfig
from vilavt_toolkit.chat.console import ConsolePrinter, StreamedTurn
from vilavt_toolkit.chat.events import TokenWritten
from vilavt_toolkit.chat.terminal import COMMANDS, Terminal
from vilavt_toolkit.cli.app import run
from vilavt_toolkit.contracts import RegionCall, ToolCall, Turn
from vilavt_toolkit.testing.scripted import Scripted
from vilavt_toolkit.utils.plain_console import PlainConsole

LOOK = Turn("look there", call=ToolCall((RegionCall(0, {"bbox_2d": [0, 0, 2, 2]}),), "red square"))
ANSWER = Turn("seen", answer="7")


@pytest.fixture
def says(monkeypatch):
    """Lets the model begin its answer to every question with given turns."""

    def script(*turns: Turn) -> None:
        def loop(model, decoding):
            written = "".join(model.dialogue.write(turn) for turn in turns)
            return Scripted(model, decoding, lambda number: model.language_model.tokenizer.encode(written))

        monkeypatch.setattr("vilavt_toolkit.chat.chat.Loop", loop)

    return script


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The working folder, with a picture."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "scene.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def piped(tiny_run, folder, monkeypatch, capsys):
    """Holds a conversation over a pipe: its exit code, the lines of its output, and those of its errors."""

    def hold(*lines: str, start: tuple[str, ...] = ("scene.png",)) -> tuple[int, list[str], list[str]]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        code = run(["chat", str(tiny_run), *start])
        shown = capsys.readouterr()
        return code, shown.out.splitlines(), shown.err.splitlines()

    return hold


class Typed:
    """A conversation in a terminal, in which lines are typed, or Ctrl-C pressed at the prompt (None)."""

    def __init__(self, model, console: Console | None = None) -> None:
        self.out = console or Console(file=io.StringIO(), width=200)
        self.chat = vt.Chat(model, [np.zeros((64, 64, 3), np.uint8)])
        self.terminal = Terminal(self.chat, self.out, self.out, interactive=True)

    def hold(self, *keys: str | None) -> int:
        left = iter(keys)

        def read() -> str | None:
            key = next(left, "")
            if key is None:
                raise KeyboardInterrupt
            return key or None

        return self.terminal.run_lines(read)


def told(lines: list[str], beginning: str) -> list[str]:
    return [line.removeprefix(beginning) for line in lines if line.startswith(beginning)]


# --- What is shown ---------------------------------------------------------------------------------------------------


def test_over_a_pipe_a_line_is_a_question_and_its_answer_a_line(piped, says):
    says(LOOK, ANSWER)
    code, out, errors = piped("what digit?", "", "  and again?  ")
    assert (code, errors) == (0, [])
    assert told(out, "thought: ") == ["look there", "seen"] * 2
    assert told(out, "inquiry: ") == ["red square"] * 2
    assert told(out, "looked at: ") == [f"region {index}, (0, 0, 32, 32) of scene.png" for index in (1, 2)]
    assert out.count("7") == 2 and len(told(out, "stopped: answered; ")) == 2
    assert len(out) == 12, "and nothing else"


def test_what_cannot_be_carried_out_and_what_is_demanded_are_told(piped, says):
    says(Turn("far", call=ToolCall((RegionCall(9, {"bbox_2d": [0, 0, 2, 2]}),), "x")), LOOK, LOOK, LOOK)
    _, out, _ = piped("what digit?")
    assert told(out, "rejected: ") == ['"index" 9 of region 0 does not exist; there are 0 to 0.']
    assert told(out, "answer demanded: ") == ["3 turns are used up"]
    assert out[-3:-1] == ["(no answer: 3 turns are used up)", *told([out[-2]], "")]


class Exotic(Native):
    """A dialogue whose turns end in no tag."""

    stop_strings = ("\n\n",)


NATIVE, VILAVT = Native(NativeConfig()), VilavtDialogue(VilavtDialogueConfig())
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="<"), min_size=1).filter(lambda text: text.strip())


@given(
    st.sampled_from([NATIVE, VILAVT]),
    WORDS,
    st.one_of(WORDS, st.none()),
    st.lists(st.integers(0, 200), max_size=8),
    st.sampled_from(["", "<think>"]),
)
def test_thought_and_answer_are_shown_as_parsed_however_the_turn_is_split(dialogue, thought, answer, cuts, opened):
    call = LOOK.call if answer is None else None
    text = dialogue.write(Turn(thought, call=call, answer=answer)).removeprefix(opened)
    parts = StreamedTurn(dialogue, opened)
    edges = [0, *sorted(cuts), len(text)]
    added = [piece for start, end in pairwise(edges) for piece in parts.add_text(text[start:end])]
    parsed = dialogue.parse(opened + text)
    assert parts.texts == {"thought": parsed.thought.strip(), "answer": (parsed.answer or "").strip()}
    for kind, whole in parts.texts.items():
        assert "".join(piece for of, piece in added if of == kind) == whole


# Each takes a second in one pass, and hours where each piece is split with all before it.
@pytest.mark.parametrize(
    "pieces", [[" ", "\n"] * 50_000, ["<"] * 100_000, ["<a", "> "] * 50_000, ["<", *["a"] * 100_000]]
)
def test_a_turn_of_any_length_is_split_in_one_pass(pieces):
    parts = StreamedTurn(NATIVE)
    for piece in ("<think>", *pieces):
        parts.add_text(piece)
    parts.add_text("so</think><answer>7</answer>")
    assert parts.texts["thought"].endswith("so") and parts.texts["answer"] == "7"


def test_a_dialogue_without_tags_is_shown_as_it_is_written():
    parts = StreamedTurn(Exotic(NativeConfig()))
    assert parts.add_text("I see 1 < 2, so ") == [("thought", "I see 1 < 2, so")]
    assert parts.add_text("7\n\n") == [("thought", " 7")]


def test_what_the_model_writes_cannot_steer_the_terminal(tiny_model):
    console = PlainConsole(file=io.StringIO(), force_terminal=False)
    ConsolePrinter(console, tiny_model).print_event(TokenWritten("<think>a\x1b[2J\x9bb", 5, 0.0))
    assert console.file.getvalue() == r"thought: a\x1b[2J\x9bb"


def test_a_context_that_is_nearly_full_is_told_with_the_way_out(piped, says):
    says(LOOK, ANSWER)
    _, out, errors = piped(*["what digit is on the red square?"] * 9, "/new", "what?")
    warnings = [line for line in out if "/new starts a new conversation" in line]
    left = [int(line.split()[0]) for line in warnings]
    assert left and all(" of 384 tokens of the context are left" in line for line in warnings)
    first = out.index(warnings[0])
    assert out[first - 1].startswith("stopped: answered") and "does not fit" in errors[-1], "told before it is full"
    assert out[-1].startswith("stopped: "), "and nothing is told of a new conversation"


# --- Commands --------------------------------------------------------------------------------------------------------


def test_help_names_every_command_and_exit_leaves(piped):
    code, out, _ = piped("/help", "/exit", "/cost")
    assert code == 0
    assert [line.split()[0].lstrip("/") for line in out] == list(COMMANDS)


BAD = {
    "/image nowhere.png": (1, "InputError: nowhere.png does not exist"),
    "/image scene.png nowhere.png": (1, "InputError: nowhere.png does not exist"),
    "/image": (2, "UsageError: /image does not take 0 names. Type /image PATH..."),
    '/image "scene.png': (2, 'UsageError: /image: "scene.png cannot be read (No closing quotation)'),
    "/imag scene.png": (2, "UsageError: there is no command /imag. Did you mean 'image'?"),
    "/trace": (2, "UsageError: nothing was answered yet"),
    "/trace a b": (2, "UsageError: /trace does not take 2 names"),
    "/cost": (2, "UsageError: nothing was asked yet"),
    "/cost now": (2, "UsageError: /cost does not take 1 names. Type /cost alone."),
    "/undo": (2, "UsageError: there is nothing to take back. Ask a question or add an image first."),
    "/load nowhere": (1, "InputError: nowhere holds no chat"),
    "/save scene.png": (1, "InputError: the chat cannot be written to scene.png"),
    "/image ~nobody-of-this-name/a.png": (
        1,
        "InputError: ~nobody-of-this-name/a.png is in the home of an unknown user",
    ),
    "/save a\0b": (1, "InputError: 'a\\x00b' cannot be a path"),
    "what\udcff?": (1, "InputError: the question is no valid text"),
    "what? " * 1000: (1, "InputError: the question does not fit: "),
}


@pytest.mark.parametrize("line", BAD, ids=lambda line: line[:30].encode("ascii", "replace").decode())
def test_what_is_wrong_with_a_line_is_one_sentence_and_the_conversation_goes_on(line, piped, says):
    says(ANSWER)
    code, sentence = BAD[line]
    found, out, errors = piped(line, "what?")
    assert found == code, "that of the first thing that went wrong"
    assert len(errors) == 1 and errors[0].startswith(sentence)
    assert out[1] == "7"


def test_an_image_that_is_added_is_shown_with_the_next_question(piped, says):
    says(ANSWER)
    _, out, _ = piped("/image scene.png scene.png", "what?", "/cost", start=())
    assert out[:2] == ["image: scene.png"] * 2
    assert "2 regions" in told(out, "last question: ")[0]


def test_undo_takes_back_the_last_question_or_the_images_added_since(tiny_model, says, folder):
    says(LOOK, ANSWER)
    typed = Typed(tiny_model)
    typed.hold("what?")
    first = typed.terminal.chat.trajectory.to_json()
    typed.hold("and then?", "/image scene.png", "/undo", "/undo")
    assert typed.terminal.chat.trajectory.to_json() == first
    typed.hold("and then?", "/image scene.png", "/undo")
    again = typed.terminal.chat
    straight = vt.Chat(tiny_model, again.session.sources)
    for question in ("what?", "and then?"):
        straight.ask(question)
    assert again.trajectory.ids == straight.trajectory.ids
    assert np.allclose(again.trajectory.logprobs, straight.trajectory.logprobs, atol=1e-4)


def test_a_trace_is_drawn_beside_those_that_are_there(piped, says, folder):
    says(LOOK, ANSWER)
    _, out, _ = piped("what?", "/trace", "/trace", "/trace 'mine here.png'")
    assert told(out, "trace: ") == ["trace-1.png", "trace-2.png", "mine here.png"]
    for name in told(out, "trace: "):
        assert min(Image.open(folder / name).size) > 200


def test_cost_is_told_beside_that_of_reading_everything_again_for_every_turn(piped, says):
    def costs(*lines: str) -> tuple[list[float], list[float]]:
        _, out, _ = piped(*lines, "/cost")
        spent = [line for line in out if "seconds" in line and "gflops" in line]
        (again,) = told(out, "encoding and reading everything again for every turn: ")
        return [float(re.search(r"([\d.]+) gflops", line)[1]) for line in spent], [
            float(number) for number in re.findall(r"[\d.]+", again)
        ]

    says(ANSWER)
    spent, again = costs("what?")
    assert spent == again, "of one turn nothing can be kept"
    says(LOOK, ANSWER)
    spent, again = costs("what?", "what?", "/undo")
    assert again[0] > 1.5 * spent[0]
    assert again[1] > again[0] and spent[1] > spent[0], "what was taken back was spent"


def test_a_saved_conversation_is_gone_on_with_and_new_begins_with_its_images(piped, says, folder):
    says(LOOK, ANSWER)
    first = piped("what?", "/save kept")
    assert first[0] == 0 and (folder / "kept" / "chat.json").is_file()
    says(ANSWER)
    _, out, _ = piped("and then?", "/load kept", "/new", "what?", start=("--load", "kept", "--max-new-tokens", "64"))
    assert told(out, "images: ") == ["1; questions: 1, the last one: what?", "1; questions: 0"]
    assert out.count("7") == 2


# --- Interrupts ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def ctrl_c_interrupts():
    """What runs in the background of a shell has Ctrl-C ignored, and hands that on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Pressing(Console):
    """A console on which Ctrl-C is pressed once it shows a certain text."""

    def __init__(self, at: str = "") -> None:
        super().__init__(file=io.StringIO(), width=200)
        self.press(at)

    def press(self, at: str) -> None:
        self.at, self.since = at, len(self.shown)

    @property
    def shown(self) -> str:
        return self.file.getvalue()

    def print(self, *objects, **options) -> None:
        super().print(*objects, **options)
        if self.at and self.at in self.shown[self.since :]:
            self.at = ""
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_while_an_answer_is_written_takes_the_question_back_and_no_more(tiny_model, says):
    says(LOOK, ANSWER)
    plain = Typed(tiny_model)
    plain.hold("what?", "and then?")
    for text in ("look there", "inquiry", "seen", "stopped"):
        pressed = Typed(tiny_model, Pressing())
        pressed.hold("what?")
        pressed.out.press(text)
        assert pressed.hold("something else?", "and then?") == 0
        assert not pressed.out.at and "taken back" in pressed.out.shown
        assert pressed.terminal.chat.trajectory.ids == plain.terminal.chat.trajectory.ids


def test_at_the_prompt_the_second_ctrl_c_in_a_row_leaves(tiny_model, says):
    says(ANSWER)
    assert Typed(tiny_model).hold(None, "what?", None, "/help") == 0
    with pytest.raises(KeyboardInterrupt):
        Typed(tiny_model).hold(None, None)


def test_over_a_pipe_ctrl_c_leaves(tiny_model, says):
    says(ANSWER)
    console = Pressing("seen")
    chat = vt.Chat(tiny_model, [np.zeros((64, 64, 3), np.uint8)])
    lines = iter(["what?", None])
    with pytest.raises(KeyboardInterrupt):
        Terminal(chat, console, console, interactive=False).run_lines(lambda: next(lines))
    assert not chat.trajectory.ids


def test_what_does_not_fit_into_memory_is_told_and_the_chat_is_as_before(tiny_model, monkeypatch):
    def full(*given, **named):
        raise MemoryError

    typed = Typed(tiny_model)
    monkeypatch.setattr(tiny_model, "encode", full, raising=False)
    assert typed.hold("what?") == 0
    assert "InputError: the device has too little memory" in typed.out.file.getvalue()
    assert not typed.terminal.chat.trajectory.ids


def test_a_conversation_about_no_image_can_be_had(piped, says):
    says(ANSWER)
    code, out, err = piped("what?", "/cost", "/image scene.png", "and now?", start=())
    assert (code, err) == (0, [])
    assert out.count("7") == 2
