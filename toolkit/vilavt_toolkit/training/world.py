"""The processes that train one run together: who started them, and how they agree with each other."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from vilavt_toolkit.config.schema import TrainSection
from vilavt_toolkit.errors import TrainingError, UsageError
from vilavt_toolkit.training.launch import LOST_RANK, end_with_launcher, is_launched_here

T = TypeVar("T")

_FOREIGN_LAUNCHERS = ("JSM_NAMESPACE_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMI_SIZE")
"""Variables in which jsrun and the MPI launchers tell each process how many there are."""
_LOST = ("closed by peer", "reset by peer", "Connection refused", "Broken pipe", "remote process exited", "Timed out")
"""Words by which gloo and NCCL say that another process has gone."""


@dataclass(frozen=True)
class World:
    """The processes of a run, of which this one is number `rank`; collective calls return at once if it is alone.

    Every process must make the same collective calls in the same order. Flags, counts and texts go through the CPU.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """True in the one process that writes files and speaks to the user."""
        return self.rank == 0

    def deal(self, items: Sequence[T]) -> list[T]:
        """Return this process's share of the items that all processes have in the same order."""
        return list(items[self.rank :: self.size])

    def sum_tensor(self, value: Tensor) -> Tensor:
        """Return the sum of every process's tensor, all of one shape and on their own device."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def sum_counts(self, *counts: int) -> list[int]:
        """Return the sums of every process's counts."""
        return list(counts) if self.size == 1 else self._reduce(counts, dist.ReduceOp.SUM)

    def find_largest(self, *numbers: int) -> list[int]:
        """Return the largest of every process's numbers, place by place."""
        return list(numbers) if self.size == 1 else self._reduce(numbers, dist.ReduceOp.MAX)

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes in the order of their ranks."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def share(self, value: T) -> T:
        """Return the value of the first process."""
        if self.size == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0)
        return held[0]

    def wait(self) -> None:
        """Wait until every process has come here."""
        self.find_largest(0)

    def agree_on_error(self, error: Exception | None) -> Exception | None:
        """Return the error of this process, or else that of another one as a TrainingError; None if there is none."""
        told = self.gather(None if error is None else _describe(error))
        if error is not None:
            return error
        return next((TrainingError(text) for text in told if text is not None), None)

    def _reduce(self, numbers: Sequence[int], kind: Any) -> list[int]:
        held = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(held, kind)
        return [int(number) for number in held]


@contextmanager
def agreeing() -> Iterator[None]:
    """Mark an error that every process of the run raises here, so that they may save together before they end."""
    try:
        yield
    except Exception as error:
        error.is_agreed = True  # type: ignore[attr-defined]
        raise


def is_agreed(error: BaseException) -> bool:
    """Return True if every process of the run has raised an error."""
    return getattr(error, "is_agreed", False)


def _describe(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# --- Who started the processes ---------------------------------------------------------------------------------------


Launcher = Literal["none", "environment", "slurm"]


def find_launcher() -> Launcher:
    """Return who started this process as one of several: `vilavt train` or torchrun (environment), srun, or nobody."""
    if _read_number("WORLD_SIZE") > 1:
        return "environment"
    # srun alone sets the step's number. In a batch script or an interactive allocation the tasks are not processes.
    if "SLURM_STEP_ID" in os.environ and _read_number(_slurm_size_name()) > 1:
        return "slurm"
    return "none"


def find_world() -> World:
    """Return this process's place among those that a launcher started; nothing is connected yet."""
    launcher = find_launcher()
    if launcher == "environment":
        return World(_read_number("RANK"), _read_number("WORLD_SIZE"))
    return World(_read_number("SLURM_PROCID"), _read_number(_slurm_size_name())) if launcher == "slurm" else World()


def check_world(section: TrainSection) -> World:
    """Return this process's place in its run; raises UsageError unless as many were started as the recipe says."""
    check_launcher(section)
    world, wanted = find_world(), section.devices * section.nodes
    if world.size != wanted:
        raise UsageError(
            f"train.devices {section.devices} on train.nodes {section.nodes} needs {wanted} processes, and this is "
            "one. Start it on the command line with `vilavt train`, with torchrun or with srun."
        )
    return world


def check_launcher(section: TrainSection) -> None:
    """Raise UsageError if a launcher has started several processes, but not as many as the recipe says."""
    _refuse_foreign_launcher()
    world, wanted = find_world(), section.devices * section.nodes
    if world.size in (1, wanted):
        return
    name = "WORLD_SIZE" if find_launcher() == "environment" else _slurm_size_name()
    raise UsageError(
        f"{name} is {world.size}: a launcher started several processes, but train.devices {section.devices} x "
        f"train.nodes {section.nodes} is {wanted}. Set both so that their product is {world.size}, or start the "
        "command once, without torchrun and under SLURM with --ntasks=1."
    )


def check_devices(section: TrainSection) -> None:
    """Raise UsageError if the machine lacks some of the devices that a recipe asks for."""
    if section.devices == 1 or section.accelerator not in ("auto", "gpu", "cuda"):
        return
    found = torch.cuda.device_count()
    # With `auto` one process would fall back on the CPU. Several are meant for devices.
    if found == 0:
        raise UsageError(
            f"train.devices is {section.devices}, and there is no GPU here. To train with {section.devices} processes "
            "on the CPU, set train.accelerator=cpu. Otherwise set train.devices=1."
        )
    if found < section.devices:
        raise UsageError(f"train.devices is {section.devices}, and there are {found} GPUs here. Lower train.devices.")


def require_single_process(section: TrainSection, command: str) -> None:
    """Raise UsageError if a command that uses one device is to run on several, or as several processes."""
    _refuse_foreign_launcher()
    if section.devices * section.nodes > 1:
        raise UsageError(f"{command} uses one device so far. Set train.devices=1 and train.nodes=1 for it.")
    check_world(section)


def _refuse_foreign_launcher() -> None:
    for name in _FOREIGN_LAUNCHERS:
        if _read_number(name) > 1:
            raise UsageError(
                f"{name} is {_read_number(name)}: this launcher is not known, and each of its processes would train "
                "the whole run. Start several with `vilavt train`, torchrun or srun, or the command once."
            )


def _slurm_size_name() -> str:
    return "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in os.environ else "SLURM_NTASKS"


def _read_number(name: str) -> int:
    value = os.environ.get(name, "").strip()
    return int(value[:20]) if value.isdecimal() else 0


# --- Processes that are lost -----------------------------------------------------------------------------------------


@contextmanager
def connected(world: World) -> Iterator[None]:
    """Let this process be one of its run's while it is connected to the others, and leave them at the end.

    The error of a collective call whose partner has gone ends this process. Whoever launched the processes says which
    one has gone. Under another launcher this raises a TrainingError.
    """
    if world.size > 1:
        end_with_launcher()
    if not world.is_first:
        # The first process speaks for all. An error of another one is told where that one ends.
        logging.getLogger().setLevel(logging.ERROR)
    try:
        yield
        if dist.is_initialized():
            dist.destroy_process_group()
    except RuntimeError as error:
        if world.size == 1 or not any(words in str(error) for words in _LOST):
            raise
        if is_launched_here():
            raise SystemExit(LOST_RANK) from error
        raise TrainingError(
            f"rank {world.rank} lost another process of the run. Look for that one's own error. Go on with --resume."
        ) from error
