"""One process's share of a step that several devices take together: a process group of which only it exists."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp._fully_shard import _fsdp_param, _fsdp_param_group
from torch.distributed.tensor._sharding_prop import ShardingPropagator

from vilavt_toolkit.planning.memory import MemoryTracker


@contextmanager
def pretended_processes(count: int, memory: MemoryTracker) -> Iterator[DeviceMesh]:
    """Yield a mesh of so many processes, of which this is the first; what it is sent has no values.

    The storages that FSDP2 empties and fills again outside of any operation are counted in `memory`. The whole tensors
    on which torch tries how an operation on shards is divided are not: they have no memory on a real device either.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=count, store=FakeStore())
    try:
        with _watched_resizing(memory), _ignored_trials(memory):
            yield init_device_mesh("cpu", (count,))
    finally:
        dist.destroy_process_group()


@contextmanager
def _watched_resizing(memory: MemoryTracker) -> Iterator[None]:
    """Show the tracker every storage whose size FSDP2 changes."""
    saved = [
        (module, name, getattr(module, name))
        for module in (_fsdp_param, _fsdp_param_group)
        for name in ("alloc_storage", "free_storage")
        if hasattr(module, name)
    ]
    # FSDP2 resizes storages in place, which no dispatched operation shows.
    for module, name, resize in saved:
        setattr(module, name, _watch(resize, memory))
    try:
        yield
    finally:
        for module, name, resize in saved:
            setattr(module, name, resize)


@contextmanager
def _ignored_trials(memory: MemoryTracker) -> Iterator[None]:
    """Keep the tracker from counting the tensors on which torch tries out an operation on shards."""
    name = "_propagate_tensor_meta_non_cached"
    propagate = getattr(ShardingPropagator, name)

    def propagate_unseen(*arguments: Any, **options: Any) -> Any:
        with memory.paused():
            return propagate(*arguments, **options)

    setattr(ShardingPropagator, name, propagate_unseen)
    try:
        yield
    finally:
        setattr(ShardingPropagator, name, propagate)


def _watch(resize: Any, memory: MemoryTracker) -> Any:
    def resize_and_note(tensor: Tensor) -> None:
        resize(tensor)
        memory.note_resize(tensor)

    return resize_and_note
