"""Kill processes of a run on two devices while a checkpoint is written: it always resumes, and ends as one left alone.

    python benchmarks/attack/devices.py --count 20

Each attempt starts `vilavt train ... --resume auto` with two processes on the CPU. At a random moment behind the
beginning of a random checkpoint it kills one of them, or the one that launched them, with SIGKILL. All must have ended
within 30 seconds. The newest checkpoint must then be whole, and no older than the one before.
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
from contextlib import suppress
from pathlib import Path

import torch
from _campaign import Campaign, Finding, write_reports
from safetensors.torch import load_file

import vilavt_toolkit as vt
from vilavt_toolkit.checkpoints.native import find_checkpoint
from vilavt_toolkit.checkpoints.tensor_files import list_tensor_files
from vilavt_toolkit.checkpoints.training_state import load_training_state
from vilavt_toolkit.errors import RunError

SECONDS = 30.0
"""In which all processes of a run must have ended after one was killed."""
RECIPE = "vilavt_7b/tiny_sft_8gpu"
VARIANTS = {
    "fsdp2": ["train.strategy=fsdp2"],
    "fsdp2, in the background": ["train.strategy=fsdp2", "train.save_in_background=true"],
    "replicated": ["train.strategy=replicated"],
}
_START = "from vilavt_toolkit.cli import main; main()"
_WRITE_SECONDS = 0.15
"""About as long as a checkpoint of the tiny model is written."""
_MOST_SKIPPED = 3
"""Checkpoints of a start that may be written before the one at which a process is killed."""


def start_run(run: Path, settings: list[str]) -> subprocess.Popen[bytes]:
    """Start or resume the run."""
    arguments = ["train", RECIPE, f"run={run}", "train.checkpoint_every=1", *settings, "--resume", "auto"]
    told = run.with_suffix(".told").open("wb")
    return subprocess.Popen([sys.executable, "-c", _START, *arguments], stdout=subprocess.DEVNULL, stderr=told)


def find_step(run: Path) -> int:
    """Return the step of the newest checkpoint; 0 before there is one."""
    try:
        return int(find_checkpoint(run).name[5:])
    except RunError:
        return 0


def list_half_written(run: Path) -> set[str]:
    """Return the hidden folders of checkpoints that have no place yet."""
    return {path.name for path in run.glob("checkpoints/.step-*")}


def list_children(process: int) -> list[int]:
    """Return the processes that a process has started."""
    file = Path(f"/proc/{process}/task/{process}/children")
    return [int(number) for number in file.read_text().split()] if file.is_file() else []


def await_write(run: Path, process: subprocess.Popen[bytes], chance: random.Random) -> None:
    """Wait for a random moment behind the beginning of a random checkpoint."""
    left, begun, until = chance.randrange(_MOST_SKIPPED + 1), list_half_written(run), time.monotonic() + 180
    while left >= 0 and process.poll() is None and time.monotonic() < until:
        found = list_half_written(run)
        left -= len(found - begun)
        begun |= found
        time.sleep(0.001)
    time.sleep(chance.uniform(0, _WRITE_SECONDS))


def kill_one(run: Path, settings: list[str], chance: random.Random) -> tuple[str, float]:
    """Start the run and kill one of its processes; return the outcome, and the seconds until all had ended."""
    before, process = find_step(run), start_run(run, settings)
    await_write(run, process, chance)
    ranks = list_children(process.pid)
    victim = chance.choice([*ranks, process.pid])
    if process.poll() is not None:
        return "wrong", 0.0
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    while any(_is_alive(each) for each in ranks) or process.poll() is None:
        if time.monotonic() - killed > SECONDS:
            alive = [each for each in [*ranks, process.pid] if each != victim and _is_alive(each)]
            print(f"{victim} was killed, {alive} of launcher {process.pid} and {ranks} live on", flush=True)
            for each in alive:
                with suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
            return "hang", time.monotonic() - killed
        time.sleep(0.05)
    seconds, step = time.monotonic() - killed, find_step(run)
    if b"Traceback" in run.with_suffix(".told").read_bytes():
        return "traceback", seconds
    if step < before or (step and not _is_whole(run)):
        return "wrong", seconds
    return "killed while it was written" if list_half_written(run) else "killed when it was written", seconds


def _is_alive(process: int) -> bool:
    try:
        # A process whose parent was killed may wait for another one to take notice of its end.
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _is_whole(run: Path) -> bool:
    """Return True if the newest checkpoint can be loaded, and its training state too."""
    try:
        vt.load(run)
        load_training_state(find_checkpoint(run))
    except RunError:
        return False
    return True


def list_different(found: Path, expected: Path) -> list[str]:
    """Return the tensors of the newest checkpoints that differ in a bit."""
    different = []
    for stem in ("model", "resume"):
        left, right = (
            {
                key: value
                for file in list_tensor_files(find_checkpoint(run), stem)
                for key, value in load_file(file).items()
            }
            for run in (found, expected)
        )
        different += [key for key in right if key not in left or not torch.equal(left[key], right[key])]
    return different


def attack(variant: str, options: argparse.Namespace, folder: Path) -> Campaign:
    """Kill a run of a variant as often as is asked for, let it go on, and compare its end with the unbroken one's."""
    campaign = Campaign(f"two devices, {variant}")
    chance = random.Random(f"{variant}, seed {options.seed}")
    steps = (_MOST_SKIPPED + 2) * (options.count + 1)
    settings = [*VARIANTS[variant], f"train.steps={steps}", "train.threads=1", "train.keep_checkpoints=2"]
    run, whole = folder / f"{variant}-killed", folder / f"{variant}-whole"
    for number in range(options.count):
        outcome, seconds = kill_one(run, settings, chance)
        if outcome in ("wrong", "hang", "traceback"):
            told = run.with_suffix(".told").read_text(errors="replace")[-4000:]
            campaign.findings.append(Finding(f"{variant}, seed {options.seed}, kill {number}", outcome, told))
        campaign.outcomes[outcome] += 1
        campaign.slowest = max(campaign.slowest, seconds)
        print(f"{variant}, kill {number}: {outcome}, {seconds:.1f} s, newest step {find_step(run)}", flush=True)
    codes = [start_run(each, settings).wait() for each in (run, whole)]
    different = list_different(run, whole) if codes == [0, 0] else [f"exit codes {codes}"]
    campaign.outcomes["wrong" if different or list_half_written(run) else "resumed to its end, equal to the bit"] += 1
    if different:
        campaign.findings.append(Finding(f"{variant}, seed {options.seed}", "wrong", f"they differ: {different[:3]}"))
    return campaign


def main() -> int:
    """Run the campaigns; returns 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20, help="kills of each variant (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments and processes")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="variants")
    parser.add_argument("--json", type=Path, help="write the outcomes into this file")
    options = parser.parse_args()
    found, campaigns = 0, []
    with tempfile.TemporaryDirectory() as folder:
        for variant in options.only:
            campaign = attack(variant, options, Path(folder))
            found += campaign.report(None)
            campaigns.append(campaign)
    if options.json is not None:
        write_reports(options.json, campaigns)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
