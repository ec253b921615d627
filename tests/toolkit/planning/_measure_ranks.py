"""Run in a process of its own: takes a real step in two forked processes, and prints the first one's peak of memory.

Arguments: the folders of the packages, the recipe, lists of overrides, and the tokens of a dialogue. Prints a list of
bytes, one for every list of overrides.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from pathlib import Path


def measure_all(name: str, runs: list[list[str]], length: int) -> list[int]:
    import torch
    from test_truth import measure_peak

    from vilavt_toolkit.checkpoints.native import load_run_recipe
    from vilavt_toolkit.planning.dialogues import invent_dialogues
    from vilavt_toolkit.planning.simulation import build_planned_model
    from vilavt_toolkit.training.world import World

    torch.set_num_threads(1)

    def measure(rank: int, overrides: list[str]) -> int:
        recipe = load_run_recipe(name, overrides)
        model = build_planned_model(recipe)
        share = recipe.recipe.train.batch_size // 2
        return measure_peak(recipe, invent_dialogues(model, length, share).dialogues, World(rank, 2))

    return [_fork_ranks(measure, overrides) for overrides in runs]


def _fork_ranks(measure, overrides: list[str]) -> int:
    """Return what the first of two processes measures."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    reading, writing = os.pipe()
    children = []
    for rank in range(2):
        child = os.fork()
        if not child:
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
            os.environ.update({key: str(value) for key, value in numbers.items()}, MASTER_ADDR="127.0.0.1")
            code = 1
            try:
                found = measure(rank, overrides)
                if rank == 0:
                    os.write(writing, str(found).encode())
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    os.close(writing)
    with os.fdopen(reading) as told:
        assert codes == [0, 0], codes
        return int(told.read())


if __name__ == "__main__":
    sys.path[:0] = [*json.loads(sys.argv[1]), str(Path(__file__).parent)]
    print(json.dumps(measure_all(sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4]))))
    sys.stdout.flush()
