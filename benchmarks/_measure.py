"""How two sides of a comparison are timed, and how what was found is shown."""

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

from vilavt_toolkit.utils.versions import versions

NOT_MEASURED = "not measured"
Work = Callable[[], object]


@dataclass(frozen=True)
class Spread:
    """A median between its quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """The spread of one or more values."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(statistics.median(values), low, high)

    def text(self, form: str = ".2f") -> str:
        """The median, then the quartiles in brackets."""
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


def interleaved(sides: Mapping[str, Work], device: torch.device, repeats: int, warm: int = 2) -> dict[str, list[float]]:
    """Seconds of every side, one after the other in turns, so that whatever else the machine does meets all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(warm):
        for work in sides.values():
            work()
    names = list(sides)
    gc.collect()
    gc.disable()
    try:
        for repeat in range(repeats):
            for name in names if repeat % 2 == 0 else names[::-1]:
                seconds[name].append(_timed(sides[name], device))
    finally:
        gc.enable()
    return seconds


def _timed(work: Work, device: torch.device) -> float:
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compared(
    device: torch.device,
    what: str,
    sides: Mapping[str, Work],
    repeats: int,
    at_most: float = 0,
    at_least: float = 0,
    warm: int = 2,
) -> Row:
    """Time two sides, the first ours, and hold the ratio to a target.

    The ratio is ours over the peer's where there is an upper bound, else the peer's over ours: how often faster.
    """
    (ours, mine), (peer, theirs) = interleaved(sides, device, repeats, warm).items()
    pairs = zip(mine, theirs, strict=True)
    ratio = Spread.of([a / b if at_most or not at_least else b / a for a, b in pairs])
    met = None
    if at_most or at_least:
        met = ratio.median <= at_most if at_most else ratio.median >= at_least
    target = f"at most {at_most:g} x" if at_most else f"at least {at_least:g} x" if at_least else ""
    times = Spread.of([1e3 * s for s in mine]), Spread.of([1e3 * s for s in theirs])
    return Row(
        device=device.type,
        what=what,
        found=f"{ratio.text()} x",
        ours=f"{ours}: {times[0].text('.1f')} ms",
        peer=f"{peer}: {times[1].text('.1f')} ms",
        target=target,
        met=met,
        numbers={"ratio": asdict(ratio), "ours_ms": asdict(times[0]), "peer_ms": asdict(times[1])},
    )


def machine(device: str) -> str:
    """The processor, and the GPU where one was measured."""
    if device == "cuda":
        return f"one {torch.cuda.get_device_name()}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def facts(device: str, command: str) -> dict[str, Any]:
    """What figures are worth nothing without."""
    return {
        "machine": machine(device),
        "date": date.today().isoformat(),
        "versions": {"python": platform.python_version(), **versions()},
        "command": command,
    }


def put_between(page: Path, name: str, text: str) -> None:
    """Replace what stands between a page's marks `<!-- name -->` and `<!-- end name -->`."""
    begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    old = page.read_text(encoding="utf-8")
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    new, count = re.subn(pattern, lambda _: f"{begin}\n\n{text}\n\n{end}", old, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"{page} has no one place between {begin} and {end}; put the two lines back.")
    page.write_text(new, encoding="utf-8")


def markdown(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| what | found | ours | beside | target | met |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        met = {True: "yes", False: "**no**", None: ""}[row.met]
        lines.append(f"| {row.what} | {row.found} | {row.ours} | {row.peer} | {row.target} | {met} |")
    return "\n".join(lines)
