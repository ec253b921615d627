"""The loss of every data set of a mixture."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vilavt_toolkit.training.supervised.data import StepBatch
from vilavt_toolkit.training.world import World


class StepDatasets:
    """Tells which data set every sample of a step is of."""

    def __init__(self, names: Sequence[str], list_numbers: Callable[[int], Sequence[int]]) -> None:
        """`list_numbers` returns the places among `names` of a step's samples, in the order they were drawn."""
        self._names, self._list_numbers = names, list_numbers

    def measure_losses(
        self, world: World, device: torch.device, step: int, batch: StepBatch, step_logprobs: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Return the mean loss over the tokens of every data set that has some in the step, as `loss/NAME`.

        `step_logprobs` holds the log-probabilities [N] of each micro-batch. All processes of a run call this.
        """
        numbers, first, seen = self._list_numbers(step), 0, set[int]()
        sums = torch.zeros(2, len(self._names), dtype=torch.float32, device=device)
        for micro_batch, logprobs in zip(batch.micro_batches, step_logprobs, strict=True):
            own = [numbers[place] for place in batch.order[first : first + micro_batch.size]]
            first += micro_batch.size
            seen.update(own)
            owners = micro_batch.own_trajectories(micro_batch.targets)
            of_token = torch.tensor(own, device=owners.device)[owners]
            sums[0].index_add_(0, of_token, -logprobs.float())
            sums[1].index_add_(0, of_token, torch.ones_like(logprobs, dtype=torch.float32))
        if world.size > 1:
            sums = world.sum_tensor(sums)
            seen = {number for number, count in enumerate(sums[1].tolist()) if count}
        # Every sample has a token of the model, so that what is seen is known without a wait for the device.
        return {f"loss/{self._names[number]}": sums[0, number] / sums[1, number] for number in sorted(seen)}
