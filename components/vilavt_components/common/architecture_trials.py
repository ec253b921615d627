"""Trials of architectures of transformers: small copies with random weights, built and run in memory of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextvars import Context
from typing import Any, TypeVar

import torch
from torch import nn

from vilavt_components.common.hf_errors import first_sentence
from vilavt_components.common.quiet import quiet_transformers
from vilavt_components.common.small_copies import shrink_config

T = TypeVar("T")
_MOST_PARAMETERS = 20_000_000


class Architecture:
    """A configuration of transformers that equals another one if its settings are the same."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self._key = type(config), json.dumps(config.to_dict(), sort_keys=True, default=str)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Architecture) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def run_trial(trial: Callable[[], T]) -> T:
    """Return what `trial` returns, run on the CPU without gradients; it changes no random number of the caller."""
    # A context of its own, in which parameters are real even while a checkpoint's model is built on the meta device.
    with torch.device("cpu"), torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(0)
        return Context().run(torch.no_grad()(trial))


def build_small_copy(config: Any, build: Callable[[Any], nn.Module]) -> nn.Module:
    """Return the model that `build` makes of a small copy of `config`, with random weights in evaluation mode.

    A family may not allow the sizes of the copy. The model itself is tried then, if it is small. Raises ValueError.
    """
    try:
        return _build_light(shrink_config(config), build)
    # A model may raise anything for sizes that it was not made for.
    except Exception as error:
        failure = error
    try:
        return _build_light(config, build)
    # Then the first reason is told, since the small copy is what every family should allow.
    except Exception:
        raise ValueError(f"no small copy of it can be tried: {describe_failure(failure)}") from failure


def _build_light(config: Any, build: Callable[[Any], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        size = sum(weight.numel() for weight in build(config).parameters())
    if size > _MOST_PARAMETERS:
        raise ValueError(f"it has {size:,} parameters, which takes too long")
    model = build(config).eval()
    # Weights as they are drawn are small, and layers of small weights hide their mistakes.
    for weight in model.parameters():
        weight.add_(0.1 * torch.randn_like(weight))
    for table in model.modules():
        if isinstance(table, nn.Embedding) and table.padding_idx is not None:
            # It stays zero in training, and some models rely on that.
            table.weight[table.padding_idx] = 0
    return model


def describe_failure(error: Exception) -> str:
    """Return an exception of a trial in a few words, for the error that refuses the architecture."""
    text = first_sentence(str(error))
    return text if isinstance(error, ValueError) else f"{type(error).__name__} {text}".strip()
