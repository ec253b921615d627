"""Run in a process of its own: imports once, then forks the processes of one run after another, and prints outcomes.

Arguments: the folders of the packages, and a JSON list of runs. Each run has its command, its number of processes,
and what is to happen:

copy        [run, copy, step]: the checkpoint that is to be the newest of the copy
gradients   file for those of every step
signal      [rank, number]: sent in its second step
broken      [rank, index]: the sample that this process cannot read
full        a rank whose disk is full
killed      [rank, number]: ended by SIGKILL in the middle of its file of this number, counted from 0
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Any


def run_all(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    import timm  # noqa: F401
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    from vilavt_toolkit.registry.plugins import load_builtin
    from vilavt_toolkit.training.supervised import run  # noqa: F401

    torch.set_num_threads(1)
    load_builtin()
    return [run_ranks(**each) for each in runs]


def run_ranks(command: list[str], size: int = 1, **happens: Any) -> dict[str, Any]:
    """Fork the processes of a run; return their exit codes, what each wrote on stderr, and the seconds it took."""
    if "copy" in happens:
        _copy_run(*happens["copy"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with ExitStack() as stack:
        told = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(size)]
        return _wait_for_ranks(command, size, port, told, happens)


def _wait_for_ranks(
    command: list[str], size: int, port: int, told: list[Any], happens: dict[str, Any]
) -> dict[str, Any]:
    started = time.monotonic()
    children = [_fork_rank(command, rank, size, port, told[rank], happens) for rank in range(size)]
    codes: list[int | None] = [None] * size
    until = time.monotonic() + 120
    while None in codes and time.monotonic() < until:
        time.sleep(0.02)
        for rank, child in enumerate(children):
            if codes[rank] is None and (ended := os.waitpid(child, os.WNOHANG))[0]:
                codes[rank] = os.waitstatus_to_exitcode(ended[1])
    for child, code in zip(children, codes, strict=True):
        if code is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    for file in told:
        file.seek(0)
    texts = [file.read().decode() for file in told]
    return {"codes": codes, "told": texts, "seconds": time.monotonic() - started}


def _copy_run(run: str, copy: str, step: int) -> None:
    shutil.copytree(run, copy)
    for folder in Path(copy, "checkpoints").glob("step-*"):
        if int(folder.name[5:]) > step:
            shutil.rmtree(folder)


def _fork_rank(command: list[str], rank: int, size: int, port: int, told: Any, happens: dict[str, Any]) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        os.dup2(told.fileno(), 2)
        if size > 1:
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in numbers.items()}, MASTER_ADDR="127.0.0.1")
        _prepare(rank, happens)
        from vilavt_toolkit.cli import app

        code = app.run(command)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _prepare(rank: int, happens: dict[str, Any]) -> None:
    if file := happens.get("gradients"):
        _keep_gradients(f"{file}-{rank}")
    if "signal" in happens and happens["signal"][0] == rank:
        _send_signal(happens["signal"][1])
    if "broken" in happens and happens["broken"][0] == rank:
        _break_sample(happens["broken"][1])
    if happens.get("full") == rank:
        _fill_disk()
    if "killed" in happens and happens["killed"][0] == rank:
        _kill_while_writing(happens["killed"][1])


def _keep_gradients(file: str) -> None:
    """Write the loss and the gradients of every step, as they are before they are clipped."""
    import torch
    from safetensors.torch import save_file

    from vilavt_toolkit.training.stage import StageModule

    original, steps = StageModule.on_before_optimizer_step, []

    def keep(module: Any, optimizer: Any) -> None:
        named = module.model.named_parameters()
        found = {name: whole(weight.grad) for name, weight in named if weight.grad is not None}
        steps.append({**found, "loss": module._loss.clone()})
        save_file(
            {
                f"{number}/{name}": value.contiguous()
                for number, step in enumerate(steps)
                for name, value in step.items()
            },
            file,
        )
        original(module, optimizer)

    def whole(gradient: Any) -> torch.Tensor:
        value = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
        return value.detach().clone()

    StageModule.on_before_optimizer_step = keep  # type: ignore[method-assign]


def _send_signal(number: int) -> None:
    from vilavt_toolkit.training.stage import StageModule

    original = StageModule.begin_step

    def send(module: Any) -> Any:
        if module.step == 1:
            os.kill(os.getpid(), number)
        return original(module)

    StageModule.begin_step = send  # type: ignore[method-assign]


def _break_sample(index: int) -> None:
    from vilavt_toolkit.errors import InputError
    from vilavt_toolkit.training.supervised.data import TraceDataset

    original = TraceDataset.__getitem__

    def read(dataset: Any, asked: int) -> Any:
        if asked == index:
            raise InputError(f"sample {index} cannot be read. Mend it.")
        return original(dataset, asked)

    TraceDataset.__getitem__ = read  # type: ignore[method-assign]


def _fill_disk() -> None:
    """Let no file of this process grow beyond 30 kB: a real error of the system, in the middle of a file."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))


def _kill_while_writing(number: int) -> None:
    """End this process when half of a file's bytes are on the disk, in whichever thread writes it."""
    from vilavt_toolkit.training import saving

    write, count = saving.save_file, [0]

    def die(tensors: Any, file: str, metadata: Any) -> None:
        write(tensors, file, metadata)
        if count[0] == number:
            os.truncate(file, os.path.getsize(file) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        count[0] += 1

    saving.save_file = die


if __name__ == "__main__":
    paths, runs = json.loads(sys.argv[1]), json.loads(sys.argv[2])
    sys.path[:0] = paths
    print(json.dumps(run_all(runs)))
    sys.stdout.flush()
