"""Questions and traces in the toolkit's own words: any kind of original and table, crops cut by the toolkit."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vilavt_components.sources.image import ImageConfig, ImageSource
from vilavt_components.tasks.files.plain_rows import ROW_FIELDS
from vilavt_components.tasks.files.question_rows import Questions, QuestionsConfig
from vilavt_components.tasks.files.tiny_files import write_lines
from vilavt_components.tasks.files.trace_rows import Traces, TracesConfig
from vilavt_toolkit.contracts import TraceTurn
from vilavt_toolkit.data.fields import Fields
from vilavt_toolkit.data.lengths import LengthMeter
from vilavt_toolkit.dialogue.session import session_for
from vilavt_toolkit.dialogue.traces import build_trace_session
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.training.supervised.data import TraceDataset

ZOOM = {"thought": "small", "inquiry": "its digit", "boxes": [[8, 8, 24, 24]]}
TRACE = {"id": "t", "image": "a.png", "question": "Which digit?", "turns": [ZOOM, {"thought": "seen", "answer": 7}]}
QUESTION = {"id": "q", "image": "a.png", "question": "Which digit?", "answer": "7"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "ab":
        Image.new("RGB", (40, 32), "red").save(tmp_path / f"{name}.png")
    (tmp_path / "room.ply").write_bytes(b"ply")
    (tmp_path / "clip.mp4").write_bytes(b"x")
    return tmp_path


def traces(folder: Path, *rows: Any, **changed: Any) -> Traces:
    write_lines(folder / "traces.jsonl", rows)
    return Traces(TracesConfig(files=str(folder / "traces.jsonl"), **changed))


def questions(folder: Path, *rows: Any, **changed: Any) -> Questions:
    write_lines(folder / "questions.jsonl", rows)
    return Questions(QuestionsConfig(files=str(folder / "questions.jsonl"), **changed))


def png(size: tuple[int, int] = (40, 32), colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


# --- Traces -----------------------------------------------------------------------------------------


def test_a_trace_is_led_by_the_recipes_dialogue_and_its_crops_are_cut(folder, tiny_model):
    sample = traces(folder, TRACE).sample("train", 0)
    assert sample.trace == (
        TraceTurn("small", "its digit", ((0, (8.0, 8.0, 24.0, 24.0)),)),
        TraceTurn("seen", answer="7"),
    )
    assert (sample.answer, sample.tags["answer_kind"], sample.id) == ("7", "text", "traces/t")
    trajectory = build_trace_session(tiny_model, sample).trajectory
    crop = trajectory.regions[1]
    assert len(trajectory.regions) == 2 and trajectory.groups[crop.group].text == "its digit"
    # The box was asked for in pixels of the original, and is there but for the dialogue's units, here quarters.
    assert crop.box == (0.0, 8.0, 30.0, 24.0)
    assert [turn.answer for turn in trajectory.turns] == [None, "7"]


def test_zooms_into_zooms_and_into_one_of_several_originals_name_it(folder):
    turns = [
        {"boxes": [{"index": 1, "box": [0, 0, 20, 20]}, {"index": 0, "box": [4, 4, 9, 9]}]},
        {"boxes": {"index": 2, "box": [2, 2, 8, 8]}},
    ]
    row = {**TRACE, "image": None, "images": ["a.png", "b.png"], "turns": turns, "answer": "x"}
    trace = traces(folder, row).sample("train", 0).trace
    assert [[index for index, _ in turn.boxes] for turn in trace] == [[1, 0], [2], []]
    assert trace[-1] == TraceTurn("", answer="x")


AGAIN = {"question": "And below?", "inquiry": "below", "boxes": {"index": 1, "box": [8, 8, 16, 16]}}


@pytest.mark.parametrize("answer", [{}, {"answer": 7}])
def test_a_turn_may_begin_with_a_further_question(folder, tiny_model, answer):
    turns = [
        *TRACE["turns"],
        AGAIN,
        {"thought": "seen", "answer": 3},
        {"question": " And its colour? ", "answer": "red"},
    ]
    sample = traces(folder, {**TRACE, "turns": turns, **answer}).sample("train", 0)
    assert sample.answer == "7"
    assert [turn.question for turn in sample.trace] == ["", "", "And below?", "", "And its colour?"]
    trajectory = build_trace_session(tiny_model, sample).trajectory
    assert [asked.text for asked in trajectory.questions] == ["Which digit?", "And below?", "And its colour?"]
    assert [turn.answer for turn in trajectory.turns] == [None, "7", None, "3", "red"]
    assert len(trajectory.regions) == 3
    assert {"And below?", "And its colour?", "red"} <= set(traces(folder, {**TRACE, "turns": turns}).corpus())


def test_further_questions_of_a_row_without_the_tool_are_asked_without_it_too(folder, tiny_model):
    turns = [{"answer": "7"}, {"question": "And its colour?", "answer": "red"}]
    sample = traces(folder, {**TRACE, "turns": turns, "tool": False}).sample("train", 0)
    session = build_trace_session(tiny_model, sample)
    assert len(session.trajectory.questions) == 2 and not session.can_call_tool


def test_a_row_that_is_asked_is_asked_its_own_question_alone(folder):
    write_lines(folder / "test.jsonl", [{**TRACE, "turns": [*TRACE["turns"], {"question": "x?", "answer": "y"}]}])
    task = traces(folder, TRACE, test_files=str(folder / "test.jsonl"))
    sample = task.sample("test", 0)
    assert (sample.question, sample.answer, sample.trace) == ("Which digit?", "7", ())


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"turns": [*TRACE["turns"], AGAIN]}, r"turns\[2\]: ends its question without an `answer`"),
        ({"turns": [ZOOM, {"question": "x?", "answer": "y"}]}, r"turns\[0\]: ends its question without an `answer`"),
        ({"turns": [{"question": "x?", "answer": "y"}]}, r"turns\[0\]\.question: is before the row's own"),
        ({"turns": [*TRACE["turns"], {"question": 3, "answer": "y"}]}, r"turns\[2\]\.question: is 3 \(int\)"),
        ({"turns": [*TRACE["turns"], {"question": "<image>?", "answer": "y"}]}, r"question: has an image tag"),
        ({"turns": [*TRACE["turns"], {"answer": "y"}]}, r"turns\[1\]: has no boxes, and is not the last"),
        ({"answer": "8", "turns": [*TRACE["turns"], {"question": "x?", "answer": "8"}]}, r"turns\[1\]\.answer: is '7'"),
        ({"turns": None}, r"turns: is missing. It must be a list of turns"),
        ({"turns": ["zoom"]}, r"turns\[0\]: is 'zoom' \(str\). It must be an object with a thought"),
        ({"turns": [{**ZOOM, "query": "x"}]}, r"turns\[0\]\.query: is no field of a turn. There are question, thought"),
        ({"turns": [{"thougt": "x"}]}, r"turns\[0\]\.thougt: is no field of this format. Did you mean 'thought'"),
        ({"turns": [{"boxes": [[1, 2, 3]]}, {"answer": "x"}]}, r"boxes\[0\]: has 3 numbers. Write \[x1, y1, x2, y2\]"),
        ({"turns": [{"boxes": [[1, 2, "3", 4]]}, {"answer": "x"}]}, r"turns\[0\]\.boxes\[0\]: is \[1, 2, '3', 4\]"),
        ({"turns": [{"boxes": [[1, 2, float("nan"), 4]]}, {"answer": "x"}]}, r"turns\[0\]\.boxes\[0\]: is \[1, 2, nan"),
        ({"turns": [{"boxes": [9, 0, 1, 20]}, {"answer": "x"}]}, r"boxes\[0\]: is \[9, 0, 1, 20\], which is no box in"),
        ({"turns": [{"boxes": [0, 0, 90, 20]}, {"answer": "x"}]}, r"which is no box in an image of 40 x 32 pixels"),
        ({"turns": [{"boxes": [{"index": 3, "box": [0, 0, 9, 9]}]}, {"answer": "x"}]}, "is in region 3, and 1 were"),
        ({"turns": [{"boxes": [{"index": -1, "box": [0, 0, 9, 9]}]}, {"answer": "x"}]}, r"index: is -1 \(int\)"),
        ({"turns": [{"thought": "hm"}, {"answer": "x"}]}, r"turns\[0\]: has no boxes, and is not the last"),
        ({"turns": [{**ZOOM, "answer": "y"}, {"answer": "x"}]}, r"turns\[0\]: has boxes and an answer"),
        ({"turns": [ZOOM]}, "answer: is missing"),
        ({"answer": "8"}, r"turns\[1\]\.answer: is '7' \(str\), and the row's answer '8'"),
        ({"tool": False}, "tool: is false, and the turns zoom"),
        ({"image": None, "images": ["a.png", "b.png"]}, "does not say which of 2 originals it is in"),
    ],
)
def test_what_is_wrong_with_a_trace_is_named_with_its_place(folder, changed, words):
    with pytest.raises(InputError, match=rf"traces.jsonl, line 2, .*{words}"):
        traces(folder, {**TRACE, "id": "good"}, {**TRACE, **changed}).length("train")


def test_a_trace_that_the_model_cannot_take_is_measured_with_its_zooms(folder, tiny_model):
    meter = LengthMeter(tiny_model)
    task = traces(folder, TRACE, {**TRACE, "id": 2, "turns": TRACE["turns"][1:]})
    for number in range(2):
        meter.measure(number, task.sample("train", number))
    with_zoom, without = meter.lengths.tokens
    assert with_zoom == len(build_trace_session(tiny_model, task.sample("train", 0)).trajectory.ids) > without


def test_an_image_that_can_be_no_view_is_named_with_its_file_and_its_row(folder, tiny_model):
    Image.new("RGB", (3000, 10)).save(folder / "strip.png")
    turns = [{**ZOOM, "boxes": [[0, 0, 10, 10]]}, TRACE["turns"][1]]
    task = traces(folder, {**TRACE, "image": "strip.png", "turns": turns})
    meter = LengthMeter(tiny_model)
    meter.measure(0, task.sample("train", 0))
    assert re.search(r"strip\.png: a region of 3000 x 10 pixels cannot be used", meter.lengths.refused[0][1])
    with pytest.raises(InputError, match=r"sample traces/t: .*strip\.png: a region of 3000 x 10 pixels"):
        TraceDataset(tiny_model, task, 1)[0]


def test_texts_of_thoughts_and_inquiries_train_the_tokenizer(folder):
    assert {"small", "its digit", "seen", "7", "Which digit?"} == set(traces(folder, TRACE).corpus())


# --- Questions --------------------------------------------------------------------------------------


def test_questions_are_asked_in_every_stage_and_answered_at_once_in_supervised_training(folder, tiny_model):
    rows = [{**QUESTION, "id": number} for number in range(40)]
    task = questions(folder, *rows, test_files=str(folder / "questions.jsonl"), blind=0.25)
    samples = [task.sample("train", number) for number in range(40)]
    forced = [sample for sample in samples if sample.trace[0].demanded and sample.originals]
    blind = [sample for sample in samples if not sample.originals]
    assert 10 < len(forced) < 30 and 3 < len(blind) < 20 and not any(sample.tool for sample in blind)
    # A question of reinforcement may zoom, whatever its trace would have learned.
    assert all(sample.tool for sample in forced)
    asked = session_for(tiny_model, forced[0])
    asked.ask(forced[0].question, tool=False)
    written = build_trace_session(tiny_model, forced[0]).trajectory
    assert written.ids[: len(asked.trajectory.ids)] == asked.trajectory.ids
    assert not any(task.sample("test", number).trace for number in range(40))
    assert [task.sample("train", number) for number in range(40)] == samples


def test_options_kinds_and_free_text_are_compared_by_the_row(folder):
    task = questions(
        folder,
        {**QUESTION, "id": 1, "answer": "A red lamp."},
        {**QUESTION, "id": 2, "options": ["cat", "dog"], "answer": "B"},
        {**QUESTION, "id": 3, "kind": "number", "answer": 2.5},
    )
    free, choice, number = (task.sample("train", index) for index in range(3))
    assert [task.score(free, said) for said in ("a red lamp", "lamp")] == [1, 0]
    assert choice.question.endswith("A. cat\nB. dog") and task.score(choice, "dog") == 1
    assert [task.score(number, said) for said in ("2.50", "2")] == [1, 0]
    with pytest.raises(InputError, match=r"line 1, kind: is 'riddle' \(str\). It must be one of text, choice"):
        questions(folder, {**QUESTION, "kind": "riddle"}).length("train")


def test_rows_name_every_kind_of_original(folder):
    rows = [
        {**QUESTION, "id": 1, "image": None, "point_cloud": "room.ply"},
        {**QUESTION, "id": 2, "image": None, "point_clouds": ["room.ply"], "question": "<point_cloud> what?"},
        {**QUESTION, "id": 3, "image": None, "videos": ["clip.mp4"]},
        {**QUESTION, "id": 4, "videos": ["clip.mp4"], "question": "<video><image> and then?"},
        {**QUESTION, "id": 5, "image": None, "originals": ["song.wav"]},
        {**QUESTION, "id": 6, "image": None, "image_path": [f"file://{folder}/a.png"]},
    ]
    (folder / "song.wav").write_bytes(b"x")
    task = questions(folder, *rows, videos=True)
    shown = [[Path(each).name for each in task.sample("train", number).originals] for number in range(6)]
    assert shown == [["room.ply"], ["room.ply"], ["clip.mp4"], ["clip.mp4", "a.png"], ["song.wav"], ["a.png"]]
    assert task.sample("train", 1).question == "what?" and task.sample("train", 3).question == "and then?"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"image": "room.ply"}, "image: room.ply is a point cloud. Name it under `point_clouds`"),
        ({"image": None, "point_clouds": ["a.png"]}, r"point_clouds\[0\]: a.png is no point cloud. Name it under `im"),
        ({"image": None, "imges": ["a.png"]}, "imges: is no field of this format. Did you mean 'images'"),
        ({"answer": None, "answers": "7"}, "answers: is no field of this format. Did you mean 'answer'"),
        ({"answer": ""}, "answer: is empty. Write it"),
        ({"answer": float("nan")}, "answer: is nan. Write a number or a text"),
        ({"image": "gone.png"}, "image: .*gone.png does not exist"),
        ({"question": "<image> or <image>?"}, "question: has 2 <image> tags for 1 image"),
    ],
)
def test_what_is_wrong_with_a_question_is_named(folder, changed, words):
    with pytest.raises(InputError, match=rf"questions.jsonl, line 1, .*{words}"):
        questions(folder, {**QUESTION, **changed}).length("train")


# --- Pictures in rows -------------------------------------------------------------------------------


def data_uri(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def test_a_picture_in_a_row_is_read_and_told_from_another_one(folder, tiny_model):
    rows = [
        {**QUESTION, "id": 1, "image": data_uri(png(colour="red"))},
        {**QUESTION, "id": 2, "image": data_uri(png(colour="blue"))},
        {**QUESTION, "id": 3, "image": data_uri(png(colour="red"))},
    ]
    task = questions(folder, *rows)
    samples = [task.sample("train", number) for number in range(3)]
    pixels = [tiny_model.open_source(sample.originals[0]).pixels[0, 0].tolist() for sample in samples]
    assert pixels == [[255, 0, 0], [0, 0, 255], [255, 0, 0]]
    groups = [sample.tags["group"] for sample in samples]
    assert groups[0] == groups[2] != groups[1]


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        (data_uri(b"iVBORw0KGgo" * 300), "image: .* not an image in a known format"),
        (data_uri(png())[:-40], "image of .*questions.jsonl, line 1 is damaged or cut off"),
        ("data:image/png;base64,a*b", "image: is a data URI whose base64 cannot be read"),
        ("data:image/png;base64," + "A" * 200_000, "image: is a data URI of 200,000 characters. Put so large"),
        ("data:text/html;base64,aaaa", "image: is a data URI of 'text/html'"),
        ("data:image/png;base64,", "image: is a data URI without any data"),
        (
            "/9j/" + "A" * 100_000,
            "image: is '/9j/AAAA.* of 100,004 characters, which is no path. If it is a picture in",
        ),
    ],
    ids=["no picture", "cut", "letters", "large", "page", "empty", "bare"],
)
def test_a_picture_in_a_row_that_cannot_be_read_is_named_and_never_printed(folder, monkeypatch, uri, words):
    monkeypatch.setattr("vilavt_toolkit.data.data_uri.MOST_EMBEDDED_BYTES", 100_000)
    with pytest.raises(InputError, match=words) as caught:
        task = questions(folder, {**QUESTION, "image": uri})
        task.length("train")
        ImageSource.open(task.sample("train", 0).originals[0], ImageConfig())
    assert len(str(caught.value)) < 500


# --- Tables -----------------------------------------------------------------------------------------


def test_a_table_of_text_holds_the_questions_that_json_holds(folder):
    table = (
        "\ufeffid,question,image,answer,options,max_pixels\r\n"
        '1,"Which, of these?",a.png,A,"[""cat"", ""dog""]",1024\r\n'
        '2,"two\nlines",,"a ""b""",,\r\n'
        "\r\n"
        "3,[1],a.png,7,,\r\n"
    )
    (folder / "data.csv").write_text(table, encoding="utf-8", newline="")
    task = Questions(QuestionsConfig(files=str(folder / "data.csv")))
    rows = [
        {"id": 1, "question": "Which, of these?", "image": "a.png", "answer": "A", "options": ["cat", "dog"],
         "max_pixels": 1024},
        {"id": 2, "question": "two\nlines", "answer": 'a "b"'},
        {"id": 3, "question": "[1]", "image": "a.png", "answer": "7"},
    ]  # fmt: skip
    same = questions(folder, *rows)
    for number in (2, 0, 1):
        one, other = task.sample("train", number), same.sample("train", number)
        assert (one.question, one.answer, one.originals, one.max_pixels) == (
            *(other.question, other.answer, other.originals, other.max_pixels),
        )
    assert task.locate_sample("train", 2).endswith("data.csv, line 6")


