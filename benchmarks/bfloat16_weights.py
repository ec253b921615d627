"""How far AdamW moves weights that are kept in bfloat16, beside the same weights in float32.

python benchmarks/bfloat16_weights.py
"""

from __future__ import annotations

import torch
from torch import Tensor

WEIGHTS, STEPS, SIZE = 100_000, 300, 0.02
"""Number of weights, of steps, and the standard deviation of weights at the start, as that of a language model."""


def main() -> None:
    """Print, for three learning rates, the share of weights that move and their mean way."""
    print("learning rate | moved in bfloat16 | mean way in bfloat16 | in float32")
    for rate in (1e-6, 1e-5, 5e-5):
        moved, way = train(torch.bfloat16, rate)
        _, plain_way = train(torch.float32, rate)
        print(f"{rate:g} | {100 * moved:.1f}% | {way:.2g} | {plain_way:.2g}")


def train(dtype: torch.dtype, rate: float) -> tuple[float, float]:
    """Train weights of a type; return the share that ever moved, and the mean distance between start and end."""
    generator = torch.Generator().manual_seed(0)
    # The same start for both types: one that bfloat16 can hold.
    start = (SIZE * torch.randn(WEIGHTS, generator=generator)).bfloat16()
    drift = torch.randn(WEIGHTS, generator=generator)
    weight = torch.nn.Parameter(start.to(dtype, copy=True))
    optimizer = torch.optim.AdamW([weight], lr=rate, weight_decay=0.0)
    moved = torch.zeros(WEIGHTS, dtype=torch.bool)
    for _ in range(STEPS):
        # A gradient of its own direction for each weight, under noise of the same size.
        weight.grad = (drift + torch.randn(WEIGHTS, generator=generator)).to(dtype)
        optimizer.step()
        moved |= has_moved(weight, start)
    return moved.float().mean().item(), (weight.detach().float() - start.float()).abs().mean().item()


def has_moved(weight: Tensor, start: Tensor) -> Tensor:
    """Return which weights are not where they began."""
    return weight.detach().float() != start.float()


if __name__ == "__main__":
    main()
