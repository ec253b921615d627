"""Conversations from files: word by word as written, images in their places, each under its own inquiry."""

from __future__ import annotations

import io
import json
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vilavt_components.sources.image import ImageConfig, ImageSource
from vilavt_components.sources.video.source import VideoConfig, VideoSource
from vilavt_components.tasks.files.conversation_rows import read_conversation
from vilavt_components.tasks.files.conversations import Conversations, ConversationsConfig
from vilavt_components.tasks.files.tiny_files import write_lines
from vilavt_toolkit.contracts import Conversation, Message, Sample
from vilavt_toolkit.data.fields import Fields
from vilavt_toolkit.data.lengths import check_lengths
from vilavt_toolkit.data.rows import JsonLines
from vilavt_toolkit.data.shards import expand_braces
from vilavt_toolkit.dialogue.session import session_for
from vilavt_toolkit.dialogue.traces import build_trace_session
from vilavt_toolkit.errors import InputError, UsageError
from vilavt_toolkit.models.batch import collate

ZOOM = '<think>small</think>\n<tool> {"region": [{"index": 0, "bbox_2d": [0, 0, 8, 8]}], "query": "the digit"} </tool>'
TRACE = {
    "id": "z1",
    "images": ["a.png", "b.png", "c.png"],
    "queries": ["", "the digit"],
    "image_to_query_mapping": [0, 1, 1],
    "max_pixels": 1024,
    "mask_history": 3,
    "conversations": [
        {"from": "system", "value": "You may zoom."},
        {"from": "human", "value": "<image>\nWhich digit?"},
        {"from": "gpt", "value": ZOOM},
        {"from": "human", "value": "<tool_response><image> one, <image> two</tool_response>"},
        {"from": "gpt", "value": "<think>seen</think>\n<answer>7</answer>"},
    ],
}


def pictures(folder: Path) -> None:
    for number, name in enumerate("abc"):
        Image.new("RGB", (32 + 8 * number, 32), (0, 80 * number, 0)).save(folder / f"{name}.png")


def task_of(folder: Path, *rows: Any, name: str = "data.jsonl", **changed: Any) -> Conversations:
    pictures(folder)
    if name.endswith(".jsonl"):
        write_lines(folder / name, rows)
    else:
        (folder / name).write_text(json.dumps(rows, indent=1))
    return Conversations(ConversationsConfig(files=str(folder / name), **changed))


def sample_of(folder: Path, row: Any, split: str = "train", **changed: Any) -> Sample:
    return task_of(folder, row, test_files=str(folder / "data.jsonl"), **changed).sample(split, 0)


def test_a_trace_of_the_paper_is_read_word_by_word(tmp_path):
    sample = sample_of(tmp_path, TRACE)
    said = sample.conversation
    assert sample.originals == tuple(str(tmp_path / f"{name}.png") for name in "abc")
    assert [message.role for message in said.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert said.messages[1].content == (0, "\nWhich digit?")
    assert said.messages[3].content == ("<tool_response>", 1, " one, ", 2, " two</tool_response>")
    assert said.messages[2].content == (ZOOM,)
    assert said.inquiries == ("", "the digit") and said.groups == (0, 1, 1)
    assert [message.learned for message in said.messages if message.role == "assistant"] == [False, True]
    assert sample.max_pixels == 1024 and sample.id == "data/z1"


def test_a_list_and_lines_hold_the_same_samples(tmp_path):
    plain = {"conversations": TRACE["conversations"][1:3], "images": ["a.png"]}
    lines, listed = (task_of(tmp_path, TRACE, plain, name=name) for name in ("data.jsonl", "data.json"))
    assert [lines.sample("train", index) for index in range(2)] == [listed.sample("train", index) for index in range(2)]


@pytest.mark.parametrize("split", ["train", "test"])
def test_llava_and_sharegpt_conversations_are_read_too(tmp_path, split):
    llava = {
        "id": "1",
        "image": "a.png",
        "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}],
    }
    share = {"images": ["a.png"], "messages": [{"role": "user", "content": "<image>\nWhat?"}]}
    share["messages"].append({"role": "assistant", "content": "A cat."})
    for row in (llava, share):
        sample = sample_of(tmp_path, row, split)
        assert (sample.question, sample.answer, len(sample.originals)) == ("What?", "A cat.", 1)
        assert (sample.conversation is None) == (split == "test")


def test_text_alone_is_a_conversation(tmp_path):
    sample = sample_of(tmp_path, {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]})
    assert sample.originals == () and sample.conversation.messages[0].content == ("2+2?",)


