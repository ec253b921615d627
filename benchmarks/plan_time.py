"""The time that `vilavt plan` says of a training step on this CPU, beside that of real steps.

python benchmarks/plan_time.py            # four minutes; rates are measured as `vilavt plan --calibrate` does
python benchmarks/plan_time.py --write    # and put the table into docs/scaling.md

One thread, and the time of this process alone, so that other programs on the machine count little.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from _measure import replace_section

from vilavt_toolkit.checkpoints.loading import build_model
from vilavt_toolkit.checkpoints.native import load_run_recipe
from vilavt_toolkit.config.recipe import CheckedRecipe
from vilavt_toolkit.planning.calibration import calibrate
from vilavt_toolkit.planning.dialogues import Dialogue, invent_dialogues
from vilavt_toolkit.planning.simulation import build_planned_model, simulate_supervised_step
from vilavt_toolkit.registry.plugins import load_builtin
from vilavt_toolkit.training.memory import apply_memory_settings
from vilavt_toolkit.training.supervised.data import build_step_collator
from vilavt_toolkit.training.supervised.module import SupervisedModule
from vilavt_toolkit.training.trainer import make_trainer
from vilavt_toolkit.training.world import World

PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"
RECIPE = (
    "model.encoder.config={img_size: 32, patch_size: 4, embed_dim: 96, depth: 3, num_heads: 4, mlp_ratio: 4.0}",
    "model.language_model.config={model_type: llama, hidden_size: 256, intermediate_size: 768, num_hidden_layers: 4, "
    "num_attention_heads: 4, num_key_value_heads: 2, max_position_embeddings: 1024}",
    "model.language_model.vocab_size=800",
    "train.batch_size=16",
)
"""The recipe `quickstart` with a model whose numbers weigh more than Python."""
CASES = {
    "plain": ("train.micro_batch=4",),
    "layers and blocks computed again": (
        "train.micro_batch=4",
        "train.gradient_checkpointing=true",
        "train.language_model_checkpointing=true",
    ),
    "rows that dialogues share": ("train.micro_batch=null", "train.pack_tokens=2400"),
    "adapters in the language model": ("train.micro_batch=4", "train.lora={targets: [language_model], rank: 8}"),
    "bf16-mixed": ("train.micro_batch=4", "train.precision=bf16-mixed"),
}
LENGTH, STEPS = 600, 5


class Times(pl.Callback):
    """Keeps the time that this process computed for, of every step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._begin = 0.0

    def on_train_batch_start(self, *unused: Any) -> None:
        """Begin a step."""
        self._begin = time.process_time()

    def on_train_batch_end(self, *unused: Any) -> None:
        """End it."""
        self.seconds.append(time.process_time() - self._begin)


def main() -> None:
    """Print planned and measured seconds of all cases, and write the page by the options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table into docs/scaling.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    load_builtin()
    rows = ["| recipe | planned | measured | planned / measured |", "| --- | ---: | ---: | ---: |"]
    for name, overrides in CASES.items():
        recipe = load_run_recipe("quickstart", [*RECIPE, *overrides])
        model = build_planned_model(recipe)
        # Anew for each, since a machine that others use changes its rates.
        rates = calibrate(torch.device("cpu"))
        dialogues = invent_dialogues(model, LENGTH, recipe.recipe.train.batch_size).dialogues
        planned = simulate_supervised_step(recipe, model, dialogues, rates).cost.seconds
        measured = measure_step(recipe, dialogues)
        rows.append(f"| {name} | {planned:.2f} s | {measured:.2f} s | {planned / measured:.2f} |")
        print(rows[-1], flush=True)
    if options.write:
        replace_section(PAGE, "plan time", "\n".join(rows))


def measure_step(recipe: CheckedRecipe, dialogues: Sequence[Dialogue]) -> float:
    """Return the median time of real steps, without the first."""
    section = replace(recipe.recipe.train, accelerator="cpu")
    model = build_model(recipe, torch.float32)
    apply_memory_settings(model, section)
    module = SupervisedModule(model, section.optimizer.build(), section)
    batch, times = build_step_collator(model, section)(dialogues), Times()

    class Loader:
        def __iter__(self) -> Iterator[Any]:
            return iter([batch] * STEPS)

    make_trainer(section, World(), logger=False, enable_progress_bar=False, callbacks=[times]).fit(module, Loader())
    return statistics.median(times.seconds[1:])


if __name__ == "__main__":
    main()
