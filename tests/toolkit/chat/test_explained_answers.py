"""Answers explain what the encoder attended to, region by region, and their pictures show it on request."""

from __future__ import annotations

import pytest
from PIL import Image

from vilavt_toolkit.chat.answer import build_answer
from vilavt_toolkit.checkpoints.loading import build_model
from vilavt_toolkit.cli import commands
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.dialogue.traces import build_trace_session
from vilavt_toolkit.errors import InputError


def answered(recipe, modulator: str):
    """A sample's trace as an answer of an untrained model."""
    checked = load_recipe(str(recipe), [f"model.modulator={modulator}"])
    model = build_model(checked)
    task = checked.recipe.task.build()
    sample = next(s for s in (task.sample("train", i) for i in range(32)) if s.trace[0].boxes)
    session = build_trace_session(model, sample)
    return build_answer(session)


@pytest.mark.parametrize("modulator", ["cross_attention", "joint_attention"])
def test_every_region_with_an_inquiry_is_explained_and_the_picture_grows_by_its_heat_maps(
    tiny_recipe, tmp_path, modulator
):
    answer = answered(tiny_recipe, modulator)
    assert answer.session.model.training
    explained = answer.explain()
    assert answer.session.model.training, "the mode is as it was"
    regions = answer.trajectory.regions
    assert list(explained) == [i for i, region in enumerate(regions) if region.box is not None]
    for index, explanation in explained.items():
        assert "".join(explanation.words) == answer.trajectory.groups[regions[index].group].text
        assert explanation.weights.shape[1:] == regions[index].size
    answer.draw(tmp_path / "plain.png")
    answer.draw(tmp_path / "explained.png", explain=True)
    plain, shown = (Image.open(tmp_path / name).size for name in ("plain.png", "explained.png"))
    assert shown[1] >= plain[1] + 100


def test_a_modulator_that_attends_to_nothing_says_so_and_draws_nothing(tiny_recipe, tmp_path):
    answer = answered(tiny_recipe, "film")
    with pytest.raises(InputError, match="No modulator attends to the words"):
        answer.draw(tmp_path / "trace.png", explain=True)
    assert not list(tmp_path.glob("*.png"))


def test_the_command_draws_no_picture_of_what_cannot_be_explained(tiny_recipe):
    with pytest.raises(InputError, match="No modulator attends to the words"):
        commands._explain_answer(answered(tiny_recipe, "film"))