def test_what_is_asked_shows_only_the_first_message_s_images(tmp_path):
    sample = sample_of(tmp_path, TRACE, "test")
    assert sample.originals == (str(tmp_path / "a.png"),) and sample.conversation is None
    assert (sample.question, sample.answer) == ("Which digit?", "7")
    task = task_of(tmp_path, TRACE)
    assert [task.score(sample, answer) for answer in ("7", " 7.", "8", None)] == [1, 1, 0, 0]


@pytest.mark.parametrize(("value", "learned"), [(None, [True, True]), (True, [False, True]), (2, [True, True])])
def test_masked_history_is_read_and_not_learned_from(tmp_path, value, learned):
    said = sample_of(tmp_path, {**TRACE, "mask_history": value}).conversation
    assert [message.learned for message in said.messages if message.role == "assistant"] == learned


def test_images_without_a_mapping_are_encoded_alone(tmp_path):
    row = {key: TRACE[key] for key in ("images", "conversations")}
    assert sample_of(tmp_path, row).conversation.groups == ()


def test_a_video_is_one_original_and_frames_are_several(tmp_path):
    turns = [{"from": "human", "value": "<video>\nWhat happens?"}, {"from": "gpt", "value": "Rain."}]
    (tmp_path / "clip.mp4").write_bytes(b"x")
    film = {"video": "clip.mp4", "conversations": turns}
    with pytest.raises(
        InputError,
        match=r"line 1, video: clip.mp4 is a video. Set task.videos=true and a model.source that opens videos",
    ):
        task_of(tmp_path, film).length("train")
    assert sample_of(tmp_path, film, videos=True).originals == (str(tmp_path / "clip.mp4"),)
    for frames in ({"video": ["a.png", "b.png"]}, {"video": True, "images": ["a.png", "b.png"]}):
        tags = "<video>" if isinstance(frames["video"], list) else "<video><video>"
        said = [{"from": "human", "value": f"{tags}\nWhat happens?"}, turns[1]]
        sample = sample_of(tmp_path, {**frames, "conversations": said})
        assert sample.conversation.messages[0].content == (0, 1, "\nWhat happens?")


def test_only_what_is_to_be_learned_is_a_target(tmp_path, tiny_model):
    sample = sample_of(tmp_path, TRACE)
    session = build_trace_session(tiny_model, sample)
    language_model, trajectory = tiny_model.language_model, session.trajectory
    learned = [token for token, own in zip(trajectory.ids, trajectory.produced, strict=True) if own]
    last = language_model.tokenizer.encode("<think>seen</think>\n<answer>7</answer>")
    assert learned == [*last, language_model.end_of_turn]
    assert [region.group for region in trajectory.regions] == [0, 1, 1]
    assert [group.text for group in trajectory.groups] == ["", "the digit"]
    batch = collate([trajectory], [session.views], language_model)
    assert tiny_model(batch).isfinite().any()


def test_images_stand_in_a_conversation_between_what_the_dialogue_puts_around_them(tmp_path, tiny_model, monkeypatch):
    monkeypatch.setattr(tiny_model.dialogue, "feature_delimiters", ("(", ")"), raising=False)
    trajectory = build_trace_session(tiny_model, sample_of(tmp_path, TRACE)).trajectory
    decode = tiny_model.language_model.tokenizer.decode
    for region in trajectory.regions:
        assert decode(trajectory.ids[: region.start]).endswith("(")
        assert decode(trajectory.ids[region.start + region.count :]).startswith(")")


