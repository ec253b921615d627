"""The memory of a run on shapes: which storages live, what they are for, and the most at once in every phase."""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from vilavt_toolkit.planning.shapes import list_tensors

Kind = Literal[
    "weights", "frozen weights", "cast weights", "gradients", "moments", "activations", "logits", "cache", "other"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
_BLOCK = 512
"""Bytes that an allocator rounds up to."""


@dataclass
class Peak:
    """The most bytes at once in a phase, and what they were for."""

    bytes: int = 0
    by_kind: dict[Kind, int] = field(default_factory=dict)


@dataclass
class _Storage:
    bytes: int
    kind: Kind
    reference: Any
    is_on_device: bool = False
    """True for whole numbers that a GPU would hold; all others without values are there anyway."""


class MemoryTracker:
    """Counts the bytes of storages while they live.

    A tensor of `vocab_size` columns is logits. What is cast from a weight is a copy of it. All others are activations,
    unless `mark` says otherwise.
    """

    def __init__(self, vocab_size: int) -> None:
        self.phase = "setup"
        self.peaks: dict[str, Peak] = {}
        """The peak of every phase since `forget_peaks`."""
        self._vocab_size = vocab_size
        self._storages: dict[int, _Storage] = {}
        self._now: Counter[Kind] = Counter()
        self._total = 0
        self.is_paused = False
        """True while operations are tried out that no device would run."""

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Say that operations are only tried out meanwhile."""
        before, self.is_paused = self.is_paused, True
        try:
            yield
        finally:
            self.is_paused = before

    @property
    def total(self) -> int:
        """Bytes that live now."""
        return self._total

    @property
    def peak(self) -> Peak:
        """The highest of all phases."""
        return max(self.peaks.values(), key=lambda peak: peak.bytes, default=Peak())

    def forget_peaks(self) -> None:
        """Begin to look for peaks anew."""
        self.peaks = {}
        self._note_peak()

    def begin_phase(self, name: str) -> None:
        """Count from here on for another phase."""
        self.phase = name
        self._note_peak()

    def mark(self, kind: Kind, *values: Any) -> None:
        """Say what the tensors in nested values are for."""
        for tensor in list_tensors(*values):
            self._add(tensor, kind, is_marked=True)

    def observe(self, operation: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Take note of the storages that an operation has made."""
        for tensor in outputs:
            if tensor.untyped_storage()._cdata not in self._storages:
                self._add(tensor, self._guess_kind(operation, inputs, tensor))
        # What is computed from numbers on the device is there too.
        if any(self.is_on_device(tensor) for tensor in inputs):
            for tensor in outputs:
                self._storages[tensor.untyped_storage()._cdata].is_on_device = True

    def mark_on_device(self, *values: Any) -> None:
        """Say which tensors of whole numbers a GPU would hold."""
        for tensor in list_tensors(*values):
            self._add(tensor, "other")
            self._storages[tensor.untyped_storage()._cdata].is_on_device = True

    def is_on_device(self, tensor: Tensor) -> bool:
        """Return True if a GPU would hold a tensor."""
        if isinstance(tensor, FakeTensor):
            return True
        found = self._storages.get(tensor.untyped_storage()._cdata)
        return found is not None and found.is_on_device

    def kind_of(self, tensor: Tensor) -> Kind | None:
        """Return what a tensor's storage is for; None for one that is not tracked."""
        found = self._storages.get(tensor.untyped_storage()._cdata)
        return None if found is None else found.kind

    def note_resize(self, tensor: Tensor) -> None:
        """Take note that the storage of a tensor has changed its size."""
        key = tensor.untyped_storage()._cdata
        if key not in self._storages:
            self._add(tensor, "cast weights")
            return
        held, size = self._storages[key], _round_up(tensor.untyped_storage().nbytes())
        self._change(held.kind, size - held.bytes)
        held.bytes = size

    def _guess_kind(self, operation: Any, inputs: list[Tensor], output: Tensor) -> Kind:
        is_cast = operation is torch.ops.aten._to_copy.default and len(inputs) == 1
        if is_cast and self.kind_of(inputs[0]) in ("weights", "frozen weights"):
            return "cast weights"
        if output.dim() > 1 and output.shape[-1] == self._vocab_size and output.is_floating_point():
            return "logits"
        return "activations"

    def _add(self, tensor: Tensor, kind: Kind, is_marked: bool = False) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        held = self._storages.get(key)
        if held is not None:
            if is_marked and held.kind != kind:
                self._change(held.kind, -held.bytes)
                self._change(kind, held.bytes)
                held.kind = kind
            return
        size = _round_up(storage.nbytes())
        # A storage has one Python object as long as it lives, so that the object's end is the storage's.
        self._storages[key] = _Storage(size, kind, weakref.ref(storage, lambda _: self._drop(key)))
        self._change(kind, size)

    def _drop(self, key: int) -> None:
        held = self._storages.pop(key)
        self._change(held.kind, -held.bytes)

    def _change(self, kind: Kind, change: int) -> None:
        self._now[kind] += change
        self._total += change
        if change > 0:
            self._note_peak()

    def _note_peak(self) -> None:
        peak = self.peaks.setdefault(self.phase, Peak())
        if self._total > peak.bytes:
            peak.bytes = self._total
            peak.by_kind = {kind: held for kind, held in self._now.items() if held}


def _round_up(size: int) -> int:
    return math.ceil(size / _BLOCK) * _BLOCK
