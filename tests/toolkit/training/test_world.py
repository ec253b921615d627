"""A launcher's several processes are refused before anything is written; one process is trained, however started."""

from __future__ import annotations

import pytest

from vilavt_toolkit.cli import app as cli
from vilavt_toolkit.errors import UsageError
from vilavt_toolkit.training.world import require_single_process

TORCHRUN = {"RANK": "1", "LOCAL_RANK": "1", "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}
SRUN = {"SLURM_NTASKS": "8", "SLURM_PROCID": "3", "SLURM_JOB_NAME": "train"}


@pytest.mark.parametrize("command", ["train", "rl"])
@pytest.mark.parametrize("launcher", [TORCHRUN, SRUN], ids=["torchrun", "srun"])
def test_several_processes_are_refused_in_a_sentence_with_nothing_written(
    rl_recipe, tmp_path, monkeypatch, capsys, command, launcher
):
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    before = sorted(tmp_path.rglob("*"))
    assert cli.run([command, str(rl_recipe), f"run={tmp_path / 'run'}"]) == 2
    told = capsys.readouterr().err
    assert "several processes" in told and "without torchrun" in told and len(told.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "name", ["SLURM_STEP_NUM_TASKS", "JSM_NAMESPACE_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMI_SIZE"]
)
def test_every_launcher_is_known_by_its_variable(monkeypatch, name):
    require_single_process()
    monkeypatch.setenv(name, "2")
    with pytest.raises(UsageError, match=f"^{name} is 2: "):
        require_single_process()


def test_one_process_of_a_launcher_is_taken_and_so_is_a_command_in_an_interactive_allocation(monkeypatch):
    for name, value in {
        "WORLD_SIZE": "1",
        "SLURM_NTASKS": "8",
        "SLURM_JOB_NAME": "interactive",
        "PMI_SIZE": "",
    }.items():
        monkeypatch.setenv(name, value)
    require_single_process()
