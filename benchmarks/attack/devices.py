"""Kill processes of a run on two devices at random moments: it always resumes, and ends as one that was left alone.

    python benchmarks/attack/devices.py --count 20

Each attempt starts `vilavt train ... --resume auto` with two processes on the CPU, and kills one of them, or the one
that launched them, with SIGKILL. All must have ended within 30 seconds.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from vilavt_toolkit.checkpoints.native import find_checkpoint
from vilavt_toolkit.errors import RunError

SECONDS = 30.0
"""In which all processes of a run must have ended after one was killed."""
RECIPE = "vilavt_7b/tiny_sft_8gpu"
_START = "from vilavt_toolkit.cli import main; main()"


def start_run(run: Path, settings: list[str]) -> subprocess.Popen[bytes]:
    """Start or resume the run."""
    arguments = ["train", RECIPE, f"run={run}", "train.checkpoint_every=2", *settings, "--resume", "auto"]
    return subprocess.Popen([sys.executable, "-c", _START, *arguments], stdout=subprocess.DEVNULL)


def find_step(run: Path) -> int:
    """Return the step of the newest checkpoint; 0 before there is one."""
    try:
        return int(find_checkpoint(run).name[5:])
    except RunError:
        return 0


def list_children(process: int) -> list[int]:
    """Return the processes that a process has started."""
    file = Path(f"/proc/{process}/task/{process}/children")
    return [int(number) for number in file.read_text().split()] if file.is_file() else []


def kill_one(run: Path, settings: list[str], chance: random.Random) -> float | None:
    """Start the run and kill one of its processes; return the seconds until all had ended, None if it ended before."""
    process, begun = start_run(run, settings), find_step(run)
    # Half of the moments lie in the start, where no step has been taken yet, the other half while it trains.
    waits_for_step, until = chance.random() < 0.5, time.monotonic() + 120
    while waits_for_step and find_step(run) == begun and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(chance.uniform(0, 0.5 if waits_for_step else 10.0))
    ranks = list_children(process.pid)
    victim = chance.choice([*ranks, process.pid])
    if process.poll() is not None:
        return None
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    while any(_is_alive(each) for each in ranks) or process.poll() is None:
        if time.monotonic() - killed > SECONDS:
            raise SystemExit(f"processes live on {SECONDS:.0f} seconds after {victim} was killed")
        time.sleep(0.05)
    return time.monotonic() - killed


def _is_alive(process: int) -> bool:
    try:
        # A process whose parent was killed may wait for another one to take notice of its end.
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def list_different(found: Path, expected: Path) -> list[str]:
    """Return the tensors of the newest checkpoints that differ in a bit."""
    different = []
    for name in ("model", "resume"):
        left, right = (load_file(find_checkpoint(run) / f"{name}.safetensors") for run in (found, expected))
        different += [key for key in right if key not in left or not torch.equal(left[key], right[key])]
    return different


def main() -> int:
    """Run the campaign; returns 1 if the killed run is not the unbroken one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20, help="kills (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments and processes")
    parser.add_argument("--strategy", choices=["replicated", "fsdp2"], default="fsdp2", help="default fsdp2")
    options = parser.parse_args()
    chance, slowest = random.Random(options.seed), 0.0
    settings = [f"train.strategy={options.strategy}", f"train.steps={4 * options.count + 8}", "train.threads=1"]
    with tempfile.TemporaryDirectory() as name:
        run, whole = Path(name, "killed"), Path(name, "whole")
        for number in range(options.count):
            seconds = kill_one(run, settings, chance)
            slowest = max(slowest, seconds or 0.0)
            told = "it had ended" if seconds is None else f"all ended in {seconds:.1f} s"
            print(f"kill {number + 1}: {told}, the newest checkpoint is step {find_step(run)}", flush=True)
        codes = [start_run(each, settings).wait() for each in (run, whole)]
        if codes != [0, 0]:
            print(f"the runs end with codes {codes}")
            return 1
        different = list_different(run, whole)
        print(f"{options.count} kills, slowest end {slowest:.1f} s, {len(different)} tensors differ {different[:3]}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