def test_lettered_columns_are_options_and_tabs_separate_too(folder):
    (folder / "data.tsv").write_text("question\tA\tB\tC\tanswer\nwhat?\tcat\tdog\t\tB\n")
    sample = Questions(QuestionsConfig(files=str(folder / "data.tsv"))).sample("train", 0)
    assert sample.question == "what?\nA. cat\nB. dog" and sample.answer == "B"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("question,answer\na,b,c\n", "line 2: has 3 columns, and the first line names 2. Put cells with ','"),
        ("question,question\na,b\n", "two columns are called 'question'"),
        ("question,answer\n", "holds no samples"),
        ('question,answer\n"a,b\n', "line 2: has 1 columns"),
        ("question,answer\nwhat?,\n", "line 2, answer: is missing"),
        (
            'question,answer,options\nwhat?,A,"{""A"": ""x"", ""B"": ""y"", ""A"": ""z""}"\n',
            "line 2: column 'options' has the key 'A' twice in one object. Keep one",
        ),
        ("question,answer\rwhat?,a\r", "line 1 ends with a carriage return alone.* Save the file with line feeds"),
        ("question,answer\nwhat?,a\rwhat?,b\n", "line 2 ends with a carriage return alone"),
    ],
)
def test_a_table_that_is_wrong_is_named_with_its_line(folder, content, words):
    (folder / "data.csv").write_text(content)
    with pytest.raises(InputError, match=words):
        Questions(QuestionsConfig(files=str(folder / "data.csv"))).length("train")


