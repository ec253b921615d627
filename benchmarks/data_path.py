"""Memory of a run over an epoch, and the share of its steps that waits for data: `python benchmarks/data_path.py`."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
from pathlib import Path

import psutil

from vilavt_toolkit.checkpoints.loading import build_model
from vilavt_toolkit.config.recipe import CheckedRecipe, load_recipe
from vilavt_toolkit.training.supervised.data import build_step_loader

_MIB = 2**20


def main() -> None:
    """Walk one epoch of a recipe's data by its workers, then train some steps, and print both figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few samples, to see that it runs rather than to measure")
    parser.add_argument("--recipe", default="digit_scenes")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    # Steps of 16 dialogues: an epoch in which memory that leaks would show.
    samples, trained = (480, 6) if options.quick else (9600, 40)
    settings = ["train.batch_size=16", "train.micro_batch=null", f"train.max_samples={samples}", "train.threads=1"]
    settings += ["train.preprocess=stream", f"train.workers={options.workers}", "train.accelerator=cpu"]
    recipe = load_recipe(options.recipe, [*settings, f"train.steps={samples // 16}"])
    sizes = measure_epoch(recipe)
    tenth = max(1, len(sizes) // 10)
    # Workers import and fill their caches in the first steps.
    early, late = statistics.median(sizes[tenth : 2 * tenth]), statistics.median(sizes[-tenth:])
    print(
        f"{options.workers} workers, one epoch of {samples:,} samples: RSS of all processes {early / _MIB:,.0f} MiB in"
    )
    print(f"its second tenth, {late / _MIB:,.0f} MiB in its last, {100 * (late / early - 1):+.1f}%")
    share = measure_wait(options.recipe, [*settings, f"train.steps={trained}"])
    print(f"training waits for data in {100 * share:.2f}% of the time of its steps")


def measure_epoch(recipe: CheckedRecipe) -> list[int]:
    """Return the resident memory, in bytes, of this process and its workers after every step's batch of one epoch."""
    section, sizes = recipe.recipe.train, list[int]()
    model = build_model(recipe)
    for _ in build_step_loader(model, recipe.recipe.task.build(), section, 0):
        numbers = [os.getpid(), *(process.pid for process in multiprocessing.active_children())]
        sizes.append(sum(psutil.Process(number).memory_info().rss for number in numbers if number is not None))
    return sizes


def measure_wait(name: str, settings: list[str]) -> float:
    """Train some steps of a recipe and return the median share of time that its logged steps waited for data."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from vilavt_toolkit.training.supervised.run import run_supervised

    with tempfile.TemporaryDirectory() as folder:
        own = [f"run={Path(folder) / 'run'}", "train.log_every=2", "train.trackers=[tensorboard]"]
        run = run_supervised(load_recipe(name, [*settings, *own]))
        events = EventAccumulator(str(run / "logs"))
        events.Reload()
        # The first steps wait until the workers have begun.
        return statistics.median(event.value for event in events.Scalars("speed/data_share")[1:])


if __name__ == "__main__":
    main()
