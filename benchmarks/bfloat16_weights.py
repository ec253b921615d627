"""How far `adamw` moves weights that are kept in bfloat16, by its setting `master`, beside the same weights in float32.

python benchmarks/bfloat16_weights.py            # half a minute on a CPU
python benchmarks/bfloat16_weights.py --write    # and put the table into docs/training.md
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

import torch
from _measure import replace_section
from torch import Tensor

from vilavt_components.common.master_weights import Master
from vilavt_components.optimizers.adamw import AdamW, AdamWConfig

PAGE = Path(__file__).parent.parent / "docs" / "training.md"
WEIGHTS, STEPS, SIZE = 100_000, 300, 0.02
"""Number of weights, of steps, and the standard deviation of weights at the start, as that of a language model."""
RATES = (1e-6, 1e-5, 5e-5)


def main() -> None:
    """Print the mean way of weights for three learning rates, and write the page by the options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table into docs/training.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = ["| `master` | " + " | ".join(f"learning rate {rate:g}" for rate in RATES) + " |", "| --- |" + " ---: |" * 3]
    full = {rate: train(torch.float32, rate, "none")[1] for rate in RATES}
    for master in get_args(Master):
        found = {rate: train(torch.bfloat16, rate, master) for rate in RATES}
        cells = [f"{way / full[rate]:.0%}, {moved:.1%} of weights moved" for rate, (moved, way) in found.items()]
        rows.append(f"| `{master}` | " + " | ".join(cells) + " |")
        print(rows[-1], flush=True)
    errors = ", ".join(f"{measure_sum(count):.2%} for {count}" for count in (8, 32, 128))
    told = f"A sum of gradients in bfloat16 is off by so much of its norm, by the number of gradients: {errors}."
    print(told)
    if options.write:
        replace_section(PAGE, "bfloat16", "\n".join([*rows, "", told]))


def train(dtype: torch.dtype, rate: float, master: Master) -> tuple[float, float]:
    """Train weights of a type; return the share that ends elsewhere, and the mean way along each weight's drift."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    # The same start for both types: one that bfloat16 can hold.
    start = (SIZE * torch.randn(WEIGHTS, generator=generator)).bfloat16()
    drift = torch.randn(WEIGHTS, generator=generator)
    weight = torch.nn.Parameter(start.to(dtype, copy=True))
    optimizer = AdamW(AdamWConfig(lr=rate, weight_decay=0.0, master=master)).build([("weight", weight)])
    for _ in range(STEPS):
        # A gradient of its own direction for each weight, under noise of the same size.
        weight.grad = (drift + torch.randn(WEIGHTS, generator=generator)).to(dtype)
        optimizer.step()
    return measure_way(weight, start, drift)


def measure_sum(count: int) -> float:
    """Return how far a sum of gradients in bfloat16 is off, as a share of its norm.

    Each gradient is the same direction under noise of ten times its size, as those of single dialogues are.
    """
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(WEIGHTS, generator=generator)
    exact, summed = torch.zeros(WEIGHTS), torch.zeros(WEIGHTS, dtype=torch.bfloat16)
    for _ in range(count):
        gradient = (direction + 10 * torch.randn(WEIGHTS, generator=generator)).bfloat16()
        exact += gradient.float()
        summed += gradient
    return ((summed.float() - exact).norm() / exact.norm()).item()


def measure_way(weight: Tensor, start: Tensor, drift: Tensor) -> tuple[float, float]:
    """Return the share of weights that are not where they began, and how far they went against their drift."""
    way = start.float() - weight.detach().float()
    return (way != 0).float().mean().item(), (way * drift.sign()).mean().item()


if __name__ == "__main__":
    main()
