"""A running mean of trained weights (EMA), which checkpoints and validations take in place of the newest weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vilavt_toolkit.checkpoints.training_state import TrainingState
from vilavt_toolkit.training.sharding import shard_like
from vilavt_toolkit.training.trainable import NamedParameter

NEWEST_PREFIX = "ema.newest."
"""Keys of the newest weights in a training state, where model.safetensors holds their mean."""
_MEAN_PREFIX = "ema.mean."


class WeightAverage:
    """The exponential moving mean of weights, from their values at the start on. It is float32 whatever their type.

    Lightning's `EMAWeightAveraging` does not serve: it copies the whole module, frozen weights included, keeps means in
    the weights' own type, in which small changes round to nothing, counts steps that were left out, and saves through
    Lightning's pickled checkpoints.
    """

    def __init__(self, weights: Sequence[NamedParameter], decay: float) -> None:
        self._weights = dict(weights)
        self._means = {name: weight.detach().to(torch.float32, copy=True) for name, weight in weights}
        self._average: Any = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    def update(self) -> None:
        """Take the newest weights into the mean: mean = decay * mean + (1 - decay) * weight.

        Of sharded weights every process does so with its own share, and sends nothing.
        """
        means = {name: _local_part(mean) for name, mean in self._means.items()}
        weights = {name: _local_part(weight.detach()) for name, weight in self._weights.items()}
        wide = [name for name, weight in weights.items() if weight.dtype == torch.float32]
        if wide:
            self._average([means[name] for name in wide], [weights[name] for name in wide], None)
        # One by one, since each is first copied in float32.
        for name in weights.keys() - set(wide):
            self._average([means[name]], [weights[name].float()], None)

    @property
    def means(self) -> Mapping[str, Tensor]:
        """The means by the names of their weights, in float32; sharded as the weights are."""
        return self._means

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let the model have the mean in place of its newest weights, rounded to their type. They are not sharded."""
        newest = {name: weight.data for name, weight in self._weights.items()}
        try:
            for name, weight in self._weights.items():
                weight.data = self._means[name].to(weight.dtype)
            yield
        finally:
            for name, weight in self._weights.items():
                weight.data = newest[name]

    def capture_state(self) -> dict[str, Tensor]:
        """Return the newest weights by name, and the means that a checkpoint's weights hold only rounded."""
        state = {f"{NEWEST_PREFIX}{name}": weight.detach() for name, weight in self._weights.items()}
        rounded = (name for name, weight in self._weights.items() if weight.dtype != torch.float32)
        state |= {f"{_MEAN_PREFIX}{name}": self._means[name] for name in rounded}
        return {name: value.contiguous() for name, value in state.items()}

    def load_state(self, state: TrainingState) -> None:
        """Take over what `capture_state` gave, of the means; the rest were read with the checkpoint's weights."""
        for name, mean in self._means.items():
            if (saved := state.tensors.get(f"{_MEAN_PREFIX}{name}")) is not None:
                _fill(mean, saved)


def load_newest_weights(weights: Mapping[str, nn.Parameter], state: TrainingState) -> None:
    """Give weights their newest values if a training state has them: the checkpoint held their mean.

    Raises KeyError or RuntimeError for the state of other weights.
    """
    with torch.no_grad():
        for key, value in state.tensors.items():
            if key.startswith(NEWEST_PREFIX):
                _fill(weights[key.removeprefix(NEWEST_PREFIX)], value)


def _local_part(value: Tensor) -> Tensor:
    """Return this process's share of a sharded tensor, in its own memory; another tensor as it is."""
    return value.to_local() if isinstance(value, DTensor) else value


def _fill(tensor: Tensor, whole: Tensor) -> None:
    """Copy values into a tensor; of a sharded one every process copies its share."""
    if tensor.shape != whole.shape:
        raise RuntimeError(f"a tensor of {list(whole.shape)} is saved for one of {list(tensor.shape)}")
    _local_part(tensor).copy_(_local_part(shard_like(whole, tensor)))
