"""Timing of the two sides of a comparison, and tables of the results."""

from __future__ import annotations

import gc
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch

from vilavt_toolkit.packed.varlen import allow_cudnn_attention
from vilavt_toolkit.utils.versions import collect_versions

NOT_MEASURED = "not measured"
Work = Callable[[], object]


@dataclass(frozen=True)
class Spread:
    """A median between its quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def from_values(cls, values: list[float]) -> Spread:
        """Return the spread of one or more values."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(statistics.median(values), low, high)

    def to_text(self, form: str = ".2f") -> str:
        """Write the median, then the quartiles in brackets."""
        return f"{self.median:{form}} [{self.low:{form}}, {self.high:{form}}]"


@dataclass(frozen=True)
class Row:
    """One line of the table; `met` is None where there is no target, or nothing was measured."""

    device: str
    what: str
    found: str = NOT_MEASURED
    ours: str = ""
    peer: str = ""
    target: str = ""
    met: bool | None = None
    numbers: Mapping[str, Any] = field(default_factory=dict)


def time_interleaved(
    sides: Mapping[str, Work], device: torch.device, repeats: int, warm: int = 2
) -> dict[str, list[float]]:
    """Return the seconds of every side, timed by turns so that other work on the machine affects all sides alike."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(warm):
        for work in sides.values():
            work()
    names = list(sides)
    # Garbage collection would hit whichever side runs at that moment.
    gc.collect()
    gc.disable()
    try:
        for repeat in range(repeats):
            # Every other round backwards, so that no side always runs after the same one.
            for name in names if repeat % 2 == 0 else names[::-1]:
                seconds[name].append(_time_once(sides[name], device))
    finally:
        gc.enable()
    return seconds


def _time_once(work: Work, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compare_sides(
    device: torch.device,
    what: str,
    sides: Mapping[str, Work],
    repeats: int,
    at_most: float = 0,
    at_least: float = 0,
    warm: int = 2,
) -> Row:
    """Time two sides, ours first, and compare their ratio with a target.

    With an upper bound the ratio is our time over the peer's, with a lower bound the peer's over ours: the speed-up.
    """
    (ours, mine), (peer, theirs) = time_interleaved(sides, device, repeats, warm).items()
    # Ratios within each round: what slows the machine down for a while cancels out.
    pairs = zip(mine, theirs, strict=True)
    ratio = Spread.from_values([a / b if at_most or not at_least else b / a for a, b in pairs])
    met = None
    if at_most or at_least:
        met = ratio.median <= at_most if at_most else ratio.median >= at_least
    target = f"at most {at_most:g} x" if at_most else f"at least {at_least:g} x" if at_least else ""
    times = Spread.from_values([1e3 * s for s in mine]), Spread.from_values([1e3 * s for s in theirs])
    return Row(
        device=device.type,
        what=what,
        found=f"{ratio.to_text()} x",
        ours=f"{ours}: {times[0].to_text('.1f')} ms",
        peer=f"{peer}: {times[1].to_text('.1f')} ms",
        target=target,
        met=met,
        numbers={"ratio": asdict(ratio), "ours_ms": asdict(times[0]), "peer_ms": asdict(times[1])},
    )


def with_cudnn_attention(work: Work, allowed: bool) -> Work:
    """Return the work with cuDNN's attention allowed or not, whatever it was before."""

    def run() -> object:
        before = torch.backends.cuda.cudnn_sdp_enabled()
        allow_cudnn_attention(allowed)
        try:
            return work()
        finally:
            allow_cudnn_attention(before)

    return run


def describe_machine(device: str) -> str:
    """Name the GPU that was measured, or else the processor."""
    if device == "cuda":
        return f"one {torch.cuda.get_device_name()}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def measurement_facts(device: str, command: str) -> dict[str, Any]:
    """Return the circumstances without which figures mean nothing: machine, date, versions, command."""
    return {
        "machine": describe_machine(device),
        "date": date.today().isoformat(),
        "versions": {"python": platform.python_version(), **collect_versions()},
        "command": command,
    }


def replace_section(page: Path, name: str, text: str) -> None:
    """Replace the text between a page's marks `<!-- name -->` and `<!-- end name -->`."""
    begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    old = page.read_text(encoding="utf-8")
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    new, count = re.subn(pattern, lambda _: f"{begin}\n\n{text}\n\n{end}", old, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"{page} must have {begin} and {end} exactly once. Put the two lines back.")
    page.write_text(new, encoding="utf-8")


def format_table(rows: list[Row]) -> str:
    """Write rows as a Markdown table."""
    lines = ["| what | found | ours | beside | target | met |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        met = {True: "yes", False: "**no**", None: ""}[row.met]
        lines.append(f"| {row.what} | {row.found} | {row.ours} | {row.peer} | {row.target} | {met} |")
    return "\n".join(lines)
