"""The pixels of the next micro-batch go to the GPU while it computes the present one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch

from vilavt_toolkit.models.batch import Batch


def copy_ahead(micro_batches: Sequence[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield micro-batches with their views on a CUDA device, one copied ahead; elsewhere as they are.

    A step's pixels are gigabytes, so that no more than two micro-batches of them are on the device. The copies overlap
    with computing where the views are in pinned memory, as workers deliver them.
    """
    if device.type != "cuda":
        yield from micro_batches
        return
    stream: Any = cast(Any, torch.cuda.Stream)(device)
    present = torch.cuda.current_stream(device)
    waiting: Batch | None = None
    for micro_batch in micro_batches:
        with torch.cuda.stream(stream):
            moved = _move_views(micro_batch, device)
        if waiting is not None:
            yield waiting
        present.wait_stream(stream)
        for view in moved.views:
            # The memory was made on the other stream, and must not be used anew before this one is through with it.
            view.data.record_stream(present)
        waiting = moved
    if waiting is not None:
        yield waiting


def _move_views(batch: Batch, device: torch.device) -> Batch:
    views = [replace(view, data=view.data.to(device, non_blocking=True)) for view in batch.views]
    return replace(batch, views=tuple(views))
