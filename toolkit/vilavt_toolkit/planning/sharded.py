"""One process's share of a step that several devices take together: a process group of which only it exists."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp._fully_shard import _fsdp_param, _fsdp_param_group

from vilavt_toolkit.planning.memory import MemoryTracker


@contextmanager
def pretended_processes(count: int, memory: MemoryTracker) -> Iterator[DeviceMesh]:
    """Yield a mesh of so many processes, of which this is the first; what it is sent has no values.

    The storages that FSDP2 empties and fills again outside of any operation are counted in `memory`.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=count, store=FakeStore())
    try:
        with _watched_resizing(memory):
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
    for module, name, resize in saved:
        setattr(module, name, _watch(resize, memory))
    try:
        yield
    finally:
        for module, name, resize in saved:
            setattr(module, name, resize)


def _watch(resize: Any, memory: MemoryTracker) -> Any:
    def resize_and_note(tensor: Tensor) -> None:
        resize(tensor)
        memory.note_resize(tensor)

    return resize_and_note
