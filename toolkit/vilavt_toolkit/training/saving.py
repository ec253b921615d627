"""Checkpoints written by all processes of a run together, at once or while training goes on.

A run of sharded weights and one that saves in the background write in the same way. The first process makes the folder
and writes what is small. Each process writes its own files of tensors. When all are written, the first one moves the
folder into its place. If a file cannot be written, all processes end with its error and the checkpoint before is whole.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from vilavt_toolkit.checkpoints.native import WEIGHTS, write_model_assets, write_training_facts
from vilavt_toolkit.checkpoints.staging import StagedCheckpoint, make_token, remove_old_checkpoints
from vilavt_toolkit.checkpoints.tensor_files import TensorFile, deal_tensors, write_index
from vilavt_toolkit.checkpoints.training_state import STATE, TrainingState
from vilavt_toolkit.errors import TrainingError, VilavtError
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.models.weight_types import TYPES_KEY, list_float_types
from vilavt_toolkit.training.sharding import gather_tensor
from vilavt_toolkit.training.stage import Stage
from vilavt_toolkit.training.world import World, agreeing


@dataclass(frozen=True)
class SavedTensors:
    """The tensors of a checkpoint, the same names in every process that writes some of them."""

    weights: Mapping[str, Tensor]
    state: Mapping[str, Tensor]
    is_sharded: bool
    """True if every process has its shard of them; else the first has all, and the others need have none."""


@dataclass(frozen=True)
class _FilledFile:
    """A file that this process writes, and its tensors on the CPU."""

    name: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


class CheckpointWriter:
    """Writes the checkpoints of a run one after the other. All processes call its methods in the same order."""

    def __init__(self, stage: Stage) -> None:
        self._stage, self._world = stage, stage.world
        self._staged: StagedCheckpoint | None = None
        self._writing = _Writing(iter(()), Path())
        self._kept: tuple[int | None, ...] = ()
        self._sizes: dict[str, dict[str, int]] = {}

    @property
    def pending_step(self) -> int | None:
        """The step of the checkpoint that is being written; None if there is none."""
        return None if self._staged is None else self._staged.step

    def begin(
        self,
        step: int,
        model: VisualChatModel,
        state: TrainingState,
        tensors: SavedTensors,
        kept_steps: Collection[int | None],
        in_background: bool,
    ) -> None:
        """Begin the checkpoint of `step`; it is whole after `finish`. Raises VilavtError, the same in all processes.

        With `in_background` training may go on: everything is copied to the CPU first, and written by a thread.
        """
        assert self._staged is None
        self._staged = StagedCheckpoint(self._stage.run, step, self._world.share(make_token()))
        self._kept = tuple(kept_steps)
        self._sizes = _list_sizes(tensors) if tensors.is_sharded else {}
        error: VilavtError | None = None
        if self._world.is_first:
            try:
                self._staged.create()
                with self._staged.explained():
                    write_model_assets(self._staged.folder, model, self._stage.recipe, step)
                    write_training_facts(self._staged.folder, TrainingState({**tensors.state}, state.data))
            except VilavtError as found:
                error = found
        self._require_none(error)
        files = _collect_files(tensors, self._world, in_background)
        # Sharded tensors are gathered here by all processes together, which a thread beside training cannot do.
        self._writing = _Writing(_drain([*files]) if in_background else files, self._staged.folder)
        if in_background:
            self._writing.start()
        else:
            self._writing.run()

    def is_written(self) -> bool:
        """Return True if every process has written its files, so that `finish` does not wait."""
        return not self._world.find_largest(int(self._writing.is_alive()))[0]

    def finish(self) -> Path | None:
        """Wait for the files of all processes, and give the checkpoint its place; return that in the first process.

        Raises VilavtError, the same in all processes, if one of them could not write.
        """
        assert self._staged is not None
        if self._writing.is_alive():
            self._writing.join()
        error = self._writing.error
        if error is not None and not isinstance(error, VilavtError):
            error = self._explain(error)
        # Agreed on before the move: a checkpoint without the files of one process must get no place.
        self._require_none(error)
        place: Path | None = None
        if self._world.is_first:
            try:
                for stem, sizes in self._sizes.items():
                    write_index(self._staged.folder, stem, deal_tensors(stem, sizes, self._world.size), sizes)
                place = self._staged.move_into_place()
            except VilavtError as found:
                error = found
        self._require_none(error)
        if self._world.is_first:
            remove_old_checkpoints(self._stage.run, self._stage.section.keep_checkpoints, self._kept)
        self._staged = None
        return place

    def _explain(self, error: Exception) -> Exception:
        """Return the error of a thread as that of the checkpoint that it wrote."""
        assert self._staged is not None
        try:
            with self._staged.explained():
                raise error
        except VilavtError as explained:
            return explained
        # Any other error of the thread ends the run by its own words, not by a traceback of the thread.
        except Exception as found:
            reason = " ".join(f"{type(found).__name__}: {found}".split())
            unknown = TrainingError(f"{self._staged.final} is not written ({reason}). Go on with --resume.")
            unknown.__cause__ = found
            return unknown

    def _require_none(self, error: Exception | None) -> None:
        """Raise the error of any process in all of them, and leave nothing of the checkpoint."""
        if failed := self._world.agree_on_error(error):
            if self._world.is_first and self._staged is not None:
                self._staged.discard()
            self._staged = None
            with agreeing():
                raise failed


class _Writing(threading.Thread):
    """Writes files one after the other and keeps the first error."""

    def __init__(self, files: Iterator[_FilledFile], folder: Path) -> None:
        # A second signal ends the program at once. It must not wait for a thread.
        super().__init__(name="checkpoint", daemon=True)
        self._files, self._folder = files, folder
        self.error: Exception | None = None

    def run(self) -> None:
        """Write the files; after an error they are still collected, for which the other processes wait."""
        for file in self._files:
            if self.error is None:
                try:
                    save_file(dict(file.tensors), str(self._folder / file.name), dict(file.metadata))
                # Any error at all: the main thread tells it.
                except Exception as error:
                    self.error = error
            # Let go before the next one is collected, or both would be in memory.
            del file


def list_weights(model: VisualChatModel, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of a model, its tied weights once, under the first of their names in the alphabet.

    Weights that have a mean, under any of their names, are replaced by it, in their own type.
    """
    parameters = {name: id(weight) for name, weight in model.named_parameters(remove_duplicate=False)}
    replaced = {parameters[name]: mean for name, mean in means.items()}
    held: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in sorted(model.state_dict().items()):
        # Not by their memory: a process may have none of a sharded weight.
        key = parameters.get(name)
        if key is None or key not in seen:
            mean = replaced.get(key) if key is not None else None
            held[name] = value.detach() if mean is None else mean.to(value.dtype)
        if key is not None:
            seen.add(key)
    return held