def test_a_video_in_a_conversation_shows_all_its_first_views_under_one_inquiry(tmp_path, tiny_model):
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    said = (Message("user", (0, "what?")), Message("assistant", ("rain",)))
    film = VideoSource.open(frames, VideoConfig(frames=3))
    sample = Sample("v", "what?", "rain", (film,), conversation=Conversation(said, ("the sky",), (0,)))
    trajectory = build_trace_session(tiny_model, sample).trajectory
    assert [(region.overview, region.group) for region in trajectory.regions] == [(0, 0), (1, 0), (2, 0)]


# --- Plain replies ----------------------------------------------------------------------------------

PLAIN = {
    "images": ["a.png", "b.png"],
    "conversations": [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": " A cat. "},
        {"from": "human", "value": "And in this <image>?"},
        {"from": "gpt", "value": "<think>seen</think><answer>A dog.</answer>"},
    ],
}


def test_plain_replies_are_led_by_the_dialogue_as_an_evaluation_leads_them(tmp_path, tiny_model):
    sample = sample_of(tmp_path, PLAIN, replies="answer")
    trajectory = build_trace_session(tiny_model, sample).trajectory
    assert [(turn.thought, turn.answer) for turn in trajectory.turns] == [("", "A cat."), ("seen", "A dog.")]
    assert [question.text for question in trajectory.questions] == ["What is it?", "And in this [image 1]?"]
    assert [region.source for region in trajectory.regions] == [0, 1]
    # The prompt is the one that is asked in the other splits, whose answer is compared with the plain reply.
    asked = sample_of(tmp_path, PLAIN, "test", replies="answer")
    session = session_for(tiny_model, asked)
    session.ask(asked.question, asked.tool)
    assert trajectory.ids[: len(session.trajectory.ids)] == session.trajectory.ids
    masked = sample_of(tmp_path, {**PLAIN, "mask_history": True}, replies="answer")
    produced = build_trace_session(tiny_model, masked).trajectory
    learned = [token for token, own in zip(produced.ids, produced.produced, strict=True) if own]
    assert tiny_model.language_model.tokenizer.decode(learned[:-1]) == "<think>seen</think><answer>A dog.</answer>"


def test_plain_replies_as_given_are_warned_of_when_training_measures_them(tmp_path, tiny_model, caplog):
    check_lengths(tiny_model, task_of(tmp_path, PLAIN), "train")
    assert not caplog.records
    plain = {**PLAIN, "conversations": [*PLAIN["conversations"][:3], {"from": "gpt", "value": "A dog."}]}
    check_lengths(tiny_model, task_of(tmp_path, plain), "train")
    assert "1 of 1 samples have replies without an answer in the dialogue's form" in caplog.text
    caplog.clear()
    check_lengths(tiny_model, task_of(tmp_path, plain, replies="answer"), "train")
    assert not caplog.records


def test_crops_have_no_place_beside_plain_replies(tmp_path):
    with pytest.raises(InputError, match=r"queries: cannot stand in a row with task.replies=answer"):
        task_of(tmp_path, TRACE, replies="answer").length("train")


# --- Work without bound -----------------------------------------------------------------------------


def test_very_many_tags_take_no_time_and_are_one_problem():
    said = [{"from": "human", "value": "<image>" * 100_000}, {"from": "gpt", "value": "<answer>" * 100_000}]
    row = {"images": ["a.png"] * 1000, "conversations": said, "queries": ["x"] * 1000}
    for training in (True, False):
        fields = Fields(row)
        read_conversation(fields, training)
        assert ("images", "there are more <image> tags than images: 100000 in the human messages, 1000 named. Give "
                "each image one tag.") in fields.problems  # fmt: skip


