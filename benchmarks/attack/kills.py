"""Training stages that are killed, asked to end, or short of files and memory; then resumed and compared to the bit.

python benchmarks/attack/kills.py              # 20 cases of each kind in each stage
python benchmarks/attack/kills.py --quick      # 3 of each
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from _campaign import Campaign, Finding, write_reports
from _stages import STAGES, STEPS, Ended, Stage, list_different, newest_step, run_stage, start_stage

from vilavt_toolkit.registry.trust import SETTINGS_VARIABLE

SIGNALS = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]
FILE_LIMITS = [10, 12, 14, 16, 20, 24, 32, 40, 64]
"""Numbers of open files. A process that has imported everything holds about eight."""
MEMORY_LIMITS = [64, 96, 128, 192, 256]
"""MiB that a stage may take beyond what its process has when it begins."""


class Wrong(Exception):
    """A case that did not end as it should."""

    is_hang = False


class Hang(Wrong):
    """A case that did not end at all."""

    is_hang = True


def kill(stage: Stage, whole: Path, seconds: float, chance: random.Random) -> str:
    """Kill a run without warning at a random moment, let it go on, and compare its end with the unbroken one's."""
    child = start_stage(stage)
    await_moment(stage, seconds, chance)
    step = newest_step(stage.run)
    child.kill(is_alone=chance.random() < 0.5)
    ended = child.wait()
    require_no_orphan(ended)
    if ended.code == 0:
        outcome = "had ended"
    else:
        outcome = "killed before the first checkpoint" if step is None else "killed, resumed and equal"
        finish(stage)
    require_equal(stage, whole)
    return outcome


def ask_to_end(stage: Stage, whole: Path, seconds: float, chance: random.Random) -> str:
    """Send a signal to all processes of a run; what it then saves goes on to the unbroken run's end."""
    number = chance.choice(SIGNALS)
    child = start_stage(stage)
    await_moment(stage, seconds, chance)
    child.signal_group(number)
    ended = child.wait()
    require_no_orphan(ended)
    require_sentence(ended)
    if ended.code == 0:
        require_equal(stage, whole)
        return "had ended"
    # Before the command has begun, Python and the system end a process in their own ways.
    codes = {130, -signal.SIGINT} if number == signal.SIGINT else {143, -number}
    if ended.code not in codes:
        raise Wrong(f"{number.name} ended it with code {ended.code}\n{ended.error}")
    has_stepped = "the run stops after this step is saved" in ended.text
    if has_stepped and newest_step(stage.run) is None:
        raise Wrong(f"{number.name}: nothing is saved\n{ended.error}")
    finish(stage)
    require_equal(stage, whole)
    return f"{number.name}, saved and equal" if has_stepped else f"{number.name} before the first step"


def limit_files(stage: Stage, whole: Path, seconds: float, chance: random.Random) -> str:
    """Let a run open few files only: it goes through, or says in a sentence how to raise the limit."""
    count = chance.choice(FILE_LIMITS)
    ended = run_stage(stage, files=count, seconds=20 * seconds + 60)
    require_no_orphan(ended)
    require_sentence(ended)
    if ended.code == 0:
        require_equal(stage, whole)
        return "enough files"
    if "ulimit -n" not in ended.text:
        raise Wrong(f"{count} files: code {ended.code}\n{ended.error}")
    return "too few files, told in a sentence"


def limit_memory(stage: Stage, whole: Path, seconds: float, chance: random.Random) -> str:
    """Let a run take little memory only: it goes through, or says in a sentence that there is too little."""
    megabytes = chance.choice(MEMORY_LIMITS)
    ended = run_stage(stage, megabytes=megabytes, seconds=20 * seconds + 60)
    require_no_orphan(ended)
    require_sentence(ended)
    if ended.code == 0:
        require_equal(stage, whole)
        return "enough memory"
    return "too little memory, told in a sentence"


KINDS: dict[str, Callable[[Stage, Path, float, random.Random], str]] = {
    "kill": kill,
    "signal": ask_to_end,
    "files": limit_files,
    "memory": limit_memory,
}


