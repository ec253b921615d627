"""Campaigns: many hostile inputs, one after another in this process, each within limits of time and memory."""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import json
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

SECONDS = 10.0
"""Processor time after which a case counts as a hang."""
WAITING = 60.0
"""Seconds by the clock after which it does, too: a case that waits takes no processor time."""
GROWTH = 1_000_000_000
"""Bytes of memory by which a case may grow the process."""


class _Hang(BaseException):
    """The time of a case is over. No `except Exception` of the tested code may catch it."""


@dataclass
class Finding:
    """A case that did not end as it should."""

    case: str
    """What finds the input again, like `seed 0, case 17`."""
    outcome: str
    detail: str


@dataclass
class Campaign:
    """The outcomes of all cases of a campaign."""

    name: str
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    slowest: float = 0.0
    largest_growth: int = 0

    def run_case(self, case: str, attempt: Callable[[], str]) -> None:
        """Run one case, and record the outcome that `attempt` returns, or what went wrong."""
        _forget_peak()
        memory, started = _read_bytes("VmRSS"), time.process_time()
        try:
            with _time_limit():
                outcome = attempt()
        except _Hang as error:
            outcome = "hang"
            self.findings.append(Finding(case, outcome, _shorten_trace("".join(traceback.format_exception(error)))))
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            outcome = "traceback"
            self.findings.append(Finding(case, outcome, _shorten_trace("".join(traceback.format_exception(error)))))
        growth = _read_bytes("VmHWM") - memory
        if growth > GROWTH:
            self.findings.append(Finding(case, "growth", f"{growth:,} bytes"))
            outcome = "growth"
        self.outcomes[outcome] += 1
        self.slowest = max(self.slowest, time.process_time() - started)
        self.largest_growth = max(self.largest_growth, growth)

    def to_json(self) -> dict[str, Any]:
        """Return the campaign as plain data, for `report.py`."""
        return {**asdict(self), "outcomes": dict(self.outcomes)}

    def report(self, file: Path | None) -> int:
        """Print the outcomes and findings, write them as JSON, and return the exit code: 1 if anything was found."""
        total = sum(self.outcomes.values())
        print(f"\n{self.name}: {total} cases, slowest {self.slowest:.1f} s, growth {self.largest_growth / 1e6:,.0f} MB")
        for outcome, count in self.outcomes.most_common():
            print(f"  {count:>6}  {outcome}")
        for finding in self.findings:
            print(f"\n{finding.case}: {finding.outcome}\n{finding.detail}")
        if file is not None:
            write_reports(file, [self])
        return 1 if self.findings else 0


def write_reports(file: Path, campaigns: Sequence[Campaign]) -> None:
    """Write the outcomes of campaigns as JSON, for `report.py`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps([each.to_json() for each in campaigns], indent=2) + "\n", encoding="utf-8")


def parse_options(description: str, count: int) -> argparse.Namespace:
    """Parse the options that all campaigns have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--count", type=int, default=count, help=f"number of cases (default {count})")
    parser.add_argument("--first", type=int, default=0, help="number of the first case, to run one again")
    parser.add_argument("--seed", type=int, default=0, help="seed of the cases")
    parser.add_argument("--json", type=Path, help="write the outcomes into this file")
    return parser.parse_args()


def run_quietly(command: Callable[[], Any]) -> str:
    """Run a command with its output captured, and return the output."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        command()
    return shown.getvalue()


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def end(number: int, frame: FrameType | None) -> None:
        raise _Hang

    limits = [(signal.ITIMER_PROF, signal.SIGPROF, SECONDS), (signal.ITIMER_REAL, signal.SIGALRM, WAITING)]
    before = [signal.signal(number, end) for _, number, _ in limits]
    for timer, _, seconds in limits:
        signal.setitimer(timer, seconds)
    # Native code does not see the signals. Then the whole campaign ends, with the place where it stands.
    faulthandler.dump_traceback_later(2 * WAITING, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        for timer, _, _ in limits:
            signal.setitimer(timer, 0)
        for (_, number, _), handler in zip(limits, before, strict=True):
            signal.signal(number, handler)


def _forget_peak() -> None:
    """Let the kernel measure the peak of this process's memory from here on, where it can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _read_bytes(key: str) -> int:
    """Return a figure of this process's memory: VmRSS is what it holds, VmHWM its peak. 0 where there are none."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii").splitlines() if status.is_file() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), 0)


def _shorten_trace(text: str) -> str:
    # A value of the input may be in it, as long as the input.
    return "\n".join(line[:300] for line in text.splitlines()[-40:])
