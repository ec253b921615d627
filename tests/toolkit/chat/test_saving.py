"""A saved chat goes on as the one that was not saved; what is missing, changed or damaged is told by its name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import vilavt_toolkit as vt
from vilavt_toolkit.contracts import Turn
from vilavt_toolkit.errors import InputError, UsageError

SHORT = vt.Decoding(8, temperature=1.0, seed=4)
ANSWER = Turn("seen", answer="7")
CALL = {"region": [{"index": 0, "bbox_2d": [0, 0, 2, 3]}], "query": "red"}


def goes_on_as(loaded: vt.Chat, chat: vt.Chat, read_as_at_once) -> None:
    """Hold that both answer alike, twice."""
    assert loaded.decoding == chat.decoding
    for question in ("and now?", "and then?"):
        found, expected = loaded.ask(question), chat.ask(question)
        assert found.trajectory.ids == expected.trajectory.ids
        assert found.trajectory.logprobs == pytest.approx(expected.trajectory.logprobs, abs=1e-4)
    read_as_at_once(loaded)


@pytest.fixture
def file(tmp_path, picture) -> Path:
    """A picture in a file."""
    path = tmp_path / "seen" / "a.png"
    path.parent.mkdir()
    Image.fromarray(picture(1)).save(path)
    return path


@pytest.mark.parametrize(
    "at", ["the beginning", "an image", "a question", "a call", "two calls", "a call and an image"]
)
def test_a_loaded_chat_goes_on_as_the_one_that_was_saved(
    chat_model, picture, says, file, tmp_path, read_as_at_once, at
):
    says(chat_model, {"what?": [ANSWER]})
    chat = vt.Chat(chat_model, decoding=SHORT)
    if at != "the beginning":
        chat.add(picture(0))
    if at not in ("the beginning", "an image"):
        chat.ask("what?", images=[file])
    for _ in range({"a call": 1, "two calls": 2, "a call and an image": 1}.get(at, 0)):
        assert not chat.call_tool(CALL).problem
    if at == "a call and an image":
        chat.add(picture(2))
    chat.save(tmp_path / "saved")
    goes_on_as(vt.Chat.load(tmp_path / "saved", chat_model), chat, read_as_at_once)


def test_zooms_into_zooms_come_back(chat_model, picture, says, look, tmp_path, read_as_at_once):
    says(chat_model, {"what?": [look((0, [0, 0, 2, 2])), look((1, [1, 1, 4, 4]), (0, [0, 0, 4, 2])), ANSWER]})
    chat = vt.Chat(chat_model, [picture(0)], vt.Decoding(60))
    assert chat.ask("what?").text == "7"
    chat.save(tmp_path)
    loaded = vt.Chat.load(tmp_path, chat_model)
    assert loaded.trajectory == chat.trajectory
    chat.decoding = loaded.decoding = vt.Decoding(4)
    goes_on_as(loaded, chat, read_as_at_once)


def test_a_video_in_memory_comes_back_with_the_frames_that_were_not_shown(
    _tiny_folder, picture, tmp_path, read_as_at_once
):
    model = vt.build(_tiny_folder / "tiny.yaml", ["model.source.name=video", "model.source.frames=2"])
    chat = vt.Chat(model, [np.stack([picture(n) for n in range(5)])], SHORT)
    call = {"region": [{"index": 0, "bbox_2d": [0, 0, 2, 2], "time": 3}], "query": "then"}
    assert not chat.call_tool(call).problem
    chat.save(tmp_path)
    loaded = vt.Chat.load(tmp_path, model)
    assert all(
        np.array_equal(one.data, other.data)
        for one, other in zip(chat.session.views, loaded.session.views, strict=True)
    )
    goes_on_as(loaded, chat, read_as_at_once)


def test_a_folder_that_moves_with_what_is_in_it_can_be_loaded_and_saved_again(
    tiny_model, picture, tmp_path, read_as_at_once
):
    chat = vt.Chat(tiny_model, [picture(0), picture(1)], SHORT)
    chat.ask("what?")
    chat.save(tmp_path / "a")
    shutil.move(tmp_path / "a", tmp_path / "b")
    again = vt.Chat.load(tmp_path / "b", tiny_model)
    again.save(tmp_path / "b")
    shutil.move(tmp_path / "b", tmp_path / "c")
    goes_on_as(vt.Chat.load(tmp_path / "c", tiny_model), chat, read_as_at_once)


# --- What is not as it was ---------------------------------------------------------------------------------------


@pytest.fixture
def saved(tiny_model, picture, file, tmp_path) -> Path:
    """The folder of a chat about a picture in memory and one in a file, behind a call."""
    chat = vt.Chat(tiny_model, [picture(0)], vt.Decoding(4))
    chat.ask("what?", images=[file])
    chat.call_tool(CALL)
    chat.save(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("which", ["in memory", "in a file"])
@pytest.mark.parametrize("how", ["gone", "another", "cut"])
def test_an_original_that_is_not_what_it_was_is_named(tiny_model, picture, file, saved, which, how):
    path = file if which == "in a file" else saved / "original-0.png"
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:200])
    else:
        Image.fromarray(picture(9)).save(path)
    with pytest.raises(InputError, match=f"original {int(which == 'in a file')} of the chat, .*{path.name}"):
        vt.Chat.load(saved, tiny_model)


def test_another_tokenizer_is_told(saved, tiny_model, monkeypatch):
    tokenizer = tiny_model.language_model.tokenizer
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids: decode([(token + 1) % 400 for token in ids]))
    with pytest.raises(InputError, match="another tokenizer"):
        vt.Chat.load(saved, tiny_model)


def test_another_encoder_is_told(saved, _tiny_folder):
    other = vt.build(_tiny_folder / "tiny.yaml", ["model.encoder.config.patch_size=4"])
    with pytest.raises(InputError, match="encoder is another one"):
        vt.Chat.load(saved, other)


def test_a_folder_without_a_chat_is_told(tiny_model, tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="holds no chat"):
            vt.Chat.load(folder, tiny_model)


def test_a_folder_that_cannot_be_made_is_told_and_the_chat_goes_on(tiny_model, file):
    chat = vt.Chat(tiny_model, [file], SHORT)
    with pytest.raises(InputError, match=r"a\.png"):
        chat.save(file / "below")
    assert chat.ask("what?").why


def test_what_a_later_version_wrote_is_told(saved, tiny_model):
    path = saved / "chat.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 2}))
    with pytest.raises(InputError, match="of version 2"):
        vt.Chat.load(saved, tiny_model)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", "[" * 100_000, "\x00"])
def test_what_is_no_saved_chat_is_told(saved, tiny_model, text):
    (saved / "chat.json").write_text(text)
    with pytest.raises(InputError, match=r"chat\.json cannot be read"):
        vt.Chat.load(saved, tiny_model)


def test_bytes_that_are_no_text_are_told(saved, tiny_model):
    (saved / "chat.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(InputError, match=r"chat\.json cannot be read"):
        vt.Chat.load(saved, tiny_model)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Where values stand in JSON, ids and such by a few of them."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    below = [place for key, part in list(parts)[:12] for place in places(part, (*path, key))]
    return ([path] if path else []) + below


STRANGE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 50),
    st.sampled_from([10**9, 1e300, float("nan"), float("inf"), -1.5, 10**30]),
    st.sampled_from(["", "x", "/", "\x00", "\ud800"]),
    st.sampled_from([[], {}, [0], ["a"], [[]], [-1], {"a": 1}]),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_chat_that_was_changed_is_refused_by_name_or_can_be_asked(tiny_model, saved, state, data):
    path = saved / "chat.json"
    original = path.read_text()
    try:
        chat = json.loads(original)
        place = data.draw(st.sampled_from(places(chat)))
        parent = chat
        for key in place[:-1]:
            parent = parent[key]
        if data.draw(st.booleans()):
            parent[place[-1]] = data.draw(STRANGE)
        else:
            del parent[place[-1]]
        path.write_text(json.dumps(chat))
        try:
            loaded = vt.Chat.load(saved, tiny_model)
        except InputError as error:
            assert str(saved) in str(error) or "original" in str(error)
            return
        loaded.decoding = vt.Decoding(2)
        before = state(loaded)
        try:
            loaded.ask("and now?")
        except InputError:
            assert state(loaded) == before
    finally:
        path.write_text(original)


def test_a_file_that_was_written_over_is_saved_as_it_was_shown(tiny_model, picture, file, tmp_path):
    chat = vt.Chat(tiny_model, [file], SHORT)
    Image.fromarray(picture(2)).save(file)
    chat.add(file)
    chat.save(tmp_path / "saved")
    loaded = vt.Chat.load(tmp_path / "saved", tiny_model)
    for number, source in enumerate(loaded.session.sources, 1):
        assert (source.crop(source.extent).data == picture(number)).all()
    assert loaded.session.sources[1].name == str(file)
    file.write_text("no picture any more")
    chat.save(tmp_path / "again")
    assert len(vt.Chat.load(tmp_path / "again", tiny_model).session.sources) == 2


def test_a_folder_of_no_possible_name_is_told(tiny_model):
    with pytest.raises(InputError, match="cannot be written"):
        vt.Chat(tiny_model).save("a\0b")


def test_a_chat_is_loaded_with_a_model(tmp_path):
    with pytest.raises(UsageError, match=r"takes a model, not 'runs/mine'. Load one with vt\.load"):
        vt.Chat.load(tmp_path, "runs/mine")


def test_a_folder_of_other_things_is_left_as_it_is(tiny_model, picture, tmp_path):
    (tmp_path / "original-0.png").write_bytes(b"mine")
    chat = vt.Chat(tiny_model, [picture(0)])
    with pytest.raises(InputError, match="holds other files"):
        chat.save(tmp_path)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("original-0.png", b"mine")]
    for _ in range(2):
        chat.save(tmp_path / "new")


def test_a_video_that_is_gone_is_not_saved_without_what_was_shown_of_it(_tiny_folder, picture, tmp_path):
    model = vt.build(_tiny_folder / "tiny.yaml", ["model.source.name=video", "model.source.frames=2"])
    first, *others = [Image.fromarray(picture(n)) for n in range(5)]
    first.save(tmp_path / "film.gif", save_all=True, append_images=others, duration=1000)
    chat = vt.Chat(model, [str(tmp_path / "film.gif")], SHORT)
    call = {"region": [{"index": 0, "bbox_2d": [0, 0, 2, 2], "time": 3}], "query": "then"}
    assert not chat.call_tool(call).problem
    chat.save(tmp_path / "kept")
    before = {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()}
    (tmp_path / "film.gif").unlink()
    with pytest.raises(InputError, match=r"film\.gif is gone or changed, .* region 2 of it"):
        chat.save(tmp_path / "kept")
    assert {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()} == before