def await_moment(stage: Stage, seconds: float, chance: random.Random) -> None:
    """Wait for a random moment of a run: anywhere in its time, or shortly behind one of its checkpoints."""
    until = time.monotonic() + chance.uniform(0, seconds)
    if chance.random() < 0.75:
        step, until = chance.randrange(STEPS[stage.name]), time.monotonic() + 3 * seconds
        while (newest_step(stage.run) or 0) < step and time.monotonic() < until:
            time.sleep(0.002)
        until = time.monotonic() + chance.uniform(0, 0.3)
    time.sleep(max(0.0, until - time.monotonic()))


def finish(stage: Stage) -> None:
    """Resume a run, or begin it again if it has no checkpoint yet; raises Wrong if it does not reach its end."""
    ended = run_stage(stage, resume=newest_step(stage.run) is not None)
    if ended.code != 0:
        raise Wrong(f"resuming ends with code {ended.code}\n{ended.error}")


def require_equal(stage: Stage, whole: Path) -> None:
    """Raise Wrong unless weights, optimizer and random numbers are those of the unbroken run, to the bit."""
    if different := list_different(stage, whole):
        raise Wrong(f"{len(different)} tensors differ, like {different[0]}")


def require_no_orphan(ended: Ended) -> None:
    """Raise Wrong if a process of the run lives on."""
    if ended.orphans:
        raise Wrong(f"{ended.orphans} processes live on\n{ended.error}")


def require_sentence(ended: Ended) -> None:
    """Raise Wrong if a run did not end in time, or not in a sentence."""
    if ended.code is None:
        raise Hang(ended.error)
    if "Traceback" in ended.error:
        raise Wrong(f"code {ended.code}\n{ended.error}")


def attack(stage_name: str, kind: str, options: argparse.Namespace, folder: Path) -> Campaign:
    """Run the cases of a kind in a stage."""
    campaign = Campaign(f"{stage_name}: {kind}")
    whole = Stage(stage_name, folder, folder / f"{stage_name}-whole")
    started = time.monotonic()
    if not whole.run.exists():
        finish(whole)
    seconds = max(1.0, time.monotonic() - started) if stage_name not in _durations else _durations[stage_name]
    _durations[stage_name] = seconds
    for number in range(options.first, options.first + options.count):
        begun, case = time.monotonic(), f"{campaign.name}, seed {options.seed}, case {number}"
        stage = Stage(stage_name, folder, folder / f"{stage_name}-{kind}-{number}")
        try:
            outcome = KINDS[kind](stage, whole.run, seconds, random.Random(case))
        except Wrong as wrong:
            outcome = "hang" if wrong.is_hang else "traceback" if "Traceback" in str(wrong) else "wrong"
            campaign.findings.append(Finding(case, outcome, str(wrong)[-4000:]))
        campaign.outcomes[outcome] += 1
        campaign.slowest = max(campaign.slowest, time.monotonic() - begun)
        stage.remove()
    return campaign


_durations: dict[str, float] = {}
"""Seconds that an unbroken run of each stage takes here."""


def main() -> int:
    """Run the campaigns; returns 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20, help="cases of each kind in each stage (default 20)")
    parser.add_argument("--quick", action="store_true", help="3 cases of each kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first case, to run one again")
    parser.add_argument("--seed", type=int, default=0, help="seed of the cases")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of cases")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="stages")
    parser.add_argument("--json", type=Path, help="write the outcomes into this file")
    options = parser.parse_args()
    options.count = 3 if options.quick else options.count
    found, campaigns = 0, []
    with tempfile.TemporaryDirectory() as folder:
        # The plugin of the recipe is remembered as trusted, here and not among the user's own.
        os.environ[SETTINGS_VARIABLE] = folder
        for stage in options.stages:
            for kind in options.only:
                campaign = attack(stage, kind, options, Path(folder))
                found += campaign.report(None)
                campaigns.append(campaign)
    if options.json is not None:
        write_reports(options.json, campaigns)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
