"""As many processes train as the recipe says, however they were started; others are refused with nothing written."""

from __future__ import annotations

import pytest
import torch

import vilavt_toolkit as vt
from vilavt_toolkit.cli import app as cli
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.errors import BadConfig, RecipeErrors, UsageError
from vilavt_toolkit.training.world import World, check_devices, check_world

TORCHRUN = {"RANK": "1", "LOCAL_RANK": "1", "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}
SRUN = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_JOB_NAME": "train", "SLURM_STEP_ID": "0"}


def section(recipe, *overrides):
    return load_recipe(recipe, overrides).recipe.train


@pytest.mark.parametrize("command", ["train", "rl"])
@pytest.mark.parametrize("launcher", [TORCHRUN, SRUN], ids=["torchrun", "srun"])
def test_more_processes_than_the_recipe_says_are_refused_in_a_sentence_with_nothing_written(
    rl_recipe, tmp_path, monkeypatch, capsys, command, launcher
):
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    before = sorted(tmp_path.rglob("*"))
    assert cli.run([command, str(rl_recipe), f"run={tmp_path / 'run'}"]) == 2
    told = capsys.readouterr().err
    assert "several processes" in told and "without torchrun" in told and len(told.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("launcher", [TORCHRUN, SRUN], ids=["torchrun", "srun"])
def test_each_process_of_a_launcher_finds_its_place(tiny_recipe, monkeypatch, launcher):
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    assert check_world(section(tiny_recipe, "train.devices=2")) == World(1, 2)
    with pytest.raises(UsageError, match=r"is 2: .* train.devices 2 x train.nodes 2 is 4"):
        check_world(section(tiny_recipe, "train.devices=2", "train.nodes=2"))


@pytest.mark.parametrize("name", ["JSM_NAMESPACE_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_processes_of_a_launcher_that_is_not_known_are_refused(tiny_recipe, monkeypatch, name):
    assert check_world(section(tiny_recipe)) == World()
    monkeypatch.setenv(name, "2")
    with pytest.raises(UsageError, match=f"^{name} is 2: this launcher is not known"):
        check_world(section(tiny_recipe))


def test_one_process_of_a_launcher_is_taken_and_so_is_a_command_in_a_batch_script_or_an_allocation(
    tiny_recipe, monkeypatch
):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert check_world(section(tiny_recipe)) == World()


def test_python_says_how_to_start_several_processes(tiny_recipe):
    with pytest.raises(UsageError, match=r"needs 2 processes, and this is one. Start it .* `vilavt train`"):
        vt.train(tiny_recipe, ["train.devices=2"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU")
def test_devices_that_are_not_there_are_refused_by_check_and_train(tiny_recipe, capsys):
    overrides = ["train.devices=2", "train.accelerator=auto"]
    for command in ("check", "train"):
        assert cli.run([command, str(tiny_recipe), *overrides]) == 2
        assert "train.devices is 2, and there is no GPU here" in capsys.readouterr().err
    check_devices(section(tiny_recipe, "train.devices=2"))


def test_a_machine_with_fewer_gpus_says_how_many(tiny_recipe, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(UsageError, match=r"train.devices is 8, and there are 4 GPUs here"):
        check_devices(section(tiny_recipe, "train.devices=8", "train.accelerator=gpu"))


def test_reinforcement_refuses_several_devices(rl_recipe, capsys):
    assert cli.run(["rl", str(rl_recipe), "train.devices=2"]) == 2
    assert "vilavt rl uses one device so far" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("strategy", "reason"), [("deepspeed_stage_3", "DeepSpeed keeps gradients where"), ("ddp", "Write one of auto")]
)
def test_strategies_of_others_are_refused_with_the_reason(tiny_recipe, strategy, reason):
    with pytest.raises((BadConfig, RecipeErrors), match=reason):
        load_recipe(tiny_recipe, [f"train.strategy={strategy}"])


def test_a_world_of_one_makes_no_call():
    world = World()
    assert world.sum_counts(3, 4) == [3, 4] and world.gather("a") == ["a"] and world.share(2) == 2
    assert world.deal([1, 2, 3]) == [1, 2, 3] and World(1, 2).deal([1, 2, 3]) == [2]


def test_resume_auto_begins_a_run_and_goes_on_with_it(tiny_recipe, tmp_path, caplog):
    command = ["train", str(tiny_recipe), f"run={tmp_path / 'run'}", "--resume", "auto"]
    assert cli.run([*command, "train.steps=2"]) == 0
    assert cli.run([*command, "train.steps=3"]) == 0
    assert "train.steps=3 (was 2)" in caplog.text
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-00000002", "step-00000003"]
