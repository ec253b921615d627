"""Rates that `vilavt plan --calibrate` has measured on this machine, and the user's file that keeps them."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vilavt_toolkit.errors import UsageError
from vilavt_toolkit.planning.rates import DEFAULT_DEVICE, HALF_TYPES, DeviceRates, Work, find_rates
from vilavt_toolkit.registry.trust import SETTINGS_VARIABLE, settings_folder
from vilavt_toolkit.utils.files import read_json, write_json

Curve = tuple[tuple[float, float], ...]
"""Points (size, rate) by rising size; the rate is in operations or bytes a second."""

HERE = "here"
"""Name of this machine as a device to plan for."""
_FILE = "rates.json"
_BY_BYTES = ("simple", "function")


@dataclass(frozen=True)
class MeasuredRates:
    """Rates that were measured on a machine."""

    machine: str
    memory: int
    """Bytes."""
    threads: int
    """Threads of a CPU that were measured."""
    measured: str
    """The date, as 2026-11-30."""
    versions: dict[str, str]
    start_seconds: float
    """Seconds of an operation without numbers."""
    curves: dict[str, Curve]
    """Rates by kind of work and type of numbers, such as `matrix float32`: by the smallest dimension of a product, the
    numbers of the keys of a head, or the bytes that are moved."""
    is_gpu: bool = False

    @property
    def name(self) -> str:
        """The machine and how it was measured."""
        threads = "" if self.is_gpu else f", {self.threads} thread{'s' if self.threads > 1 else ''}"
        torch = self.versions.get("torch", "an unknown version")
        return f"this machine ({self.machine}{threads}, measured on {self.measured} with torch {torch})"

    def seconds(self, work: Work) -> float:
        """Return the seconds of one operation. A GPU starts operations while it computes, and a CPU does not."""
        amount = work.moved if work.kind in _BY_BYTES else work.operations
        size = work.moved if work.kind in _BY_BYTES else work.size
        number_type = "bfloat16" if work.number_type in HALF_TYPES else "float32"
        computing = amount / interpolate(self.curves[f"{work.kind} {number_type}"], size)
        return max(computing, self.start_seconds) if self.is_gpu else computing + self.start_seconds


def interpolate(curve: Sequence[tuple[float, float]], size: float) -> float:
    """Return the rate at a size: straight between two points on axes of logarithms, and constant beyond the ends."""
    place = bisect_right([point for point, _ in curve], size)
    if place == 0:
        return curve[0][1]
    if place == len(curve):
        return curve[-1][1]
    (low, slow), (high, fast) = curve[place - 1], curve[place]
    share = math.log(size / low) / math.log(high / low)
    return slow * math.exp(share * math.log(fast / slow))


def save_rates(rates: MeasuredRates) -> Path:
    """Keep the rates of this machine for this user, in place of earlier ones; raises UsageError."""
    file = _find_file()
    if file is None:
        raise UsageError(f"Rates cannot be kept, since this user has no home folder. Set {SETTINGS_VARIABLE} to one.")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, asdict(rates))
    except OSError as error:
        raise UsageError(
            f"{file} cannot be written ({error.strerror}). Set {SETTINGS_VARIABLE} to a folder that can be."
        ) from error
    return file


def load_rates() -> MeasuredRates | None:
    """Return the rates that were kept for this user; None if there are none. Raises UsageError for a damaged file."""
    file = _find_file()
    if file is None or not file.exists():
        return None
    try:
        found: dict[str, Any] = read_json(file)
        rates = MeasuredRates(**found)
        curves = {name: tuple((float(size), float(rate)) for size, rate in each) for name, each in rates.curves.items()}
        return replace(rates, curves=curves)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{file} holds no rates of a machine. Measure again: vilavt plan --calibrate") from error


def find_measured_rates() -> MeasuredRates:
    """Return the rates that were kept for this user; raises UsageError."""
    rates = load_rates()
    if rates is None:
        raise UsageError(f"--device {HERE} has not been measured yet. Measure it: vilavt plan --calibrate")
    return rates


def choose_rates(name: str | None, is_cpu: bool = False) -> DeviceRates:
    """Return the rates of a device by its name; raises UsageError.

    None is this machine for a recipe of the CPU, if its CPU was measured, and else an H200.
    """
    if name == HERE:
        return find_measured_rates()
    if name is None and is_cpu:
        rates = load_rates()
        if rates is not None and not rates.is_gpu:
            return rates
    return find_rates(name or DEFAULT_DEVICE)


def _find_file() -> Path | None:
    folder = settings_folder()
    return None if folder is None else folder / _FILE
