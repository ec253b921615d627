"""Rates of devices: operations and bytes a second, as their makers state them or as this machine was measured."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, Protocol

from vilavt_toolkit.errors import UsageError

GIB = 1 << 30
HALF_TYPES = ("bfloat16", "float16")

WorkKind = Literal[
    "matrix",
    "convolution",
    "attention",
    "attention backward",
    "causal attention",
    "causal attention backward",
    "function",
    "simple",
]
"""Kind of an operation: "function" computes exponentials and norms, "simple" all else that moves numbers."""


@dataclass(frozen=True)
class Work:
    """Holds what one operation takes of a device."""

    kind: WorkKind
    operations: int
    """Multiplications and additions of products."""
    moved: int
    """Bytes read and written."""
    number_type: str
    """Such as `float32`."""
    size: int = 1
    """Smallest dimension of a product, or the numbers of the keys of an attention head."""

    @property
    def is_attention(self) -> bool:
        """True for attention of any kind."""
        return "attention" in self.kind


class DeviceRates(Protocol):
    """Holds the rates of a device and the size of its memory."""

    @property
    def name(self) -> str:
        """The name by which it is told."""

    @property
    def memory(self) -> int:
        """Bytes."""

    @property
    def is_gpu(self) -> bool:
        """True if operations are started while others are computed."""

    def seconds(self, work: Work) -> float:
        """Return the seconds of one operation."""


@dataclass(frozen=True)
class Rates:
    """Rates of a device as it is described, the same for operations of all sizes."""

    name: str
    memory: int
    """Bytes of the device."""
    half_rate: float
    """Multiplications and additions of matrices a second that are reached, in bfloat16."""
    single_rate: float
    """The same in float32."""
    half_attention_rate: float
    single_attention_rate: float
    bandwidth: float
    """Bytes a second that are reached."""
    launch_seconds: float
    """Seconds that starting an operation takes."""
    is_gpu: bool = True

    def seconds(self, work: Work) -> float:
        """Return the seconds of one operation: it computes, moves bytes, or is waited for, whichever is longest."""
        is_half = work.number_type in HALF_TYPES
        if work.is_attention:
            rate = self.half_attention_rate if is_half else self.single_attention_rate
        else:
            rate = self.half_rate if is_half else self.single_rate
        return max(work.operations / rate, work.moved / self.bandwidth, self.launch_seconds)


def _state(name: str, memory: float, half: float, single: float, bandwidth: float) -> Rates:
    """Return the rates of a GPU: its memory in GiB as drivers report it, TFLOP/s of dense matrices, TB/s.

    Large products reach 70% of the stated rate, attention 45%, and simple kernels 80% of the bandwidth.
    """
    half, single = half * 1e12, single * 1e12
    return Rates(
        name, int(memory * GIB), 0.7 * half, 0.7 * single, 0.45 * half, 0.45 * single, 0.8 * bandwidth * 1e12, 5e-6
    )


STATED = {
    rates.name: rates
    for rates in (
        _state("h200", 140.4, 989, 67, 4.8),
        _state("h100", 79.6, 989, 67, 3.35),
        _state("b200", 178, 2250, 75, 7.7),
        _state("a100", 79.2, 312, 19.5, 2.04),
        _state("l40s", 44.9, 362, 91.6, 0.864),
        _state("rtx4090", 23.9, 165, 82.6, 1.008),
    )
}
"""Rates from the makers' data sheets, by name."""


DEFAULT_DEVICE = "h200"
_UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)


def find_rates(name: str) -> Rates:
    """Return the rates of a device by its name; raises UsageError."""
    if name not in STATED:
        raise UsageError(f"--device {name!r} is not known. Give one of {', '.join(STATED)}, or here.")
    return STATED[name]


def parse_memory(text: str) -> int:
    """Return the bytes of a size like 141GB, 80GiB or 24g; raises UsageError."""
    found = _SIZE.fullmatch(text.strip())
    if not found or not float(found[1]):
        raise UsageError(f"--device-memory {text!r} is no size. Give a number with a unit, like 141GB or 80GiB.")
    unit = found[2].upper()
    factor = 1024 ** (" KMGT".index(unit or " ")) if found[3] else _UNITS[unit]
    return int(float(found[1]) * factor)
