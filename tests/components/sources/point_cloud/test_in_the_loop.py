"""Clouds go the road of images: trained on in both stages, evaluated, asked about, drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import vilavt_toolkit as vt
from vilavt_toolkit.chat.answer import build_answer
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.contracts import RegionCall, ToolCall
from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.dialogue.tool_calls import CallError
from vilavt_toolkit.dialogue.traces import build_trace_session
from vilavt_toolkit.errors import RecipeErrors
from vilavt_toolkit.evaluation.run import evaluate_run
from vilavt_toolkit.testing.isolation import isolated_registries
from vilavt_toolkit.training.reinforcement.run import run_reinforcement
from vilavt_toolkit.training.supervised.run import run_supervised

REWARD = '''
from vilavt_toolkit.rewards import reward_function


@reward_function("evenness")
def evenness(sample, trajectory):
    """Share of even token ids: something that a model which has learnt nothing can earn."""
    return sum(token % 2 == 0 for token in trajectory.ids) / len(trajectory.ids)
'''
RECIPE = """
inherits: point_clouds
plugins: [./evenness.py]
model:
  encoder: {overview_points: 32, zoom_points: 64, overview_tokens: 6, zoom_tokens: 8, neighbours: 5, point_width: 16,
            width: 32, depth: 2, heads: 2}
  projector: {name: mlp, hidden_dim: 32}
  language_model:
    vocab_size: 400
    config: {hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2}
task: {cells: 2, objects: 2, points: 60, train_items: 32, test_items: 6}
train: {init_from: '', steps: 2, batch_size: 8, micro_batch: null, accelerator: cpu, workers: 0, checkpoint_every: 2}
rl:
  steps: 1
  prompts_per_step: 2
  group_size: 2
  max_new_tokens: 8
  rewards: [{name: evenness}]
  save_rollouts_every: 1
eval: {items: 6, max_new_tokens: 8}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe as a user would write it on top of ours, small, with a reward of its own; its run stands beside it."""
    folder = tmp_path_factory.mktemp("clouds")
    path = folder / "small.yaml"
    path.write_text(RECIPE)
    (folder / "evenness.py").write_text(REWARD)
    with isolated_registries():
        yield load_recipe(path, [f"run={folder / 'run'}"])


@pytest.fixture(scope="module")
def run(recipe):
    """The trained and evaluated run."""
    folder = run_supervised(recipe)
    evaluate_run(folder, [], Console(quiet=True))
    return folder


def test_evaluation_leaves_a_picture_and_a_cloud_that_can_be_asked_about(run):
    assert max(Image.open(run / "eval" / "example.png").size) > 600
    scene = run / "eval" / "scene.ply"
    answer = vt.ask(scene, "what shape is the red object?", model=vt.load(run), max_new_tokens=8)
    assert answer.trace.sources[0].name == str(scene) and len(answer.trace.sources[0].points) > 60


def test_reinforcement_goes_on_from_it(recipe, run):
    further = run_reinforcement(recipe)
    assert vt.load(further)
    drawn = sorted((further / "rollouts").rglob("*.png"))
    assert len(drawn) == 4 and all(max(Image.open(file).size) > 600 for file in drawn)


@pytest.fixture(scope="module")
def zoomed(recipe, run):
    """A session in which a trace zoomed."""
    model, task = vt.load(run), recipe.recipe.task.build()
    sample = next(s for s in (task.sample("test", i) for i in range(6)) if s.tags["needs_zoom"])
    return build_trace_session(model, sample), sample


def test_a_trace_draws_the_cloud_with_its_boxes_and_what_they_held(zoomed, tmp_path):
    session, _ = zoomed
    answer = build_answer(session)
    ((region,),) = [turn.regions for turn in answer.trace.turns if turn.regions]
    assert region.crop.shape[1] == 6 and len(region.crop) >= 60
    answer.draw(tmp_path / "trace.png")
    pixels = np.asarray(Image.open(tmp_path / "trace.png").convert("RGB")).astype(int)
    source = np.asarray(session.sources[0].draw([region.box], 640)).astype(int)
    shown = pixels[24 : 24 + source.shape[0], 24 : 24 + source.shape[1]]
    assert np.array_equal(shown, source), "the source's own picture stands at the upper left"
    crop = np.asarray(session.sources[0].draw_crop(region.crop, 288)).astype(int)
    found = pixels[54 : 54 + crop.shape[0], 24 + source.shape[1] + 24 :][:, : crop.shape[1]]
    assert np.array_equal(found, crop), "the crop stands beside it, under its caption"


def test_calls_that_cannot_be_carried_out_become_words_for_the_model(zoomed, run):
    model = vt.load(run)
    session = Session(model, [model.open_source(np.eye(3, 6) * 2)])
    session.ask("what is it?")
    for box, words in (([3, 3, 3, 4, 4, 4], "holds no points"), ([0, 0, 4, 4], "six numbers")):
        with pytest.raises(CallError, match=f"Region 0: bbox_3d .*{words}"):
            session.carry_out(ToolCall((RegionCall(0, {"bbox_3d": box}),), "anything"))
    session.carry_out(ToolCall((RegionCall(0, {"bbox_3d": [0, 0, 0, 4, 4, 4]}),), "anything"))
    session.carry_out(ToolCall((RegionCall(1, {"bbox_3d": [0, 0, 0, 4, 4, 2]}),), "anything"))
    assert session.trajectory.regions[2].box == pytest.approx((0, 0, 0, 2, 2, 1))


def test_a_source_or_an_encoder_of_another_modality_is_refused_before_anything_is_loaded(recipe):
    from vilavt_toolkit.models.assemble import assemble_model

    wrong = load_recipe("point_clouds", ["model.source.name=image"])
    with pytest.raises(RecipeErrors, match="source 'image' gives crops of modality 'image', but encoder"):
        assemble_model(wrong.recipe.model)


def test_the_toolkit_has_never_heard_of_clouds():
    """Its own files name no modality but images, but for the rows of data files, which say what they show."""
    toolkit = Path(vt.__file__).parent
    known = {
        path.relative_to(toolkit).as_posix()
        for path in toolkit.rglob("*.py")
        if "point_cloud" in (text := path.read_text(encoding="utf-8")) or "bbox_3d" in text
    }
    rows = {path for path in known if path.startswith("data/")} | {"cli/data_check.py", "contracts/source.py"}
    assert known <= rows