def test_a_table_in_another_encoding_is_told_that_alone(folder):
    (folder / "data.csv").write_bytes("question,answer\nwhat?,caf\u00e9\n".encode("cp1252"))
    with pytest.raises(InputError, match=r"line 2 is no UTF-8 text \(byte 9\)\. Convert the file to UTF-8\.$"):
        Questions(QuestionsConfig(files=str(folder / "data.csv"))).length("train")


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_table_with_two_columns_of_one_name_is_refused(folder, suffix):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 3, names=["question", "answer", "answer"])
    path = folder / f"data.{suffix}"
    if suffix == "parquet":
        parquet.write_table(table, path)
    else:
        with pyarrow.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(InputError, match=r"two columns are called 'answer'\. Rename one"):
        Questions(QuestionsConfig(files=str(path))).length("train")


def columns() -> dict[str, list[Any]]:
    return {
        "question": ["one?", "two?", "three?"],
        "image": [{"bytes": png(), "path": None}, {"bytes": None, "path": "a.png"}, None],
        "answer": [0, 1, 0],
        "options": [["yes", "no"], None, None],
    }


def write_arrow(folder: Path, place: Path) -> Path:
    """The columns as the library datasets saves them, in two files."""
    pyarrow = pytest.importorskip("pyarrow")
    ipc = pytest.importorskip("pyarrow.ipc")
    place.mkdir()
    table = pyarrow.table(columns())
    names = [f"data-0000{number}-of-00002.arrow" for number in range(2)]
    for name, part in zip(names, (table.slice(0, 2), table.slice(2)), strict=True):
        with ipc.new_stream(str(place / name), table.schema) as writer:
            writer.write_table(part)
    (place / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    features = {"answer": {"names": ["yes", "no"], "_type": "ClassLabel"}}
    (place / "dataset_info.json").write_text(json.dumps({"features": features}))
    return place


def write_parquet(folder: Path) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    features = {"info": {"features": {"answer": {"names": ["yes", "no"], "_type": "ClassLabel"}}}}
    table = pyarrow.table(columns()).replace_schema_metadata({"huggingface": json.dumps(features)})
    parquet.write_table(table, folder / "data.parquet", row_group_size=2)
    return folder / "data.parquet"


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_tables_of_arrow_and_parquet_hold_pictures_labels_and_lists(folder, tiny_model, kind):
    path = write_arrow(folder, folder / "saved") if kind == "folder" else write_parquet(folder)
    task = Questions(QuestionsConfig(files=str(path), root=str(folder)))
    samples = [task.sample("train", number) for number in (2, 0, 1)]
    assert [sample.answer for sample in samples] == ["yes", "yes", "no"]
    assert [len(sample.originals) for sample in samples] == [0, 1, 1]
    assert samples[1].question == "one?\nA. yes\nB. no"
    for sample in samples[1:]:
        assert np.array_equal(tiny_model.open_source(sample.originals[0]).pixels[0, 0], [255, 0, 0])


def test_a_folder_of_several_splits_names_them(folder):
    write_arrow(folder, folder / "saved")
    (folder / "both" / "train").mkdir(parents=True)
    (folder / "both" / "train" / "state.json").write_text("{}")
    (folder / "both" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(InputError, match=r"both holds several splits. Give the folder of one: train"):
        Questions(QuestionsConfig(files=str(folder / "both"))).length("train")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ('{"_data_files": [{"filename": "../x.arrow"}]}', "saved is damaged .*names no plain list of files"),
        ('{"_data_files": 3}', "saved is damaged"),
        ("[" * 100_000, "saved is damaged"),
        ('{"_data_files": [{"filename": "gone.arrow"}]}', "(gone.arrow|saved) "),
    ],
)
def test_a_damaged_folder_is_one_sentence(folder, state, words):
    pytest.importorskip("pyarrow")
    (folder / "saved").mkdir()
    (folder / "saved" / "state.json").write_text(state)
    with pytest.raises(InputError, match=words):
        Questions(QuestionsConfig(files=str(folder / "saved"))).length("train")


