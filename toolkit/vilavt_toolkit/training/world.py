"""The number of processes that a launcher started: training takes one."""

from __future__ import annotations

import os

from vilavt_toolkit.errors import UsageError

_WORLD_SIZES = (
    "WORLD_SIZE",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_NTASKS",
    "JSM_NAMESPACE_SIZE",
    "OMPI_COMM_WORLD_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "PMI_SIZE",
)
"""Variables in which torchrun, srun, jsrun and the MPI launchers tell each process how many there are."""


def require_single_process() -> None:
    """Raise UsageError if this process is one of several that a launcher started for one run.

    Each would train the whole run on the first device, and write into the same folder.
    """
    for name in _WORLD_SIZES:
        # Lightning, too, takes a task number in an interactive allocation for the allocation's, not for this command's.
        if name == "SLURM_NTASKS" and os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
            continue
        value = os.environ.get(name, "").strip()
        if value.isdecimal() and int(value) > 1:
            raise UsageError(
                f"{name} is {value[:20]}: a launcher started several processes, but training uses one process and one "
                "device. Start the command once, without torchrun and under SLURM with --ntasks=1."
            )