def test_point_clouds_stand_in_conversations_by_their_own_tag_or_any_other(tmp_path):
    (tmp_path / "room.ply").write_bytes(b"ply")
    for tag in ("point_cloud", "image"):
        said = [{"from": "human", "value": f"<{tag}>\nWhat?"}, {"from": "gpt", "value": "A bed."}]
        sample = sample_of(tmp_path, {"point_cloud": "room.ply", "conversations": said})
        assert sample.originals == (str(tmp_path / "room.ply"),)
        assert sample.conversation.messages[0].content == (0, "\nWhat?")


# --- Splits -----------------------------------------------------------------------------------------


def plain_row(number: int, image: str = "a.png") -> dict[str, Any]:
    said = [{"from": "human", "value": f"<image> {number}?"}, {"from": "gpt", "value": str(number)}]
    return {"id": number, "image": image, "conversations": said}


def test_every_row_is_in_one_split_and_no_image_in_two(tmp_path):
    names = [f"{number}.png" for number in range(10)]
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    rows = [plain_row(number, names[number % 10]) for number in range(40)]
    ids = []
    for seed in (0, 0, 1):
        task = task_of(tmp_path, *rows, val_share=0.3, seed=seed)
        samples = {split: [task.sample(split, n) for n in range(task.length(split))] for split in ("train", "val")}
        shown = {split: {sample.originals for sample in those} for split, those in samples.items()}
        assert not shown["train"] & shown["val"] and len(shown["val"]) == 3
        assert sorted(s.answer for those in samples.values() for s in those) == sorted(map(str, range(40)))
        ids.append([sample.id for sample in samples["val"]])
    assert ids[0] == ids[1] != ids[2]


def test_an_empty_split_says_how_to_fill_it(tmp_path):
    task = task_of(tmp_path, plain_row(0))
    with pytest.raises(UsageError, match=r"split 'test' of 'conversations' is empty. Set task.test_files"):
        task.length("test")
    with pytest.raises(UsageError, match=r"no split 'dev'\. Choose one of train, val, test"):
        task.length("dev")


def test_ids_that_repeat_can_be_left_aside(tmp_path):
    rows = [plain_row(7), plain_row(7)]
    assert task_of(tmp_path, *rows, ids="place").length("train") == 2
    with pytest.raises(InputError, match=r"line 2, id: '7' is that of line 1 too. Give each its own, or set task.ids"):
        task_of(tmp_path, *rows).length("train")


def test_files_of_one_name_do_not_share_ids(tmp_path):
    pictures(tmp_path)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_lines(tmp_path / folder / "data.jsonl", [plain_row(0)])
    files = [str(tmp_path / folder / "data.jsonl") for folder in ("one", "two")]
    task = Conversations(ConversationsConfig(files=files, root=str(tmp_path)))
    assert len({task.sample("train", index).id for index in range(2)}) == 2


def test_lines_are_found_by_their_place_and_not_kept(tmp_path):
    path = tmp_path / "long.jsonl"
    text = "word " * 400
    write_lines(path, ({"id": number, "text": text} for number in range(5000)))
    tracemalloc.start()
    rows = JsonLines(path)
    found = [rows.read_row(index)["id"] for index in (4999, 0, 2500)]
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == [4999, 0, 2500] and len(rows) == 5000
    assert held < 40 * 5000 and peak < path.stat().st_size / 10