def _drain(files: list[_FilledFile]) -> Iterator[_FilledFile]:
    """Yield files, each of which is let go when the next one is asked for."""
    while files:
        yield files.pop(0)


def _list_sizes(tensors: SavedTensors) -> dict[str, dict[str, int]]:
    """Return the bytes of every whole tensor by the files that it lies in."""
    groups = {WEIGHTS: tensors.weights, STATE: tensors.state}
    return {
        stem: {name: value.numel() * value.element_size() for name, value in group.items()}
        for stem, group in groups.items()
    }


def _collect_files(tensors: SavedTensors, world: World, copies: bool) -> Iterator[_FilledFile]:
    """Yield the files that this process writes. With `copies` their tensors do not change when training goes on."""
    groups = {WEIGHTS: tensors.weights, STATE: tensors.state}
    types = {WEIGHTS: {TYPES_KEY: list_float_types(tensors.weights.values())}, STATE: {}}
    if not tensors.is_sharded:
        for stem, group in groups.items() if world.is_first else ():
            yield _FilledFile(
                f"{stem}.safetensors", {name: _bring(value, copies) for name, value in group.items()}, types[stem]
            )
        return
    for stem, sizes in _list_sizes(tensors).items():
        files = deal_tensors(stem, sizes, world.size)
        # In turns: all processes gather one file for each of them, and then all write at the same time.
        for first in range(0, len(files), world.size):
            held = _gather_turn(files[first : first + world.size], groups[stem], world, copies)
            place = first + world.rank
            if place < len(files):
                yield _FilledFile(files[place].name, held, types[stem])
            del held


def _gather_turn(
    files: Sequence[TensorFile], tensors: Mapping[str, Tensor], world: World, copies: bool
) -> dict[str, Tensor]:
    """Gather the tensors of a file for each process, one at a time; return those of this process."""
    held: dict[str, Tensor] = {}
    for owner, file in enumerate(files):
        for name in file.tensors:
            value = tensors[name]
            whole = gather_tensor(value) if isinstance(value, DTensor) else value
            if owner == world.rank:
                held[name] = _bring(whole, copies and whole is value)
    return held


def _bring(value: Tensor, copies: bool) -> Tensor:
    """Return a tensor on the CPU as it can be written; a copy if it must not change."""
    return value.detach().to("cpu", copy=copies, memory_format=torch.contiguous_format).contiguous()
