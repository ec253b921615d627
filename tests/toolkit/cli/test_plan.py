"""`vilavt plan`: what a recipe takes, in a table and as JSON."""

from __future__ import annotations

import json

import pytest

from vilavt_toolkit.cli.app import run
from vilavt_toolkit.planning import calibration, remedies

SHALLOW = ["model.encoder.config.depth=1", "model.language_model.config.num_hidden_layers=1"]
"""One block in place of two: a plan takes as long as the operations that it simulates."""


def test_a_plan_of_both_stages_is_printed(tiny_recipe, capsys):
    rl = "rl={steps: 2, prompts_per_step: 2, group_size: 2, max_new_tokens: 8, micro_batch: 1}"
    assert run(["plan", str(tiny_recipe), rl, *SHALLOW]) == 0
    shown = capsys.readouterr().out
    assert "tiny, train: " in shown and "tiny, rl: " in shown
    for told in ("weights", "gradients", "moments", "activations", "logits", "cache", "optimizer step", "rollout"):
        assert told in shown
    assert "samples of split 'train'" in shown and "what to change" not in shown


def test_what_to_type_can_be_read_in_a_narrow_terminal(tiny_recipe, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(remedies, "REMEDIES", remedies.REMEDIES[:1])
    assert run(["plan", str(tiny_recipe), *SHALLOW, "--length", "100", "--device-memory", "1MB"]) == 0
    shown = capsys.readouterr().out
    assert "does not fit into" in shown and "what to change" in shown and "train.micro_batch=1" in shown


def test_a_plan_as_json_says_whether_it_fits_and_what_it_takes(tiny_recipe, capsys):
    assert run(["plan", str(tiny_recipe), "--length", "200", "--json", "--device", "rtx4090"]) == 0
    (plan,) = json.loads(capsys.readouterr().out)
    assert plan["stage"] == "train" and plan["fits"] and plan["lengths"]["longest"] == 200
    assert plan["peak_bytes"] == max(plan["peak_by_phase"].values()) == sum(plan["peak_by_kind"].values())
    weights = sum(part["trained"] for part in plan["parameters"].values())
    assert plan["peak_by_kind"]["weights"] == pytest.approx(4 * weights, rel=0.2), "each storage is rounded up"
    assert plan["step_seconds"] == pytest.approx(sum(plan["seconds_by_phase"].values())) and plan["step_seconds"] > 0


# Every remedy is a plan of its own, which takes more than a second.
FEW = [remedy for remedy in remedies.REMEDIES if remedy.name in ("one dialogue at a time", "weights in bfloat16")]


@pytest.mark.parametrize("tried", [FEW, pytest.param(remedies.REMEDIES, marks=pytest.mark.nightly)], ids=["few", "all"])
def test_every_remedy_has_its_own_figure(tiny_recipe, capsys, monkeypatch, tried):
    monkeypatch.setattr(remedies, "REMEDIES", tried)
    assert run(["plan", str(tiny_recipe), *SHALLOW, "--length", "300", "--json", "--device-memory", "1MB"]) == 0
    (plan,) = json.loads(capsys.readouterr().out)
    assert not plan["fits"]
    found = {" ".join(each["overrides"]): each["peak_bytes"] for each in plan["remedies"]}
    # One of eight dialogues at a time, and half of the bytes of every weight, gradient and moment.
    assert found["train.micro_batch=1"] < 0.5 * plan["peak_bytes"]
    assert found["train.precision=bf16-true"] < 0.8 * plan["peak_bytes"]
    assert len(set(found.values())) == len(found)


def test_sharding_divides_weights_and_moments_among_the_devices(tiny_recipe, capsys):
    found = []
    for strategy in ("replicated", "fsdp2"):
        arguments = ["--length", "300", "--json", "--devices", "4", f"train.strategy={strategy}", *SHALLOW]
        assert run(["plan", str(tiny_recipe), *arguments]) == 0
        (plan,) = json.loads(capsys.readouterr().out)
        found.append(plan)
    for kind in ("weights", "moments"):
        # Each storage is rounded up to 512 bytes, which small shards feel.
        assert found[1]["peak_by_kind"][kind] == pytest.approx(found[0]["peak_by_kind"][kind] / 4, rel=0.5)
    # Nor does the optimizer's step hold a weight, gradient or moment as a whole.
    assert found[1]["peak_by_phase"]["optimizer step"] < 0.5 * found[0]["peak_by_phase"]["optimizer step"]
    assert "one of 4 devices" in found[1]["notes"][0] and "sharded" in found[1]["notes"][0]


def test_the_strategy_auto_is_planned_as_it_is_chosen_for_a_device_of_that_memory(tiny_recipe, capsys):
    for memory, strategy in (("1MB", "fsdp2"), ("1GB", "replicated")):
        arguments = ["--length", "300", "--json", "--devices", "2", "--device-memory", memory, *SHALLOW]
        assert run(["plan", str(tiny_recipe), *arguments]) == 0
        (plan,) = json.loads(capsys.readouterr().out)
        assert f"train.strategy auto is {strategy}: weights" in plan["notes"][0]
        assert ("sharded" in plan["notes"][1]) is (strategy == "fsdp2")


def test_this_machine_is_measured_and_then_planned_for(tiny_recipe, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("VILAVT_CONFIG_HOME", str(tmp_path))
    for name, few in (("_SMALLEST", (16,)), ("_HEADS", ((64, 32),)), ("_NUMBERS", (1 << 13,)), ("_SECONDS", 0.0)):
        monkeypatch.setattr(calibration, name, few)
    assert run(["plan", "--calibrate", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["file"] == str(tmp_path / "rates.json") and told["curves"]["matrix float32"] and told["machine"]
    arguments = ["plan", str(tiny_recipe), "--length", "100"]
    assert run([*arguments, "--device", "here"]) == 0
    shown = capsys.readouterr().out
    assert f"by the rates of this machine ({told['machine']}" in shown and told["measured"] in shown
    assert run([*arguments, "train.accelerator=cpu"]) == 0
    assert "by the rates of this machine" in capsys.readouterr().out
    assert run([*arguments, "train.accelerator=cpu", "--calibrate", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)[0]["rates"].startswith("this machine") and "rates of this machine" in shown.err


def test_a_plan_without_a_recipe_is_refused(capsys):
    assert run(["plan"]) == 2
    assert "Give a recipe to plan" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--length", "999999"], "is more than the context"),
        (["--device", "abacus"], "Give one of h200"),
        (["--device-memory", "much"], "is no size"),
    ],
)
def test_what_cannot_be_planned_is_told_in_a_sentence(tiny_recipe, capsys, arguments, told):
    assert run(["plan", str(tiny_recipe), *arguments]) == 2
    said = capsys.readouterr().err
    assert told in said and "Traceback" not in said