def test_a_damaged_parquet_file_is_one_sentence(folder):
    whole = write_parquet(folder).read_bytes()
    (folder / "cut.parquet").write_bytes(whole[:200])
    with pytest.raises(InputError, match=r"cut\.parquet is damaged"):
        Questions(QuestionsConfig(files=str(folder / "cut.parquet"))).length("train")


def test_without_pyarrow_a_sentence_says_what_to_install(folder, monkeypatch):
    (folder / "data.parquet").write_bytes(b"PAR1....PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match=r"needs the library pyarrow. Run: pip install 'vilavt-toolkit\[parquet\]'"):
        Questions(QuestionsConfig(files=str(folder / "data.parquet"))).length("train")


# --- Anything at all --------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats(allow_nan=True) | st.text(max_size=8)
    | st.sampled_from(["<image>", "a <image> b <video>", "a.ply", "choice", "data:,", "data:image/png;base64,AA"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["thought", "boxes", "index", "box", "answer", "bytes"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
ROWS = st.fixed_dictionaries({}, optional={key: JSON for key in (*ROW_FIELDS, "turns", "tool")})


@given(row=ROWS, training=st.booleans(), task=st.sampled_from([Traces, Questions]))
def test_whatever_a_row_holds_is_told_and_not_stumbled_over(row, training, task):
    fields = Fields(row)
    sample = task(task.tiny()).read_sample(fields, training)
    fields.find_unknown(task.known_fields)
    if not fields.problems and training:
        assert sample.trace[-1].answer == sample.answer.strip() or sample.trace[-1].answer == sample.answer
        assert all(turn.boxes for turn in sample.trace[:-1])


def test_a_long_id_is_shortened_and_stays_its_own(folder):
    rows = [{**QUESTION, "id": "x" * 9999 + end} for end in "ab"]
    ids = [questions(folder, *rows).sample("train", number).id for number in range(2)]
    assert ids[0] != ids[1] and max(map(len, ids)) < 150
