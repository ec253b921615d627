"""Damaged checkpoints, loaded, asked and resumed from: each works, or is refused in a sentence.

python benchmarks/attack/checkpoints.py                       # 100 checkpoints, some minutes on one core
python benchmarks/attack/checkpoints.py --first 17 --count 1  # one case again
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
from _campaign import Campaign, parse_options, run_quietly
from _damage import list_damages

import vilavt_toolkit as vt
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.errors import VilavtError
from vilavt_toolkit.training.supervised.run import run_supervised

TINY = [
    "model.encoder.config.embed_dim=32",
    "model.encoder.config.depth=2",
    "model.encoder.overview_pixels=1024",
    "model.encoder.zoom_pixels=1024",
    "model.language_model.config.hidden_size=32",
    "model.language_model.config.intermediate_size=64",
    "model.language_model.config.num_hidden_layers=2",
    "model.language_model.config.num_attention_heads=2",
    "model.language_model.config.num_key_value_heads=2",
    "model.language_model.vocab_size=400",
    "model.projector.hidden_dim=32",
    "task.train_items=32",
    "train.batch_size=4",
    "train.micro_batch=4",
    "train.warmup_steps=0",
    "train.steps=1",
    "train.accelerator=cpu",
    "train.preprocess=stream",
    "train.workers=0",
]
"""The quickstart's model with tiny widths, after one step."""
PICTURE = np.zeros((64, 64, 3), dtype=np.uint8)


def train_tiny(run: Path) -> list[str]:
    """Train the run whose copies are damaged, and return the settings that resume it."""
    settings = [*TINY, f"run={run}"]
    run_supervised(load_recipe("quickstart", settings))
    return settings


def use_checkpoint(run: Path, settings: list[str], resume: bool) -> str:
    """Load a run and ask it, or take another step from it; returns what came of it."""
    try:
        if resume:
            recipe = load_recipe("quickstart", [*settings, f"run={run}", "train.steps=2"])
            run_supervised(recipe, resume=True, allow_changes=True)
            return "resumed"
        model = vt.load(run, device="cpu")
        # What loads must also answer: a damage that shows in the first question was not told.
        vt.ask(PICTURE, "what is it?", model=model, max_new_tokens=3)
        return "answered"
    except VilavtError as error:
        text = str(error)
        assert len(text) < 3_000, f"no sentence: {text[:500]}"
        return "refused"


def main() -> int:
    """Run the campaign and return its exit code."""
    options = parse_options("Damage checkpoints and use them.", 100)
    os.environ["HF_HUB_OFFLINE"] = "1"
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    campaign = Campaign("damaged checkpoints")
    with tempfile.TemporaryDirectory() as folder:
        whole, run = Path(folder) / "whole", Path(folder) / "run"
        settings = train_tiny(whole)
        for number in range(options.first, options.first + options.count):
            chance = random.Random(f"{options.seed} {number}")
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(whole, run)
            (checkpoint,) = (run / "checkpoints").iterdir()
            file = chance.choice([path for path in sorted(checkpoint.rglob("*")) if path.is_file()])
            damage = chance.choice(list_damages(file))
            damage(file, chance)
            # A training state shows its damages only when it is resumed from.
            resume = file.name.startswith("resume") or chance.random() < 0.2
            name = f"seed {options.seed}, case {number} ({damage.__name__} of {file.relative_to(checkpoint)})"
            outcomes: list[str] = []

            def attempt(resume: bool = resume, outcomes: list[str] = outcomes) -> str:
                run_quietly(lambda: outcomes.append(use_checkpoint(run, settings, resume)))
                return outcomes[0]

            campaign.run_case(name, attempt)
    return campaign.report(options.json)


if __name__ == "__main__":
    sys.exit(main())
