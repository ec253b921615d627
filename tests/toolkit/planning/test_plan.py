"""Plans work without weights, and without a hub for the models that the recipes name."""

from __future__ import annotations

import pytest

from vilavt_toolkit.errors import InputError
from vilavt_toolkit.formats import foreign
from vilavt_toolkit.planning.dialogues import extend_dialogue, invent_dialogues
from vilavt_toolkit.planning.plan import list_stages, reading_recipe
from vilavt_toolkit.planning.reinforcement import cut_prompt
from vilavt_toolkit.planning.simulation import build_planned_model, choose_micro_batches
from vilavt_toolkit.training.supervised.data import StepCollator


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch):
    """Answer every request to the hub as a machine without a network does."""
    import huggingface_hub

    def refuse(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)


def test_the_published_shapes_stand_in_where_no_hub_is_in_reach():
    with reading_recipe("vilavt_7b/sft", []) as reader:
        recipe = reader.read()
        assert reader.stand_ins == ["Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen3-Embedding-0.6B"]
        model = build_planned_model(recipe)
        counts = {kind: sum(weight.numel() for weight in part.parameters()) for kind, part in model.parts().items()}
    # As the model cards and the checkpoints' own indices have them.
    assert counts["language_model"] == 7_615_616_512
    assert counts["encoder"] == 676_550_144
    assert counts["inquiry_encoder"] - 1280 * 1024 - 1280 == 595_776_512
    assert all(weight.is_meta for weight in model.parameters())
    with pytest.raises(InputError, match="the hub does not give it"):
        foreign.fetch_folder("Qwen/Qwen2.5-VL-7B-Instruct", foreign.HubAccess())


def test_no_description_stands_in_for_weights_or_for_an_unknown_model():
    with foreign.published_stand_ins(), pytest.raises(InputError, match="the hub does not give it"):
        foreign.fetch_folder("Qwen/Qwen2.5-VL-7B-Instruct", foreign.HubAccess())
    with foreign.published_stand_ins(), pytest.raises(InputError, match="the hub does not give it"):
        foreign.fetch_folder("nobody/nothing", foreign.HubAccess(), weights=False)


def test_a_recipe_of_questions_alone_has_no_supervised_stage(read_medium):
    with reading_recipe("vilavt_7b/rl", []) as reader:
        assert list_stages(reader.read()) == ["rl"]
    assert list_stages(read_medium()) == ["train"]


def test_invented_dialogues_have_their_length_and_are_collated(read_medium):
    model = build_planned_model(read_medium())
    planned = invent_dialogues(model, 900, 4)
    (trajectory, views), *_ = planned.dialogues
    assert planned.lengths == [900] * 4
    assert sum(region.count for region in trajectory.regions) / 900 == pytest.approx(5 / 8, abs=0.1)
    assert sum(trajectory.produced) == round(900 / 16)
    assert [region.group for region in trajectory.regions][-4:] == [
        *[max(0, len(trajectory.groups) - 2)] * 2,
        *[len(trajectory.groups) - 1] * 2,
    ]
    batch = StepCollator(2, model.language_model)(planned.dialogues)
    chosen, times = choose_micro_batches(batch)
    assert times == [2] and len(chosen.micro_batches) == 1, "equal micro-batches are run once"
    assert chosen.micro_batches[0].ids.shape == (2, 900) and len(chosen.micro_batches[0].views) == 2 * len(views)


def test_of_many_micro_batches_a_usual_one_and_the_longest_are_run(read_medium):
    model = build_planned_model(read_medium())
    dialogues = [invent_dialogues(model, length, 1).dialogues[0] for length in (200, 300, 310, 400, 900)]
    chosen, times = choose_micro_batches(StepCollator(1, model.language_model)(dialogues))
    assert [micro_batch.ids.shape[1] for micro_batch in chosen.micro_batches] == [400, 900]
    assert times == [4, 1]


def test_a_rollout_goes_on_from_its_prompt(read_medium):
    model = build_planned_model(read_medium())
    prompt, shown = cut_prompt(*invent_dialogues(model, 400, 1).dialogues[0])
    assert not any(prompt.produced) and len(shown) == len(prompt.regions) > 0
    trajectory, views = extend_dialogue(model, (prompt, shown), 30)
    assert sum(trajectory.produced) == 30 and len(views) == len(shown) + 4
    assert len(trajectory.groups) == len(prompt.groups) + 2
    again, _ = cut_prompt(trajectory, views)
    assert again.ids == prompt.ids