def test_a_file_that_changed_since_it_was_checked_is_named(tmp_path):
    task = task_of(tmp_path, plain_row(0), plain_row(1))
    assert task.length("train") == 2
    (tmp_path / "data.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=r"data.jsonl, line 2: is no valid JSON .* Start again"):
        task.sample("train", 1)


# --- Anything at all --------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats(allow_nan=True) | st.text(max_size=8)
    | st.sampled_from(["<image>", "a <image> b <video>", "human", "gpt", "<answer></answer>"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["from", "value", "role", "content"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
ROWS = st.fixed_dictionaries({}, optional={key: JSON for key in (*TRACE, "image", "video", "videos", "messages")})


@given(row=ROWS, training=st.booleans())
def test_whatever_a_row_holds_is_told_and_not_stumbled_over(row, training):
    fields = Fields(row)
    sample = read_conversation(fields, training)
    if not fields.problems and training:
        said = sample.conversation
        shown = [part for message in said.messages for part in message.content if isinstance(part, int)]
        assert shown == list(range(len(sample.originals)))
        assert not said.groups or len(said.groups) == len(sample.originals)
        assert said.messages[-1].role == "assistant" and said.messages[-1].learned


# --- Shards -----------------------------------------------------------------------------------------


def write_shards(
    folder: Path, rows: list[dict[str, Any]], each: int = 2, beside: bool = False, found_in: Path | None = None
) -> str:
    """Shards as the webdataset library writes them; with `beside`, the JSON names no images."""
    from webdataset import ShardWriter

    pattern = f"{folder}/part-%02d.tar"
    with ShardWriter(pattern, maxcount=each, verbose=False) as writer:
        for number, row in enumerate(rows):
            members = {
                f"{place}.png": ((found_in or folder) / name).read_bytes()
                for place, name in enumerate(row.get("images", ()))
            }
            named = {} if beside else {"images": list(members)}
            own = {key: value for key, value in row.items() if key != "images"}
            writer.write({"__key__": f"{number:05d}", "json": {**own, **(named if members else {})}, **members})
    last = -(-len(rows) // each) - 1
    return f"{folder}/part-{{00..{last:02d}}}.tar"


@pytest.mark.parametrize("beside", [False, True])
def test_shards_hold_the_samples_that_files_hold(tmp_path, beside):
    pytest.importorskip("webdataset")
    text = {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]}
    rows = [TRACE, text, {**TRACE, "id": "z2"}, {**text, "id": "t2"}, {**TRACE, "id": "z3"}]
    plain = task_of(tmp_path, *rows)
    packed = Conversations(ConversationsConfig(files=write_shards(tmp_path, rows, beside=beside)))
    assert packed.length("train") == 5
    for index in (4, 0, 3, 1, 2, 0):
        one, other = plain.sample("train", index), packed.sample("train", index)
        assert other.conversation == one.conversation and other.answer == one.answer
        for left, right in zip(one.originals, other.originals, strict=True):
            pixels = [ImageSource.open(each, ImageConfig()).pixels for each in (left, right)]
            assert np.array_equal(*pixels)


def test_a_bad_shard_is_named_with_what_to_do(tmp_path):
    pytest.importorskip("webdataset")
    pictures(tmp_path)
    write_shards(tmp_path, [{**TRACE, "images": ["a.png", "b.png"]}])
    part = tmp_path / "part-00.tar"

    def told(name: str) -> str:
        with pytest.raises(InputError) as caught:
            Conversations(ConversationsConfig(files=str(tmp_path / name))).length("train")
        return str(caught.value)

    assert "part-00.tar, sample '00000', images: there are more <image> tags than images: 3" in told("part-00.tar")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[:50] + bytes(len(whole) - 50))
    row = {"images": ["a.png"], "conversations": [TRACE["conversations"][1], TRACE["conversations"][4]]}
    (tmp_path / "bad").mkdir()
    packed = write_shards(tmp_path / "bad", [row], found_in=tmp_path)
    (original,) = Conversations(ConversationsConfig(files=packed)).sample("train", 0).originals
    with pytest.raises(InputError, match=r"'00000\.0\.png' in .*part-00\.tar is damaged or cut off .* Get the image"):
        ImageSource.open(original, ImageConfig())
    (tmp_path / "cut.tar").write_bytes(part.read_bytes()[:1500])
    assert "cut.tar is no sound tar file" in told("cut.tar")
    with tarfile.open(part) as tar:
        last = tar.getmembers()[-1]
    (tmp_path / "short.tar").write_bytes(part.read_bytes()[: last.offset_data + -(-last.size // 512) * 512])
    assert "short.tar ends without a tar file's end mark" in told("short.tar")
    assert "is compressed, so samples cannot be found by their offset. Unpack it" in told("part.tar.gz")
    assert "part-07.tar does not exist" in told("part-{07..08}.tar")


def tar_of(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def question(number: int) -> bytes:
    said = [{"from": "human", "value": f"<image>{number}?"}, {"from": "gpt", "value": str(number)}]
    return json.dumps({"conversations": said}).encode()


def test_samples_of_one_key_in_a_row_are_all_read(tmp_path):
    pytest.importorskip("webdataset")
    pictures(tmp_path)
    image = (tmp_path / "a.png").read_bytes()
    members = [member for number in range(3) for member in (("000.json", question(number)), ("000.PNG", image))]
    task = Conversations(ConversationsConfig(files=str(tar_of(tmp_path / "same.tar", *members))))
    assert [task.sample("train", number).answer for number in range(task.length("train"))] == ["0", "1", "2"]
    assert task.locate_sample("train", 2).endswith("same.tar, sample '000' (number 3 of this key)")
    # Images of shards have the same names in every sample, and are no common ground for all of them.
    assert len({task.sample("train", number).tags["group"] for number in range(3)}) == 3
    # Two rows before their two images: whose they are cannot be known.
    held_out = Conversations(ConversationsConfig(files=str(tmp_path / "same.tar"), val_share=0.4))
    assert (held_out.length("train"), held_out.length("val")) == (2, 1)
    bad = tar_of(tmp_path / "bad.tar", *members[::2], *members[1::2])
    with pytest.raises(InputError, match="sample '000', conversations: there are more <image> tags than images"):
        Conversations(ConversationsConfig(files=str(bad))).length("train")


def test_shards_one_after_another_in_one_file_are_all_read(tmp_path):
    pytest.importorskip("webdataset")
    pictures(tmp_path)
    image = (tmp_path / "a.png").read_bytes()
    whole = b""
    for number in range(3):
        part = tar_of(tmp_path / "part.tar", (f"{number}/{'k' * 150}.json", question(number)),
                      (f"{number}/{'k' * 150}.png", image))  # fmt: skip
        whole += part.read_bytes()
    (tmp_path / "all.tar").write_bytes(whole)
    task = Conversations(ConversationsConfig(files=str(tmp_path / "all.tar")))
    samples = [task.sample("train", number) for number in range(task.length("train"))]
    assert [sample.answer for sample in samples] == ["0", "1", "2"]
    assert all(ImageSource.open(sample.originals[0], ImageConfig()).pixels.shape for sample in samples)
    (tmp_path / "junk.tar").write_bytes(whole + b"junk" * 200)
    with pytest.raises(InputError, match=r"junk.tar is no sound tar file"):
        Conversations(ConversationsConfig(files=str(tmp_path / "junk.tar"))).length("train")
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 3 * 2 + 1500])
    with pytest.raises(InputError, match=r"cut.tar (is no sound tar file|ends without)"):
        Conversations(ConversationsConfig(files=str(tmp_path / "cut.tar"))).length("train")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a{000000..999999}{0..9}.tar", "stands for more than 100,000 files. Give fewer"),
        ("a{" + "1" * 5000 + "..2}.tar", "stands for more than 100,000 files"),
        ("a{x,y}" * 20 + ".tar", "stands for more than 100,000 files"),
        ("a{1..2.tar", "cannot be read .* Write braces as in"),
    ],
    ids=["range", "digits", "lists", "open"],
)
def test_names_with_braces_stand_for_a_bounded_number_of_files(name, words):
    pytest.importorskip("webdataset")
    with pytest.raises(InputError, match=words):
        expand_braces(name)


def test_a_name_with_braces_may_be_a_file_s_own(tmp_path):
    pictures(tmp_path)
    write_lines(tmp_path / "my{1}.jsonl", [plain_row(0)])
    assert Conversations(ConversationsConfig(files=str(tmp_path / "my{1}.jsonl"))).length("train") == 1
