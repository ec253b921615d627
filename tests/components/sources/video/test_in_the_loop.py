"""Videos go the road of images: asked about, trained on, from the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vilavt_toolkit as vt
from vilavt_toolkit.cli.app import run
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.contracts import RegionCall, Sample, Task, ToolCall, TraceTurn, Trajectory, Turn
from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.dialogue.traces import build_trace_session
from vilavt_toolkit.registry import tasks
from vilavt_toolkit.settings import setting
from vilavt_toolkit.testing.isolation import isolated_registries
from vilavt_toolkit.testing.scripted import Scripted
from vilavt_toolkit.training.supervised.run import run_supervised

VIDEO = ("model.source.name=video", "model.source.frames=3")
COUNT = 13


def frame(index: int, side: int = 64) -> np.ndarray:
    pixels = np.random.default_rng(index).integers(0, 256, (side, side, 3), dtype=np.uint8)
    pixels[:, :8] = 20 * index
    return pixels


def written(path: Path) -> Path:
    """A video file of 13 frames, ten a second: an mp4, or by its suffix a GIF."""
    frames = [frame(index) for index in range(COUNT)]
    if path.suffix == ".gif":
        first, *others = [Image.fromarray(pixels) for pixels in frames]
        first.save(path, save_all=True, append_images=others, duration=100)
        return path
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def model(tiny_recipe):
    """The tiny model with videos for originals; a copy of nothing, so that it may be changed."""
    return vt.build(tiny_recipe, VIDEO)


@pytest.fixture
def scripted(monkeypatch):
    """Lets the loop of `vt.ask` say given turns first."""

    def script(model, *turns: Turn) -> None:
        encode = model.language_model.tokenizer.encode
        left = [token for turn in turns for token in encode(model.dialogue.write(turn))]

        monkeypatch.setattr(
            "vilavt_toolkit.chat.chat.Loop", lambda model, decoding: Scripted(model, decoding, lambda number: left)
        )

    return script


def look(*regions: dict, thought: str = "look") -> Turn:
    calls = tuple(RegionCall(region["index"], {k: v for k, v in region.items() if k != "index"}) for region in regions)
    return Turn(thought, call=ToolCall(calls, "the red square"))


def test_a_video_is_asked_about_and_a_frame_that_was_never_shown_is_looked_into(model, scripted, tmp_path):
    scripted(
        model,
        look({"index": 1, "bbox_2d": [0, 0, 2, 4]}, {"index": 0, "bbox_2d": [0, 0, 4, 4], "time": 0.4}),
        look({"index": 3, "bbox_2d": [0, 0, 2, 2]}, {"index": 4, "bbox_2d": [0, 0, 1, 4], "time": 0.9}),
        Turn("seen", answer="7"),
    )
    answer = vt.ask(str(written(tmp_path / "film.mp4")), "what digit is on the red square?", model=model)
    assert answer.text == "7" and answer.why == "answered"
    assert [region.box for region in answer.trajectory.regions] == [
        None, None, None,
        (6, 0, 0, 32, 64), (4, 0, 0, 64, 64), (6, 0, 0, 16, 32), (9, 0, 0, 16, 64),
    ]  # fmt: skip
    assert [region.overview for region in answer.trajectory.regions[:3]] == [0, 1, 2]
    assert [region.shown.parent_scale for region in answer.trajectory.regions[3:5]] == [0.5, 0.5], (
        "frames of 64 pixels, shown as 32"
    )
    said = model.language_model.tokenizer.decode(answer.trajectory.ids).replace("<|feature|>", "")
    assert "[0] 0 s\n[1] 0.6 s\n[2] 1.2 s\nwhat digit" in said
    assert "[3] 0.6 s\n[4] 0.4 s\n" in said and "[5] 0.6 s\n[6] 0.9 s\n" in said
    crops = [region.crop for turn in answer.trace.turns for region in turn.regions]
    assert [crop.shape for crop in crops] == [(64, 32, 3), (64, 64, 3), (32, 16, 3), (64, 16, 3)]
    assert [round(crop[:, :6].mean() / 20) for crop in crops] == [6, 4, 6, 9], "cut from these frames"
    answer.draw(tmp_path / "trace.png")
    assert min(Image.open(tmp_path / "trace.png").size) >= 200
    assert Trajectory.from_json(answer.trajectory.to_json()) == answer.trajectory


@pytest.mark.parametrize(
    ("region", "told"),
    [
        ({"index": 0, "bbox_2d": [0, 0, 2, 2], "time": 60}, "runs from 0 to 1.2 seconds"),
        ({"index": 0, "bbox_2d": [0, 0, 9, 2], "time": 0.4}, "out of range"),
        ({"index": 0, "bbox_2d": [0, 0, 2, 2], "time": "soon"}, "number of seconds"),
        ({"index": 0, "time": 0.4}, "is missing"),
        ({"index": 3, "bbox_2d": [0, 0, 2, 2]}, "there are 0 to 2"),
    ],
)
def test_a_moment_that_is_not_there_becomes_feedback(model, scripted, tmp_path, region, told):
    scripted(model, look(region), Turn("well", answer="7"))
    answer = vt.ask(str(written(tmp_path / "film.gif")), "what?", model=model)
    assert answer.text == "7" and told in answer.trajectory.feedback[0] and len(answer.trajectory.regions) == 3


def test_two_videos_in_one_question_keep_their_regions_apart(model, tmp_path):
    films = [str(written(tmp_path / name)) for name in ("a.gif", "b.gif")]
    session = Session(model, [model.open_source(film) for film in films])
    session.ask("which?")
    assert [(region.source, region.overview) for region in session.trajectory.regions] == [
        (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2),
    ]  # fmt: skip
    session.carry_out(look({"index": 4, "bbox_2d": [0, 0, 4, 4]}, {"index": 2, "bbox_2d": [0, 0, 4, 4]}).call)
    assert [(region.source, region.box[0]) for region in session.trajectory.regions[6:]] == [(1, 6), (0, 12)]


def test_the_system_prompt_says_how_a_moment_is_named(tiny_recipe, tmp_path):
    tiny_recipe.write_text(tiny_recipe.read_text().replace(", system: ''", ""))
    model = vt.build(tiny_recipe, [*VIDEO, *LONG])
    session = Session(model, [model.open_source(str(written(tmp_path / "a.gif")))])
    session.ask("what?")
    said = model.language_model.tokenizer.decode(session.trajectory.ids)
    assert '"bbox_2d": [x1, y1, x2, y2], "time": 2.5}' in said and '"time", in seconds' in said and "4 steps" in said


LONG = ["model.language_model.config.max_position_embeddings=2048"]


@dataclass(frozen=True)
class FilmsConfig:
    """Settings of task `films`."""

    folder: str = setting("", help="where the films are")


def film(index: int) -> str:
    return f"{index}.{('gif', 'mp4')[index % 2]}"


class Films(Task):
    """Which film is it? Traces look at a moment that was not shown."""

    def __init__(self, config: FilmsConfig) -> None:
        self.folder = Path(config.folder)

    @classmethod
    def tiny(cls) -> FilmsConfig:
        return FilmsConfig()

    def length(self, split: str) -> int:
        return 6

    def sample(self, split: str, index: int) -> Sample:
        trace = (
            TraceTurn("at the start", "the red square", ((0, (7.0, 0.0, 0.0, 32.0, 32.0)), (2, (12.0, 0, 0, 64, 64)))),
            TraceTurn("read", answer=str(index)),
        )
        return Sample(f"films/{index}", "which film?", str(index), (str(self.folder / film(index)),), trace)

    def corpus(self):
        yield from (f"which film? at the start the red square read {index}" for index in range(6))

    def score(self, sample: Sample, answer: str | None) -> float:
        return float(answer == sample.answer)


@pytest.fixture
def films(tiny_recipe, tmp_path):
    """The tiny recipe with a task whose originals are video files."""
    for index in range(6):
        written(tmp_path / film(index))
    with isolated_registries():
        tasks.register("films", FilmsConfig)(Films)
        yield tiny_recipe


def test_a_task_of_video_files_trains_in_workers_and_is_evaluated(films, tmp_path, capsys):
    task = f"task={{name: films, folder: {tmp_path}}}"
    sections = ["train.steps=2", "train.batch_size=4", "train.workers=1", f"run={tmp_path / 'run'}"]
    folder = run_supervised(load_recipe(films, [*VIDEO, *LONG, task, *sections]))
    model = vt.load(folder, "cpu")
    trajectory = build_trace_session(model, Films(FilmsConfig(str(tmp_path))).sample("train", 0)).trajectory
    assert [region.box and region.box[0] for region in trajectory.regions] == [None, None, None, 7, 12]
    assert '"time": 0.7' in model.dialogue.write(trajectory.turns[0])
    assert run(["eval", str(folder), "eval.arms=[blind, modulated]", "eval.max_new_tokens=4"]) == 0
    capsys.readouterr()
    assert run(["ask", str(folder), str(tmp_path / "0.gif"), "which film?", "--trace", str(tmp_path / "t.png")]) == 0
    assert "regions" in capsys.readouterr().out and (tmp_path / "t.png").is_file()
    assert run(["ask", str(folder), str(tmp_path / "none.gif"), "which film?"]) == 1
    assert "none.gif does not exist. Check the path of the video" in capsys.readouterr().err


def test_the_quickstart_s_model_takes_videos_and_its_task_does_not(capsys):
    assert run(["check", "quickstart", "model.source.name=video"]) == 2
    assert "must have 5 numbers, as its original's" in capsys.readouterr().err
