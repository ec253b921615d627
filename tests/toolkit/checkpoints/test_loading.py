"""Models by what a user has, and the encoder by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import vilavt_toolkit as vt
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.config.schema import PARTS_WITH_WEIGHTS
from vilavt_toolkit.errors import InputError, RecipeErrors, RunError
from vilavt_toolkit.models.assemble import assemble_model
from vilavt_toolkit.models.meta import assign_weights, build_on_meta


def scene() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def test_the_encoder_alone_takes_five_lines(tiny_run):
    model = vt.load(tiny_run)
    image = model.open_source(scene())
    regions = [vt.Region(image), vt.Region(image, (32, 0, 64, 32))]
    features = model.vision(regions, ["", "red square"])
    assert [tuple(feature.shape) for feature in features] == [(4, 4, 32), (4, 4, 32)]
    unasked = model.vision(regions, ["", ""])
    assert torch.equal(features[0], unasked[0]) and not torch.equal(features[1], unasked[1])


def test_the_same_recipe_and_seed_build_the_same_model(tiny_recipe):
    states = [vt.build(tiny_recipe, [f"seed={seed}"]).state_dict() for seed in (1, 1, 2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_a_built_model_is_ready_to_be_asked(tiny_recipe):
    answer = vt.ask(scene(), "what digit is on the red square?", model=vt.build(tiny_recipe), max_new_tokens=8)
    assert answer.why and answer.cost["regions"] >= 1 and answer.trajectory.ids


def test_asking_leaves_the_model_in_the_mode_it_was_in(tiny_recipe):
    model = vt.build(tiny_recipe).train()
    vt.ask(scene(), "what?", model=model, max_new_tokens=4)
    assert model.training
    with pytest.raises(InputError):
        vt.ask("nowhere.png", "what?", model=model)
    assert model.training


def test_a_short_context_leaves_room_to_look(tiny_model):
    """The longest turn allowed may be as long as the context; a call must still be carried out."""
    from vilavt_toolkit.dialogue.session import Session
    from vilavt_toolkit.generation.loop import Decoding
    from vilavt_toolkit.testing.scripted import Scripted

    session = Session(tiny_model, [tiny_model.open_source(scene())])
    session.ask("what digit is on the red square?")
    words = tiny_model.language_model.tokenizer.encode(
        '<think>a</think><tool>{"region": [{"index": 0, "bbox_2d": [0, 0, 2, 2]}], "query": "red"}</tool>'
    )
    decoding = Decoding(max_new_tokens=tiny_model.language_model.context_length)
    Scripted(tiny_model, decoding, lambda number: words).run([session])
    assert session.calls == 1


def test_a_recipe_that_does_not_fit_says_so_when_built(tiny_recipe):
    with pytest.raises(RecipeErrors, match=r"model\.encoder"):
        vt.build(tiny_recipe, ["model.encoder.config.num_heads=5"])


def test_a_run_is_loaded_in_the_type_that_is_asked_for(tiny_run):
    model = vt.load(tiny_run, device="cpu", dtype="bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in vt.load(tiny_run, device="cpu").parameters()} == {torch.float32}


def test_a_type_that_is_none_is_refused(tiny_run):
    with pytest.raises(InputError, match="dtype 'int8' is no type of weights"):
        vt.load(tiny_run, dtype="int8")


def test_a_folder_of_nothing_that_is_known_says_what_is_missing(tmp_path):
    with pytest.raises(RunError, match="holds no checkpoint"):
        vt.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match="'llama', which no checkpoint format here reads"):
        vt.load(tmp_path)


def test_models_built_without_weights_compute_what_they_compute_for_themselves(tiny_recipe):
    section = load_recipe(tiny_recipe).recipe.model
    model, whole = assemble_model(section, filled=PARTS_WITH_WEIGHTS), assemble_model(section)
    assert all(parameter.is_meta for parameter in model.parameters())
    kept = dict(model.named_buffers())
    assert kept and not any(buffer.is_meta for buffer in kept.values())
    assert all(torch.equal(kept[name], buffer) for name, buffer in whole.named_buffers())
    assign_weights(model, whole.state_dict())
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in model.state_dict().items())


class Halves(nn.Module):
    """Computes with its weights as it is built, as some models of timm do."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(2, 2)
        self.register_buffer("middle", self.map(torch.ones(2)).detach())


def test_what_computes_with_its_weights_as_it_is_built_is_built_with_them():
    model = build_on_meta(Halves)
    assert not model.map.weight.is_meta
    assert assign_weights(model, {"map.weight": torch.ones(2, 2), "middle": torch.zeros(2)}) == ["map.bias"]
    assert torch.equal(model.map.weight, torch.ones(2, 2)) and not model.middle.any()
