"""Small training stages in processes of their own, forked from one that has imported everything."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import timm  # noqa: F401
import torch
import transformers.models.llama.modeling_llama  # noqa: F401
from safetensors.torch import load_file
from torch.utils import tensorboard  # noqa: F401

from vilavt_toolkit.cli import app as cli
from vilavt_toolkit.registry.plugins import load_builtin
from vilavt_toolkit.training.reinforcement import run as _reinforcement  # noqa: F401
from vilavt_toolkit.training.supervised import run as _supervised  # noqa: F401

STAGES = ("train", "rl")

_REWARD = '''
from vilavt_toolkit.rewards import reward_function


@reward_function("evenness")
def evenness(sample, trajectory):
    """Share of produced tokens with an even id, which a random model can earn."""
    own = [token for token, mine in zip(trajectory.ids, trajectory.produced) if mine]
    return sum(token % 2 == 0 for token in own) / max(1, len(own))
'''

# Dropout, so that random numbers count, and workers, so that signals reach them too.
_RECIPE = """
plugins: [./evenness.py]
model:
  encoder:
    name: timm
    config: {img_size: 32, patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2, mlp_ratio: 2.0}
    overview_pixels: 1024
    zoom_pixels: 1024
  modulator: {name: film}
  projector: {name: mlp, hidden_dim: 32}
  language_model:
    name: hf_causal
    vocab_size: 400
    config: {model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4,
             num_key_value_heads: 2, max_position_embeddings: 384, initializer_range: 0.3, attention_dropout: 0.2}
  dialogue: {name: native, box_units: 4, system: ''}
task: {name: digit_scenes, size: 64, cells: 2, objects: 2, train_items: 32, test_items: 4}
train:
  steps: 14
  batch_size: 8
  checkpoint_every: 3
  workers: 2
  threads: 1
  accelerator: cpu
  optimizer: {name: adamw, lr: 1.0e-3}
rl:
  steps: 4
  inner_epochs: 3
  prompts_per_step: 2
  group_size: 4
  micro_batch: 3
  max_new_tokens: 8
  rewards: {name: evenness}
  optimizer: {name: adamw, lr: 1.0e-3}
  checkpoint_every: 2
  save_rollouts_every: 0
"""

STEPS = {"train": 14, "rl": 12}
"""Optimizer steps of each stage."""


@dataclass(frozen=True)
class Stage:
    """A stage with its run folder; `folder` holds the recipe and what reinforcement starts from."""

    name: str
    folder: Path
    run: Path

    def arguments(self, resume: bool) -> list[str]:
        """Return the command line, and write the recipe where it is missing."""
        recipe = self.folder / "stage.yaml"
        if not recipe.exists():
            (self.folder / "evenness.py").write_text(_REWARD, encoding="utf-8")
            recipe.write_text(_RECIPE, encoding="utf-8")
        places = [f"run={self.run}"]
        if self.name == "rl":
            places = [f"rl.run={self.run}", f"rl.init_from={self._start()}"]
        return [self.name, str(recipe), *places, *(["--resume"] if resume else [])]

    def remove(self) -> None:
        """Remove the run, and those that were moved out of its way."""
        for path in self.run.parent.glob(f"{self.run.name}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _start(self) -> Path:
        """Return the first stage's run that reinforcement starts from, trained on first use."""
        first = Stage("train", self.folder, self.folder / "train-whole")
        if not first.run.exists():
            run_stage(first)
        return first.run


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, None if it had to be killed; what it told; and processes that it left."""

    code: int | None
    error: str
    orphans: int

    @property
    def text(self) -> str:
        """The error output in one line, for the terminal breaks it anywhere."""
        return " ".join(self.error.split())


class Child:
    """A stage that runs in a process group of its own."""

    def __init__(self, process: int, log: Path) -> None:
        self._process, self._log = process, log

    def signal_group(self, number: int) -> None:
        """Send a signal to all processes of the group."""
        with suppress(ProcessLookupError):
            os.killpg(self._process, number)

    def kill(self, is_alone: bool) -> None:
        """Kill the process without warning, alone or with all of its group."""
        if is_alone:
            os.kill(self._process, signal.SIGKILL)
        else:
            self.signal_group(signal.SIGKILL)

    def wait(self, seconds: float = 300.0) -> Ended:
        """Wait for the end of the process, for `seconds` at most, and then of its group."""
        code = self._wait(seconds)
        if code is None:
            os.kill(self._process, signal.SIGKILL)
            os.waitpid(self._process, 0)
        orphans = self._count_group(5.0)
        self.signal_group(signal.SIGKILL)
        return Ended(code, self._log.read_text(encoding="utf-8", errors="replace"), orphans)

    def _wait(self, seconds: float) -> int | None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            process, status = os.waitpid(self._process, os.WNOHANG)
            if process:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        return None

    def _count_group(self, seconds: float) -> int:
        """Return how many processes of the group still live after some time."""
        until = time.monotonic() + seconds
        while (count := len(_list_group(self._process))) and time.monotonic() < until:
            time.sleep(0.02)
        return count


def start_stage(stage: Stage, resume: bool = False, files: int | None = None, megabytes: int | None = None) -> Child:
    """Start a stage in a forked process, with so many files or so much more memory at most."""
    arguments = stage.arguments(resume)
    log = stage.folder / f"{stage.run.name}.log"
    process = os.fork()
    if process:
        # From here too, since a signal to the group may be sent before the child has made it.
        with suppress(OSError):
            os.setpgid(process, process)
        return Child(process, log)
    code = 1
    try:
        os.setpgid(0, 0)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        _set_limits(files, megabytes)
        code = cli.run(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stderr.flush()
        os._exit(code)


def run_stage(
    stage: Stage,
    resume: bool = False,
    files: int | None = None,
    megabytes: int | None = None,
    seconds: float = 300.0,
) -> Ended:
    """Run a stage to its end, or kill it after `seconds`."""
    return start_stage(stage, resume, files, megabytes).wait(seconds)


def newest_step(run: Path) -> int | None:
    """Return the step of a run's newest checkpoint; None if it has none."""
    folder = run / "checkpoints"
    names = [path.name for path in folder.glob("step-*")] if folder.is_dir() else []
    return int(max(names)[5:]) if names else None


def list_different(stage: Stage, whole: Path) -> list[str]:
    """Return the tensors of the last checkpoint, weights and training state, that differ from an unbroken run's."""
    found: list[str] = []
    for name in ("model", "resume"):
        file = Path("checkpoints") / f"step-{STEPS[stage.name]:08d}" / f"{name}.safetensors"
        left, right = load_file(stage.run / file), load_file(whole / file)
        names = left.keys() | right.keys()
        found += [f"{name}: {key}" for key in names if key not in left or key not in right]
        found += [f"{name}: {key}" for key in left.keys() & right.keys() if not torch.equal(left[key], right[key])]
    return found


def _set_limits(files: int | None, megabytes: int | None) -> None:
    if files is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    if megabytes is not None:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        held = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmSize:"))
        limit = 1024 * held + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _list_group(group: int) -> list[int]:
    """Return the living processes of a group."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with suppress(OSError):
            state, _, member = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:3]
            if int(member) == group and state != "Z":
                found.append(int(entry.name))
    return found


# One thread: forked processes inherit no others.
torch.set_num_threads(1)
load_builtin()
